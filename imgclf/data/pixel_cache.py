"""Pictures decoded once: rows of a store that are made when a run first needs them, and by no run a second time."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgclf.console import progress_bar
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, RunError
from imgclf.files.atomic import cache_folder
from imgclf.files.row_store import DiskStore, MemoryStore, RowStore, key_of
from imgclf.images.decode import DECODER, read_image
from imgclf.images.fitting import fit
from imgclf.preprocess import Preprocess
from imgclf.threads import available_cpus, prefetch_map

__all__ = ["CacheConfig", "Cached", "in_threads", "pixel_cache", "sample_keys"]

CHUNK = 64  # pictures that are decoded, then written: 10 MB of 224 x 224
COMMIT_SECONDS = 20.0  # what a killed process loses at most

Indices = npt.NDArray[np.int64]
Making = Generator[npt.NDArray[Any], None, None]  # rows [n, ...], some at a time


@dataclass(frozen=True)
class CacheConfig:
    """Where rows are kept: `place` is "disk", "ram" or "off"; `budget_gb` is what all of them may take.

    Raises `ConfigError` for values outside these.
    """

    place: str = "disk"
    budget_gb: float = 32.0

    def __post_init__(self) -> None:
        if self.place not in ("disk", "ram", "off"):
            raise ConfigError(f"cache={self.place!r}: expected disk, ram or off")
        if not isinstance(self.budget_gb, (int, float)) or isinstance(self.budget_gb, bool) or not self.budget_gb >= 0:
            raise ConfigError(f"cache_gb={self.budget_gb!r}: expected a number of gigabytes of at least 0")

    def store(self, kind: str, name: str, identity: Sequence[object], shape: tuple[int, ...], dtype: str, capacity: int,
              about: dict[str, Any]) -> RowStore | None:  # fmt: skip
        """The store of `kind` for everything in `identity`; None when nothing is kept. `capacity`: rows in memory."""
        if self.place == "off":
            return None
        budget = self.budget_gb * 1e9
        if self.place == "ram":
            return MemoryStore(shape, dtype, capacity, min(budget, free_memory() / 2))
        digest = key_of(*(repr(part).encode() for part in identity)).hex()[:16]
        folder = cache_folder() / kind / f"{name}-{digest}"
        return DiskStore(folder, shape, dtype, {"kind": kind, "data": name, **about}, budget)


class Cached:
    """N things, each a row of `store` that is made when it is first prepared.

    `keys` names the rows of some indices by what they are made of; `make` makes them, some at a time, in order.
    `numbers` int64 [N] says where each lies in `rows`, -1 where it doesn't.
    """

    def __init__(self, store: RowStore, count: int, what: str, keys: Callable[[Indices], list[bytes]],
                 make: Callable[[Indices], Making]) -> None:  # fmt: skip
        self.store, self.what, self.keys, self.make = store, what, keys, make
        self.numbers: Indices = np.full(count, -1, dtype=np.int64)
        self.rows = store.rows
        self.made = 0
        self._refused = False

    def prepare(self, indices: Indices, stop: Callable[[], bool] = lambda: False) -> None:
        """Make the rows of `indices` that are nowhere yet; ends early, with what is done, when `stop` says so.

        Says in a line what was made, or why nothing can be kept. An error of `make` is raised behind what is done.
        """
        if self._refused or not (self.numbers[indices] < 0).any():
            return
        began, made = time.perf_counter(), self.made
        try:
            with self.store.lock:
                self._fill(*self._find(indices), stop)
        except OSError as error:  # a full disk, a folder that can't be written, a cache that was cleared meanwhile
            self.numbers[:] = -1  # what wasn't committed another process may write over
            self._refuse(error.strerror or str(error))
        if (count := self.made - made) and not made:
            seconds = time.perf_counter() - began
            size = count * self.store.row_bytes / 1e6
            print(f"{self.what}: {count:,} made in {seconds:.1f} s, {size:,.0f} MB", flush=True)

    def _find(self, indices: Indices) -> tuple[Indices, list[bytes]]:
        """Look the rows up; the indices and keys of those that must be made.

        The keys are from before the making: a file that changes meanwhile is then made anew next time, never mistaken.
        """
        wanted = indices[self.numbers[indices] < 0]
        keys = self.keys(wanted)
        numbers = self.store.find(keys)
        if self.store.rows is not self.rows:  # another file: what was known of the old one counts no more
            self.numbers[:] = -1
            self.rows, wanted = self.store.rows, indices
            keys = self.keys(wanted)
            numbers = self.store.find(keys)
        self.numbers[wanted] = numbers
        return wanted[numbers < 0], [key for key, number in zip(keys, numbers.tolist(), strict=True) if number < 0]

    def _fill(self, missing: Indices, keys: list[bytes], stop: Callable[[], bool]) -> None:
        if not len(missing):
            return
        if why := self.store.shortage(len(missing)):
            self._refuse(why)
            return
        committed, done = time.perf_counter(), 0
        try:
            with progress_bar(self.what, len(missing)) as advance, closing(self.make(missing)) as rows:
                for some in rows:
                    part = slice(done, done := done + len(some))
                    self.numbers[missing[part]] = self.store.add(keys[part], some)
                    self.made += len(some)
                    advance(len(some))
                    if time.perf_counter() - committed > COMMIT_SECONDS:
                        self.store.commit()
                        committed = time.perf_counter()
                    if stop():
                        break
        finally:
            self.store.commit()

    def _refuse(self, why: str) -> None:
        self._refused = True
        print(f"{self.what}: not kept, {why}; python -m imgclf.cache lists and clears what is", flush=True)


def pixel_cache(samples: Samples, preprocess: Preprocess, keeping: CacheConfig, name: str, root: Path,
                timeout_seconds: float) -> Cached | None:  # fmt: skip
    """The pictures of `samples` as `preprocess` fits them: rows uint8 [S, S, C]. None where nothing is to be kept: the
    pictures are in memory at that size already, or `keeping` says so.
    """
    side, channels = preprocess.size, preprocess.channels
    shape = (side, side, channels)
    if samples.pixels is not None and samples.pixels.shape[1:] == shape:
        return None
    # Normalisation isn't in the pixels, but a letterbox is filled with the mean.
    fitted = (shape, preprocess.resize, preprocess.interpolation, preprocess.crop_pct,
              preprocess.mean if preprocess.resize == "letterbox" else None)  # fmt: skip
    about = {"root": str(root), "pictures": f"{side} x {side} x {channels}, {preprocess.resize}"}
    store = keeping.store("pixels", name, ("pixels", str(root), fitted, DECODER), shape, "uint8", len(samples), about)
    if store is None:
        return None
    return Cached(store, len(samples), "pixels", lambda indices: sample_keys(samples, root, indices),
                  lambda indices: in_threads(lambda part: read_pixels(samples, preprocess, part), indices, CHUNK,
                                             timeout_seconds))  # fmt: skip


def sample_keys(samples: Samples, root: Path, indices: Indices) -> list[bytes]:
    """What each sample is made of: a file's path below `root`, size and time of change, or the pixels themselves."""
    if samples.pixels is not None:
        shape = repr(samples.pixels.shape[1:]).encode()
        return [key_of(shape, np.ascontiguousarray(samples.pixels[index]).tobytes()) for index in indices]
    keys = []
    for index in indices:
        item = samples.items[index]
        try:
            status = Path(item).stat()
            change = f"{status.st_size} {status.st_mtime_ns}".encode()
        except OSError:
            change = b""  # whoever reads it says so
        keys.append(key_of(os.path.relpath(item, root).encode(errors="surrogateescape"), change))
    return keys


def read_pixels(samples: Samples, preprocess: Preprocess, indices: Indices) -> npt.NDArray[np.uint8]:
    """The pictures of some samples, decoded and fitted: uint8 [n, S, S, C]."""
    images = np.empty((len(indices), preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)
    for row, index in enumerate(indices):
        if samples.pixels is None:
            images[row] = read_image(samples.items[index], preprocess)
        else:
            images[row] = fit(samples.pixels[index], preprocess)
    return images


def in_threads(function: Callable[[Indices], npt.NDArray[Any]], indices: Indices, chunk: int,
               timeout_seconds: float | None = None) -> Making:  # fmt: skip
    """`function` of each `chunk` of `indices`, in order, one chunk a core ahead.

    Raises `RunError` when nothing comes for `timeout_seconds`.
    """
    parts = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
    try:
        yield from prefetch_map(function, parts, available_cpus() + 1, timeout_seconds)
    except TimeoutError:
        raise RunError(f"decoding hangs: nothing came for {timeout_seconds:g} s, most likely because of a file on a drive or "
                       "network that doesn't answer; a larger dataset.timeout_seconds waits longer") from None  # fmt: skip


def free_memory() -> float:
    """Bytes of memory that are free now, infinite where the system doesn't say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
