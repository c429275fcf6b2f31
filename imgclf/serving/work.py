"""The work of a service: places for what it has taken, threads that decode, and batches across requests."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from imgclf.serving.settings import Refusal

__all__ = ["Admission", "Batcher", "Ticket", "WorkerThreads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Admission:
    """Counts what the service has taken and not yet answered: images, and bytes of bodies. For one event loop."""

    def __init__(self, places: int, held_bytes: int) -> None:
        self.places, self.held_bytes = places, held_bytes
        self.taken = self.held = 0

    @contextmanager
    def ticket(self) -> Iterator["Ticket"]:
        """Take one place, and give back all places and bytes of the ticket at the end; raises `Refusal` 429 where none is
        free.
        """
        ticket = Ticket(self)
        ticket.take(1)
        try:
            yield ticket
        finally:
            self.taken -= ticket.taken
            self.held -= ticket.held


class Ticket:
    """The places and bytes of one request."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.taken = self.held = 0

    def take(self, places: int) -> None:
        """Take more places; raises `Refusal` 429 where they aren't free."""
        admission = self.admission
        if admission.taken + places > admission.places:
            line = f"the queue is full: {admission.taken} of {admission.places} places are taken; ask again in a second"
            raise Refusal(429, line, closes=True)
        admission.taken += places
        self.taken += places

    def hold(self, count: int) -> None:
        """Account for more bytes of the body; raises `Refusal` 429 where the bodies of all requests take too many."""
        admission = self.admission
        if admission.held + count > admission.held_bytes:
            line = f"bodies take {admission.held / 2**20:,.0f} MiB at the moment; ask again in a second"
            raise Refusal(429, line, closes=True)
        admission.held += count
        self.held += count


class WorkerThreads:
    """`count` daemon threads that make calls in their order.

    No executor: at exit it waits for its threads, and one may hang on a server that doesn't respond.
    """

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Return the future result of `call`; one that is cancelled in time is never made."""
        future: Future[Result] = Future()
        self._tasks.put((future, call))
        return future

    def stop(self) -> None:
        """Let the threads end once the calls before are made."""
        for _ in self._threads:
            self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, call  # or the last image stays in memory until the next one


class Batcher(Generic[Item, Result]):
    """One thread that hands `compute` whatever has queued, up to `most` items; an idle one starts at once.

    Nothing waits for a batch to fill: items gather while the batch before is computed. `lock` is held meanwhile, so that
    several models share the cores one after another. `seen` is told the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        most: int,
        lock: threading.Lock,
        seen: Callable[[int], object],
    ) -> None:
        self.compute, self.most, self.lock, self.seen = compute, most, lock, seen
        self._tasks: queue.SimpleQueue[tuple[Future[Result], Item] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Result]":
        """Return the future result of `item`; one that is cancelled before its batch begins is left out."""
        future: Future[Result] = Future()
        self._tasks.put((future, item))
        return future

    def stop(self) -> None:
        """Let the thread end once the items before are computed."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            with self.lock:  # first, because more items gather while another model computes
                batch, ended = self._gather(task)
                if batch:
                    self._compute(batch)
            del task, batch
            if ended:
                return

    def _gather(self, task: tuple["Future[Result]", Item] | None) -> tuple[list[tuple["Future[Result]", Item]], bool]:
        """Return the items that are computed together, and whether the thread ends after them."""
        batch = []
        while task is not None:
            if task[0].set_running_or_notify_cancel():
                batch.append(task)
            if len(batch) == self.most:
                break
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
        return batch, task is None

    def _compute(self, batch: list[tuple["Future[Result]", Item]]) -> None:
        self.seen(len(batch))
        try:
            results = self.compute([item for _, item in batch])
            for (future, _), result in zip(batch, results, strict=True):
                future.set_result(result)
        except BaseException as error:
            for future, _ in batch:
                if not future.done():
                    future.set_exception(error)
