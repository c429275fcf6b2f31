"""Work ahead of need, in threads: Pillow, OpenCV and NumPy let go of Python's lock where they take their time."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any, TypeVar

__all__ = ["available_cpus"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch_map(function: Callable[[Item], Result], items: Iterable[Item], window: int,
          timeout_seconds: float | None = None) -> Generator[Result, None, None]:  # fmt: skip
    """`function` of each item, in order, up to `window` of them ahead; close it, and no more are begun.

    A single item is no work for threads. Raises TimeoutError where one takes longer than `timeout_seconds`.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if len(first) < 2 and timeout_seconds is None:
        yield from map(function, first)
        return
    work: queue.SimpleQueue[tuple[Future[Any], Any] | None] = queue.SimpleQueue()
    # No executor: at the program's end it waits for its threads, and one may hang on a drive that doesn't answer.
    for _ in range(available_cpus()):
        threading.Thread(target=_worker, args=(function, work), daemon=True).start()
    waiting: deque[Future[Result]] = deque()
    try:
        for item in chain(first, iterator):
            waiting.append(Future())
            work.put((waiting[-1], item))
            if len(waiting) > window:
                yield waiting.popleft().result(timeout_seconds)
        while waiting:
            yield waiting.popleft().result(timeout_seconds)
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(available_cpus()):
            work.put(None)


def _worker(function: Callable[[Any], Any], work: "queue.SimpleQueue[tuple[Future[Any], Any] | None]") -> None:
    while (task := work.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)


def available_cpus(capped: bool = True) -> int:
    """Return how many cores this process may use; `IMGCLF_THREADS`, which a sweep sets where trials share a machine, is a cap
    unless not `capped`.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, int(os.environ.get("IMGCLF_THREADS") or count)) if capped else count
