"""Batches in an order that is a function of (seed, epoch), so that any position can be returned to exactly."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imgclf.data.augment import Augment
from imgclf.data.pixel_cache import Cached, Indices, read_pixels
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, ImgclfError, RunError
from imgclf.files.row_store import MappedRows, Rows
from imgclf.preprocess import Preprocess
from imgclf.signals import leave_group

__all__ = ["Batch", "Features", "Loader", "worker_failure"]


class Batch(NamedTuple):
    """`images` uint8 [B, C, S, S], or `features` float32 [B, F] or [B, F, h, w] of a frozen part of the network in their place;
    `targets` int64 [B], `indices` int64 [B] into the loader's samples.
    """

    images: torch.Tensor | None
    targets: torch.Tensor
    indices: torch.Tensor
    features: torch.Tensor | None = None


class Features(Protocol):
    """Where the features of a loader's samples come from, in place of their pictures."""

    def ready(self) -> bool:
        """Whether the part of the network that they come from is still frozen."""

    def prepare(self, epoch: int, indices: Indices) -> None:
        """Compute those of `epoch` that are nowhere yet."""

    def take(self, epoch: int, indices: Indices) -> torch.Tensor:
        """float32 [B, F] or [B, F, h, w]."""


class BatchIndices(NamedTuple):
    """What a batch is made of: `epoch`, `indices` [B]; `numbers` [B] of the cached rows in the file `rows`, or None."""

    epoch: int
    indices: Indices
    numbers: Indices | None
    rows: str


class _Batches(Dataset["Batch | ImgclfError"]):
    """Turns a position into a batch; this is what worker processes run."""

    def __init__(self, samples: Samples, preprocess: Preprocess, augment: Augment | None, seed: int,
                 rows: Rows | None) -> None:  # fmt: skip
        self.samples, self.preprocess, self.augment, self.seed = samples, preprocess, augment, seed
        self.rows = rows

    def __getitem__(self, position: BatchIndices) -> Batch | ImgclfError:
        indices = position.indices
        try:
            images = self.images(position)  # uint8 [B, S, S, C]
        except ImgclfError as error:
            return error  # handed over as it is: torch would wrap one raised in a worker into lines of traceback
        # [B, C, S, S] that is [B, S, S, C] in memory: channels_last at no cost
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            targets=torch.from_numpy(self.samples.targets[indices]),
            indices=torch.from_numpy(indices),
        )

    def images(self, position: BatchIndices) -> npt.NDArray[np.uint8]:
        """uint8 [B, S, S, C], augmented."""
        images = self._fitted(position)
        if self.augment:
            for row, index in enumerate(position.indices.tolist()):
                images[row] = self.augment(images[row], self.seed, position.epoch, index)
        return images

    def _fitted(self, position: BatchIndices) -> npt.NDArray[np.uint8]:
        """A copy of the pictures: from memory or the cache at once, else decoded one by one."""
        indices, numbers, pixels = position.indices, position.numbers, self.samples.pixels
        size = self.preprocess.size
        if pixels is not None and pixels.shape[1:] == (size, size, self.preprocess.channels):
            return pixels[indices]
        if numbers is None or (numbers < 0).any():
            return read_pixels(self.samples, self.preprocess, indices)
        if self.rows is None or self.rows.token != position.rows:
            shape = (size, size, self.preprocess.channels)
            self.rows = MappedRows(Path(position.rows), shape, "uint8")
        return self.rows.take(numbers)


class Loader:
    """An iterable of `Batch` over `samples`; the same batches whatever `num_workers` is.

    `batch_size` is global: with `world` processes each gets every `world`-th sample of a batch. `shuffle`: "epoch" draws a
    new order every epoch, "once" one for all (so that a few batches show more than the first class), "never" keeps that
    of the samples. `views`: augmentation begins anew after so many epochs, None for never. `cache` keeps the pictures;
    `limit` is how many batches an epoch will be asked for, None for all: no others are cached; `stop` ends caching early.
    `features`, while they are ready, come in place of pictures. `state_dict` is {epoch, batch}: batches handed out. A
    picture that can't be read raises its `ImageError`; a worker process that dies, or gives nothing for `timeout_seconds`,
    a `RunError`.
    """

    def __init__(self, samples: Samples, preprocess: Preprocess, *, batch_size: int, seed: int = 0,
                 shuffle: str = "never", augment: Augment | None = None, views: int | None = None,
                 cache: Cached | None = None, limit: int | None = None, stop: Callable[[], bool] = lambda: False,
                 num_workers: int = 0, timeout_seconds: float = 300, rank: int = 0, world: int = 1) -> None:  # fmt: skip
        if batch_size < world:
            raise ConfigError(f"dataset.batch_size={batch_size}: expected at least one picture a process, here {world}")
        self.samples, self.batch_size, self.seed, self.shuffle = samples, batch_size, seed, shuffle
        self.rank, self.world, self.limit = rank, world, limit
        self.augment, self.views = augment, views
        self.features: Features | None = None
        self._cache, self.stop, self.timeout_seconds = cache, stop, timeout_seconds
        self.epoch, self._batches_yielded, self._resume_at = 0, 0, 0
        self.batch_sampler = None  # Lightning asks for one
        self._batch_indices = _BatchIndicesSampler()
        self._batches = _Batches(samples, preprocess, augment, seed, cache.rows if cache else None)
        self._loader = DataLoader(
            self._batches, batch_size=None, sampler=self._batch_indices,
            num_workers=num_workers, persistent_workers=num_workers > 0, pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker if num_workers else None, timeout=timeout_seconds if num_workers else 0,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._batch_bounds()) - 1

    @property
    def sampler(self) -> "Loader":
        """What Lightning calls `set_epoch(epoch)` of at the start of every epoch. No attribute: a loader that refers to
        itself dies by garbage collection, which closes the workers' queues before it tells the workers to go.
        """
        return self

    def close(self) -> None:
        """Stop the worker processes; a later iteration starts new ones."""
        iterator: Any = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order and augmentation the next iteration gives."""
        if epoch != self.epoch:
            self.epoch, self._batches_yielded, self._resume_at = epoch, 0, 0

    def permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order of the samples in `epoch`: int64 [N]."""
        if self.shuffle == "never":
            return np.arange(len(self.samples))
        position = [self.seed, epoch] if self.shuffle == "epoch" else [self.seed]
        return np.random.default_rng(position).permutation(len(self.samples))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for, because Lightning asks for iterators before
        # it sets the epoch, and for more than one of them.
        start, self._resume_at = self._resume_at, 0
        order = self.permutation(self.epoch)
        batches = [order[first:last][self.rank :: self.world] for first, last in pairwise(self._batch_bounds())]
        self._batches_yielded = start
        wanted = np.concatenate([order[:0], *batches[start : self.limit]])
        if self.features is not None and self.features.ready():
            yield from self._with_features(self.features, batches[start:], wanted)
            return
        if self._cache is not None:
            self._cache.prepare(wanted, self.stop)
        self._batch_indices[:] = [self._position(self.epoch, batch) for batch in batches[start:]]
        for batch in self._fetched():
            if isinstance(batch, ImgclfError):
                raise batch
            self._batches_yielded += 1
            yield batch

    def images(self, epoch: int, indices: Indices) -> npt.NDArray[np.uint8]:
        """The pictures of some samples as an iteration of `epoch` would hand them out: uint8 [B, S, S, C]."""
        return self._batches.images(self._position(epoch, indices))

    def _position(self, epoch: int, indices: Indices) -> BatchIndices:
        epoch = epoch % self.views if self.views else epoch
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
        """The inner loader's batches, and what becomes of the workers in plain words."""
        try:
            yield from self._loader
        except Exception as error:
            if self._loader.num_workers and (failure := worker_failure(error)):
                raise failure from None
            raise

    def _batch_bounds(self) -> list[int]:
        """Where one batch ends and the next begins: `batch_size` apart, from 0 to N."""
        cuts = [*range(0, len(self.samples), self.batch_size), len(self.samples)]
        if self.shuffle == "epoch" and len(cuts) > 2 and cuts[-1] - cuts[-2] <= self.world:
            del cuts[-2]  # BatchNorm can't learn from a single picture: it joins the batch before it
        return cuts

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands, as plain numbers."""
        return {"epoch": self.epoch, "batch": self._batches_yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration of that epoch begin behind the batches that were handed out."""
        self.epoch, self._batches_yielded, self._resume_at = (
            int(state["epoch"]),
            int(state["batch"]),
            int(state["batch"]),
        )


class _BatchIndicesSampler(list[BatchIndices], Sampler[BatchIndices]):
    """The sampler of the inner loader: this epoch's positions, which kept workers are given anew each time."""


def worker_failure(error: Exception) -> RunError | None:
    """The `RunError` for an exception that torch raises when a loading process is lost, None for any other.

    torch tells it in four ways; two are a bare connection error, and one is raised by a signal handler, wherever the
    program stands at the moment.
    """
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "DataLoader timed out" in text:
        return RunError(f"a loading process hangs ({text}): most likely a file on a drive or network that doesn't answer; "
                        "dataset.num_workers=0 stops at that file, a larger dataset.timeout_seconds waits longer")  # fmt: skip
    lost = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    if not lost and not (isinstance(error, RuntimeError) and "DataLoader worker" in text):
        return None
    return RunError("a loading process was killed, most likely because memory ran out; pass a smaller dataset.num_workers "
                    "(0: none) or dataset.batch_size. ckpt_path=last with the same hydra.run.dir, or resume=<run folder>, "
                    f"goes on from the last checkpoint ({text[:100]})")  # fmt: skip


def _start_worker(worker: int) -> None:
    """Workers share the cores with the training step: one thread each, or they fight over them."""
    torch.set_num_threads(1)
    leave_group()
