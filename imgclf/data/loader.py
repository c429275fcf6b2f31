"""Batches in an order that is a function of (seed, epoch), so that any position can be restored exactly."""

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imgclf.data.augment import Augment
from imgclf.data.pixel_cache import CachedRows, Indices, read_pixels
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, ImgclfError, RunError, one_line
from imgclf.files.row_store import Rows, StoredRows
from imgclf.preprocess import Preprocess
from imgclf.signals import leave_group

__all__ = ["Batch", "Features", "Loader", "LoaderOptions", "batch_bounds", "worker_failure"]

PATIENCE = timedelta(hours=12)  # with the other processes of a run while caches are filled


class Batch(NamedTuple):
    """`images` uint8 [B, C, S, S], or `features` float32 [B, F] or [B, F, h, w] of a frozen part of the network in their place;
    `targets` int64 [B], `indices` int64 [B] into the loader's samples; -1 where they are unknown.
    """

    images: torch.Tensor | None
    targets: torch.Tensor
    indices: torch.Tensor
    features: torch.Tensor | None = None


class Features(Protocol):
    """The features of a loader's samples, used in place of their images."""

    def ready(self) -> bool:
        """Return whether the part of the network that computes them is still frozen."""

    def prepare(self, epoch: int, indices: Indices) -> None:
        """Compute the features of `epoch` that are missing."""

    def take(self, epoch: int, indices: Indices) -> torch.Tensor:
        """Return float32 [B, F] or [B, F, h, w]."""


@dataclass(frozen=True)
class LoaderOptions:
    """`batch_size` is global: of `world_size` processes each gets every `world_size`-th sample of a batch, from `rank` on.

    `shuffle`: "epoch" draws a new order every epoch, "once" one for all (so that a few batches show more than the first
    class), "never" keeps the samples' order. `views`: augmentation repeats after so many epochs, None for never.
    """

    batch_size: int = 32
    seed: int = 0
    shuffle: str = "never"
    views: int | None = None
    num_workers: int = 0
    timeout_seconds: float = 300
    rank: int = 0
    world_size: int = 1


class CachedImages(NamedTuple):
    """Where the images of a batch are cached: the `numbers` [B] of their rows in the file `rows`, and their `checksums` [B]."""

    rows: str
    numbers: Indices
    checksums: npt.NDArray[np.uint32]


class BatchIndices(NamedTuple):
    """The content of a batch: `epoch` and `indices` [B]; `cached` is None where nothing is cached."""

    epoch: int
    indices: Indices
    cached: CachedImages | None


class Fetched(NamedTuple):
    """What a DataLoader worker returns: a batch or why there is none, and the `damaged` indices, of cached images that were
    damaged or gone, and decoded in their place.
    """

    batch: Batch | ImgclfError
    damaged: Indices


class _Batches(Dataset[Fetched]):
    """Turns batch indices into a batch; DataLoader workers run this."""

    def __init__(
        self, samples: Samples, preprocess: Preprocess, augment: Augment | None, seed: int, rows: Rows | None
    ) -> None:
        self.samples, self.preprocess, self.augment, self.seed = samples, preprocess, augment, seed
        self.rows = rows

    def __getitem__(self, batch: BatchIndices) -> Fetched:
        try:
            images, damaged = self.images(batch)  # uint8 [B, S, S, C]
        except ImgclfError as error:
            # Handed over as it is: torch would wrap an exception of a worker into lines of traceback.
            return Fetched(error, batch.indices[:0])
        # [B, C, S, S] that is [B, S, S, C] in memory: channels_last at no cost
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        targets = torch.from_numpy(self.samples.targets[batch.indices])
        return Fetched(Batch(pixels, targets, torch.from_numpy(batch.indices)), damaged)

    def images(self, batch: BatchIndices) -> tuple[npt.NDArray[np.uint8], Indices]:
        """Return uint8 [B, S, S, C], augmented, and the indices whose cached images are damaged."""
        images, damaged = self._fitted(batch)
        if self.augment:
            for row, index in enumerate(batch.indices.tolist()):
                images[row] = self.augment(images[row], self.seed, batch.epoch, index)
        return images, damaged

    def _fitted(self, batch: BatchIndices) -> tuple[npt.NDArray[np.uint8], Indices]:
        """Return a copy of the images, from memory, from the cache or decoded; and the indices of damaged ones."""
        cached, pixels, none = batch.cached, self.samples.pixels, batch.indices[:0]
        shape = (self.preprocess.size, self.preprocess.size, self.preprocess.channels)
        if pixels is not None and pixels.shape[1:] == shape:
            return pixels[batch.indices], none
        if cached is None:
            return read_pixels(self.samples, self.preprocess, batch.indices), none
        if self.rows is None or self.rows.token != cached.rows:
            self.rows = StoredRows(Path(cached.rows), shape, "uint8")
        images, whole = self.rows.take(cached.numbers, cached.checksums)
        if not whole.all():
            images[~whole] = read_pixels(self.samples, self.preprocess, batch.indices[~whole])
        return images, batch.indices[~whole & (cached.numbers >= 0)]


class Loader:
    """An iterable of `Batch` over `samples`; the same batches for any number of workers.

    `cache` holds decoded images; `stop` ends the filling of caches early. `limit` is how many batches an epoch is asked for,
    None for all: no others are cached. `features`, while they are ready, replace images. `state_dict` is {epoch, batch}: the
    batches handed out. An unreadable image raises its `ImageError`; a worker that dies, or is silent for `timeout_seconds`,
    a `RunError`.
    """

    def __init__(
        self,
        samples: Samples,
        preprocess: Preprocess,
        options: LoaderOptions,
        *,
        augment: Augment | None = None,
        cache: CachedRows | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if options.batch_size < options.world_size:
            raise ConfigError(
                f"dataset.batch_size={options.batch_size}: expected one image per process, {options.world_size}"
            )
        self.samples, self.options, self.augment, self.stop = samples, options, augment, stop
        self.limit: int | None = None
        self.features: Features | None = None
        self._cache = cache
        self._group: Any = None  # of the processes of a distributed run
        self.epoch, self._batches_yielded, self._resume_at = 0, 0, 0
        self.batch_sampler = None  # Lightning asks for one
        self._batch_indices = _BatchIndicesSampler()
        self._batches = _Batches(samples, preprocess, augment, options.seed, cache.rows if cache else None)
        workers = options.num_workers
        self._loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._batch_indices,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker if workers else None,
            timeout=options.timeout_seconds if workers else 0,
        )

    def __len__(self) -> int:
        return len(self._batch_bounds()) - 1

    @property
    def sampler(self) -> "Loader":
        """Return this loader, whose `set_epoch(epoch)` Lightning calls through this name at the start of every epoch.

        No attribute: a loader that refers to itself dies by garbage collection, which closes the workers' queues before it
        stops the workers.
        """
        return self

    def close(self) -> None:
        """Stop the workers; a later iteration starts new ones."""
        iterator: Any = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has."""
        if epoch != self.epoch:
            self.epoch, self._batches_yielded, self._resume_at = epoch, 0, 0

    def permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the order of the samples in `epoch`: int64 [N]."""
        if self.options.shuffle == "never":
            return np.arange(len(self.samples))
        seed = self.options.seed
        position = [seed, epoch] if self.options.shuffle == "epoch" else [seed]
        return np.random.default_rng(position).permutation(len(self.samples))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for, because Lightning asks for iterators before
        # it sets the epoch, and for more than one of them.
        start, self._resume_at = self._resume_at, 0
        order, rank, step = self.permutation(self.epoch), self.options.rank, self.options.world_size
        batches = [order[first:last][rank::step] for first, last in pairwise(self._batch_bounds())]
        self._batches_yielded = start
        wanted = np.concatenate([order[:0], *batches[start : self.limit]])
        if self.features is not None and self.features.ready():
            yield from self._with_features(self.features, batches[start:], wanted)
            return
        if self._cache is not None:
            with self._together():
                self._cache.prepare(wanted, self.stop)
            self._batches.rows = self._cache.rows  # workers that begin now have its file open, should it be deleted
        self._batch_indices[:] = [self._locate(self.epoch, batch) for batch in batches[start:]]
        for fetched in self._fetched():
            if self._cache is not None and len(fetched.damaged):
                self._cache.forget(fetched.damaged)
            if isinstance(fetched.batch, ImgclfError):
                raise fetched.batch
            self._batches_yielded += 1
            yield fetched.batch

    def images(self, epoch: int, indices: Indices) -> npt.NDArray[np.uint8]:
        """Return some samples' images as an iteration of `epoch` would have them: uint8 [B, S, S, C]."""
        return self._batches.images(self._locate(epoch, indices))[0]

    def _locate(self, epoch: int, indices: Indices) -> BatchIndices:
        epoch, cache = epoch % self.options.views if self.options.views else epoch, self._cache
        if cache is None:
            return BatchIndices(epoch, indices, None)
        cached = CachedImages(cache.rows.token, cache.numbers[indices], cache.checksums[indices])
        return BatchIndices(epoch, indices, cached)

    def _with_features(self, features: Features, batches: list[Indices], wanted: Indices) -> Iterator[Batch]:
        with self._together():
            features.prepare(self.epoch, wanted)
        for indices in batches:
            self._batches_yielded += 1
            targets = torch.from_numpy(self.samples.targets[indices])
            yield Batch(None, targets, torch.from_numpy(indices), features.take(self.epoch, indices))

    @contextmanager
    def _together(self) -> Iterator[None]:
        """After the block, wait until the other processes of a distributed run have come as far: they may fill a cache for
        hours, longer than they wait for each other elsewhere.
        """
        if self.options.world_size == 1:
            yield
            return
        if self._group is None:  # gloo notices at once that another process has been killed
            self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        yield
        torch.distributed.monitored_barrier(self._group, PATIENCE)

    def _fetched(self) -> Iterator[Fetched]:
        """Yield the inner loader's batches; a lost worker is reported in plain words."""
        try:
            yield from self._loader
        except Exception as error:
            if self._loader.num_workers and (failure := worker_failure(error, self._exit_codes(error))):
                raise failure from None
            raise

    def _exit_codes(self, error: Exception) -> list[int]:
        """Return how the workers that have ended did: their exit codes, or minus the signal that killed them."""
        workers: list[Any] = getattr(self._loader._iterator, "_workers", [])
        # A connection breaks before its process ends. The times are in seconds.
        patience = 5.0 if isinstance(error, (ConnectionError, EOFError)) else 0.5
        ended = wait([worker.sentinel for worker in workers], timeout=patience)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(1.0)  # a process closes its sentinel before its exit code can be read
        return [worker.exitcode for worker in workers if worker.exitcode]

    def _batch_bounds(self) -> list[int]:
        return batch_bounds(len(self.samples), self.options)

    def state_dict(self) -> dict[str, int]:
        """Return the position of the iteration as plain numbers."""
        return {"epoch": self.epoch, "batch": self._batches_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration of that epoch begin after the batches that were handed out."""
        self.epoch, self._batches_yielded = int(state["epoch"]), int(state["batch"])
        self._resume_at = self._batches_yielded


def batch_bounds(count: int, options: LoaderOptions) -> list[int]:
    """Return where one batch of `count` samples ends and the next begins: `batch_size` apart, from 0 to `count`."""
    bounds = [*range(0, count, options.batch_size), count]
    rest = bounds[-1] - bounds[-2] if len(bounds) > 2 else 0
    # BatchNorm can't learn from a single image: where a process would get one, the last batch joins the one before it.
    if options.shuffle == "epoch" and 0 < rest < 2 * options.world_size:
        del bounds[-2]
    return bounds


class _BatchIndicesSampler(list[BatchIndices], Sampler[BatchIndices]):
    """The sampler of the inner loader: this epoch's batch indices, which persistent workers get newly each time."""


def worker_failure(error: Exception, exit_codes: Sequence[int] = ()) -> RunError | None:
    """Return the `RunError` for an exception that torch raises when a DataLoader worker is lost, None for any other.

    torch reports it in four ways: two are a bare connection error, and one is raised by a signal handler, at any place of
    the program. None has a type of its own, so that its text must be read. `exit_codes` of the workers that have ended
    (minus a signal) tell more where it has none.
    """
    text = one_line(error)
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return RunError(
            f"a DataLoader worker hangs ({text}): most likely a file on a drive or network that doesn't answer; "
            "dataset.num_workers=0 stops at that file, a larger dataset.timeout_seconds waits longer"
        )
    lost = bool(exit_codes) or isinstance(error, (ConnectionError, EOFError)) or "DataLoader worker" in text
    if "shared memory" in text or "</torch_" in text:  # raised by a worker that lives on
        exit_codes = [-_BUS_ERROR]
    elif not lost or text.startswith("Caught "):  # torch's word for any other exception of a worker, with its traceback
        return None
    reason = _how_it_ended(text, exit_codes)
    return RunError(f"{reason}. `imgclf resume <run folder>` continues from the last checkpoint ({text[:100]})")


_BUS_ERROR = int(getattr(signal, "SIGBUS", 7))  # Windows has none


def _how_it_ended(text: str, exit_codes: Sequence[int]) -> str:
    """Return how a worker ended and what to do, from torch's message and the exit codes of the workers."""
    named = re.search(r"killed by signal: ([^.]+)", text)
    numbers = {signal.strsignal(number): number for number in signal.valid_signals()}
    number = numbers.get(named[1]) if named else -min(exit_codes, default=0)
    if number == getattr(signal, "SIGKILL", 9):
        return (
            "a DataLoader worker was killed, most likely because memory ran out; pass a smaller dataset.num_workers "
            "(0: none) or dataset.batch_size"
        )
    if number == _BUS_ERROR:
        return (
            "a DataLoader worker got no shared memory (bus error), most likely because /dev/shm is full; make it larger, "
            "or pass dataset.num_workers=0"
        )
    if number and number > 0:
        name = signal.Signals(number).name
        return f"a DataLoader worker was ended by {name}, not by imgclf; dataset.num_workers=0 works without workers"
    code = f" with code {max(exit_codes)}" if exit_codes else ""
    return f"a DataLoader worker ended unexpectedly{code}; dataset.num_workers=0 works without workers"


def _start_worker(worker: int) -> None:
    """Workers share the cores with the training step: with more than one thread each they slow it down."""
    torch.set_num_threads(1)
    leave_group()
