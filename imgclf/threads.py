"""Prefetching in threads: Pillow, OpenCV and NumPy release Python's lock while they work."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import chain, islice
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["available_cpus", "prefetch_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch_map(
    function: Callable[[Item], Result], items: Iterable[Item], window: int, timeout_seconds: float | None = None
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item in order, computing up to `window` results ahead; closing it stops the work.

    A single item is computed without threads. Raises TimeoutError if a result takes longer than `timeout_seconds`.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if len(first) < 2 and timeout_seconds is None:
        yield from map(function, first)
        return
    tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
    threads = [threading.Thread(target=_worker, args=(function, tasks), daemon=True) for _ in range(available_cpus())]
    # No executor: at exit it waits for its threads, and one may hang on a drive that does not respond.
    for thread in threads:
        thread.start()
    pending: deque[Future[Result]] = deque()
    try:
        for item in chain(first, iterator):
            pending.append(Future())
            tasks.put((pending[-1], item))
            if len(pending) > window:
                yield pending.popleft().result(timeout_seconds)
        while pending:
            yield pending.popleft().result(timeout_seconds)
    finally:
        for future in pending:
            future.cancel()
        for _ in threads:
            tasks.put(None)


def _worker(function: Callable[[Item], Result], tasks: "SimpleQueue[tuple[Future[Result], Item] | None]") -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)


def available_cpus() -> int:
    """Number of cores this process may use; `IMGCLF_THREADS`, which concurrent trials of a sweep set, is a cap."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(os.environ.get("IMGCLF_THREADS") or cores))
