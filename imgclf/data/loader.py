"""Batches in an order that is a function of (seed, epoch), so that any position can be restored exactly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
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
from imgclf.files.row_store import MappedRows, Rows
from imgclf.preprocess import Preprocess
from imgclf.signals import leave_group

__all__ = ["Batch", "Features", "Loader", "LoaderOptions", "batch_bounds", "worker_failure"]


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


class BatchIndices(NamedTuple):
    """The content of a batch: `epoch`, `indices` [B]; `numbers` [B] of the cached rows in the file `rows`, or None."""

    epoch: int
    indices: Indices
    numbers: Indices | None
    rows: str


class _Batches(Dataset["Batch | ImgclfError"]):
    """Turns batch indices into a batch; DataLoader workers run this."""

    def __init__(
        self, samples: Samples, preprocess: Preprocess, augment: Augment | None, seed: int, rows: Rows | None
    ) -> None:
        self.samples, self.preprocess, self.augment, self.seed = samples, preprocess, augment, seed
        self.rows = rows

    def __getitem__(self, batch: BatchIndices) -> Batch | ImgclfError:
        try:
            images = self.images(batch)  # uint8 [B, S, S, C]
        except ImgclfError as error:
            return error  # handed over as it is: torch would wrap an exception of a worker into lines of traceback
        # [B, C, S, S] that is [B, S, S, C] in memory: channels_last at no cost
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return Batch(pixels, torch.from_numpy(self.samples.targets[batch.indices]), torch.from_numpy(batch.indices))

    def images(self, batch: BatchIndices) -> npt.NDArray[np.uint8]:
        """Return uint8 [B, S, S, C], augmented."""
        images = self._fitted(batch)
        if self.augment:
            for row, index in enumerate(batch.indices.tolist()):
                images[row] = self.augment(images[row], self.seed, batch.epoch, index)
        return images

    def _fitted(self, batch: BatchIndices) -> npt.NDArray[np.uint8]:
        """Return a copy of the images: from memory or the cache at once, else decoded one by one."""
        numbers, pixels = batch.numbers, self.samples.pixels
        shape = (self.preprocess.size, self.preprocess.size, self.preprocess.channels)
        if pixels is not None and pixels.shape[1:] == shape:
            return pixels[batch.indices]
        if numbers is None or (numbers < 0).any():
            return read_pixels(self.samples, self.preprocess, batch.indices)
        if self.rows is None or self.rows.token != batch.rows:
            self.rows = MappedRows(Path(batch.rows), shape, "uint8")
        return self.rows.take(numbers)


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
            self._cache.prepare(wanted, self.stop)
        self._batch_indices[:] = [self._locate(self.epoch, batch) for batch in batches[start:]]
        for batch in self._fetched():
            if isinstance(batch, ImgclfError):
                raise batch
            self._batches_yielded += 1
            yield batch

    def images(self, epoch: int, indices: Indices) -> npt.NDArray[np.uint8]:
        """Return some samples' images as an iteration of `epoch` would have them: uint8 [B, S, S, C]."""
        return self._batches.images(self._locate(epoch, indices))

    def _locate(self, epoch: int, indices: Indices) -> BatchIndices:
        epoch = epoch % self.options.views if self.options.views else epoch
        if self._cache is None:
            return BatchIndices(epoch, indices, None, "")
        return BatchIndices(epoch, indices, self._cache.numbers[indices], self._cache.rows.token)

    def _with_features(self, features: Features, batches: list[Indices], wanted: Indices) -> Iterator[Batch]:
        features.prepare(self.epoch, wanted)
        for indices in batches:
            self._batches_yielded += 1
            targets = torch.from_numpy(self.samples.targets[indices])
            yield Batch(None, targets, torch.from_numpy(indices), features.take(self.epoch, indices))

    def _fetched(self) -> Iterator[Batch | ImgclfError]:
        """Yield the inner loader's batches; a lost worker is reported in plain words."""
        try:
            yield from self._loader
        except Exception as error:
            if self._loader.num_workers and (failure := worker_failure(error)):
                raise failure from None
            raise

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


def worker_failure(error: Exception) -> RunError | None:
    """Return the `RunError` for an exception that torch raises when a DataLoader worker is lost, None for any other.

    torch reports it in four ways: two are a bare connection error, and one is raised by a signal handler, at any place of
    the program. None has a type of its own, so that its text must be read.
    """
    text = one_line(error)
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return RunError(
            f"a DataLoader worker hangs ({text}): most likely a file on a drive or network that doesn't answer; "
            "dataset.num_workers=0 stops at that file, a larger dataset.timeout_seconds waits longer"
        )
    lost = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    if not lost and not (isinstance(error, RuntimeError) and "DataLoader worker" in text):
        return None
    return RunError(
        "a DataLoader worker was killed, most likely because memory ran out; pass a smaller dataset.num_workers "
        "(0: none) or dataset.batch_size. `imgclf resume <run folder>` "
        f"continues from the last checkpoint ({text[:100]})"
    )


def _start_worker(worker: int) -> None:
    """Workers share the cores with the training step: with more than one thread each they slow it down."""
    torch.set_num_threads(1)
    leave_group()
