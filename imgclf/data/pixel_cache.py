"""Images decoded once: rows of a store that are filled when a run first needs them, and shared by later runs."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgclf.config import CacheConfig
from imgclf.console import print_line, print_text, progress_bar
from imgclf.data.samples import Samples
from imgclf.errors import RunError
from imgclf.files.atomic import cache_folder
from imgclf.files.row_store import DiskStore, MemoryStore, Rows, RowStore, key_of
from imgclf.images import __version__ as decoder
from imgclf.images import fit, read_image
from imgclf.preprocess import Preprocess
from imgclf.threads import available_cpus, prefetch_map

__all__ = ["CachedRows", "RowSpec", "in_threads", "open_store", "pixel_cache", "read_pixels", "sample_keys"]

CHUNK = 64  # images that are decoded, then written: 10 MB of 224 x 224
_WORDS = "preparing images", "images prepared"
COMMIT_SECONDS = 20.0  # what a killed process loses at most

Indices = npt.NDArray[np.int64]
RowBatches = Generator[npt.NDArray[Any], None, None]  # rows [n, ...], some at a time


@dataclass(frozen=True)
class RowSpec:
    """What rows hold: their `kind` ("pixels", "features"), the data set's `name`, the `identity` of everything that they depend
    on, `shape` and `dtype` of a row, and `description` for people who list the cache.
    """

    kind: str
    name: str
    identity: Sequence[object]
    shape: tuple[int, ...]
    dtype: str
    description: dict[str, str]


def open_store(cache: CacheConfig, spec: RowSpec, capacity: int) -> RowStore | None:
    """Return the store of the rows; None when nothing is cached. `capacity`: rows in memory, for cache=ram."""
    if cache.kind == "off":
        return None
    budget = cache.budget_gb * 1e9
    if cache.kind == "ram":
        return MemoryStore(spec.shape, spec.dtype, capacity, min(budget, free_memory() / 2))
    digest = key_of(*(repr(part).encode() for part in spec.identity)).hex()[:16]
    folder = cache_folder() / spec.kind / f"{spec.name}-{digest}"
    return DiskStore(folder, spec.shape, spec.dtype, {"kind": spec.kind, "data": spec.name, **spec.description}, budget)


class CachedRows:
    """N items, each a row of `store` that is computed when it is first prepared.

    `words` name the work and its result: "computing features", "features computed". `keys` gives the keys of the rows at
    some indices; `compute` computes rows in order, some at a time. `numbers` int64 [N] holds the position of each row in
    `rows`, -1 where it isn't there, and `checksums` uint32 [N] what its content must have.
    """

    def __init__(
        self,
        store: RowStore,
        count: int,
        words: tuple[str, str],
        keys: Callable[[Indices], list[bytes]],
        compute: Callable[[Indices], RowBatches],
    ) -> None:
        self.store, self.words, self.keys, self.compute = store, words, keys, compute
        self.numbers: Indices = np.full(count, -1, dtype=np.int64)
        self.checksums: npt.NDArray[np.uint32] = np.zeros(count, dtype=np.uint32)
        self.rows: Rows = store.rows
        self.computed = 0
        self._refused = False

    def prepare(self, indices: Indices, stop: Callable[[], bool] = lambda: False) -> None:
        """Compute the rows of `indices` that are missing; ends early, keeping what is done, when `stop` returns true.

        Prints one line with what was computed, or why nothing can be cached. An error of `compute` is raised after what is
        done has been committed.
        """
        if self._refused or not (self.numbers[indices] < 0).any():
            return
        began, before = time.perf_counter(), self.computed
        try:
            with self.store.lock:
                self._fill(*self._missing(indices), stop)
        except OSError as error:  # a full disk, a folder that can't be written, a cache that was cleared meanwhile
            self.numbers[:] = -1  # another process may overwrite what wasn't committed
            self._refuse(error.strerror or str(error))
        if (count := self.computed - before) and not before:
            seconds, size = time.perf_counter() - began, count * self.store.row_bytes / 1e6
            print_text(f"{self.words[1]}: {count:,} in {seconds:.1f} s, {size:,.0f} MB")

    def take(self, indices: Indices) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return the rows of some items [n, ...], and whether each is there and whole: bool [n]."""
        return self.rows.take(self.numbers[indices], self.checksums[indices])

    def forget(self, indices: Indices) -> None:
        """Let the next `prepare` look these rows up again: they were found damaged."""
        self.numbers[indices] = -1

    def _found(self, indices: Indices, numbers: Indices) -> None:
        self.numbers[indices], self.checksums[indices] = numbers, self.store.checksums(numbers)

    def _missing(self, indices: Indices) -> tuple[Indices, list[bytes]]:
        """Look the rows up; return the indices and keys of those that must be computed.

        The keys are taken before the computing: a file that changes meanwhile is decoded again next time, never mistaken.
        """
        wanted = indices[self.numbers[indices] < 0]
        keys = self.keys(wanted)
        numbers = self.store.find(keys)
        if self.store.rows is not self.rows:  # another file: what was known of the old one is void
            self.numbers[:] = -1
            self.rows, wanted = self.store.rows, indices
            keys = self.keys(wanted)
            numbers = self.store.find(keys)
        self._found(wanted, numbers)
        return wanted[numbers < 0], [key for key, number in zip(keys, numbers.tolist(), strict=True) if number < 0]

    def _fill(self, missing: Indices, keys: list[bytes], stop: Callable[[], bool]) -> None:
        if not len(missing):
            return
        if reason := self.store.shortage(len(missing)):
            self._refuse(reason)
            return
        committed, done = time.perf_counter(), 0
        try:
            with (
                progress_bar(f"{self.words[0]}, once", len(missing)) as advance,
                closing(self.compute(missing)) as batches,
            ):
                for rows in batches:
                    part = slice(done, done := done + len(rows))
                    self._found(missing[part], self.store.add(keys[part], rows))
                    self.computed += len(rows)
                    advance(len(rows))
                    if time.perf_counter() - committed > COMMIT_SECONDS:
                        self.store.commit()
                        committed = time.perf_counter()
                    if stop():
                        break
        finally:
            self.store.commit()

    def _refuse(self, reason: str) -> None:
        self._refused = True
        print_line(f"{self.words[1]}, but not cached: {reason}; `imgclf cache` lists and clears the cache")


def pixel_cache(
    samples: Samples, preprocess: Preprocess, cache: CacheConfig, dataset: tuple[str, Path], timeout_seconds: float
) -> CachedRows | None:
    """Return the images of `samples`, fitted by `preprocess`, as cached rows uint8 [S, S, C]; `dataset` is its name and root.

    None where nothing is cached: the images are in memory at that size already, or `cache` is off.
    """
    (name, root), shape = dataset, (preprocess.size, preprocess.size, preprocess.channels)
    if samples.pixels is not None and samples.pixels.shape[1:] == shape:
        return None
    # Normalisation isn't in the pixels, but a letterbox is filled with the mean.
    mean = preprocess.mean if preprocess.resize == "letterbox" else None
    fitted = (shape, preprocess.resize, preprocess.interpolation, preprocess.crop_pct, mean, preprocess.bits)
    description = {"root": str(root), "images": f"{' x '.join(map(str, shape))}, {preprocess.resize}"}
    spec = RowSpec("pixels", name, ("pixels", str(root), fitted, decoder), shape, "uint8", description)
    store = open_store(cache, spec, len(samples))
    if store is None:
        return None

    def compute(indices: Indices) -> RowBatches:
        return in_threads(lambda part: read_pixels(samples, preprocess, part), indices, CHUNK, timeout_seconds)

    return CachedRows(store, len(samples), _WORDS, lambda indices: sample_keys(samples, root, indices), compute)


def sample_keys(samples: Samples, root: Path, indices: Indices) -> list[bytes]:
    """Return a key per sample: of a file's path below `root`, size and time of change, or of the pixels themselves."""
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
            change = b""  # its reader reports it
        keys.append(key_of(os.path.relpath(item, root).encode(errors="surrogateescape"), change))
    return keys


def read_pixels(samples: Samples, preprocess: Preprocess, indices: Indices) -> npt.NDArray[np.uint8]:
    """Return the images of some samples, decoded and fitted: uint8 [n, S, S, C]."""
    images = np.empty((len(indices), preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)
    for row, index in enumerate(indices):
        if samples.pixels is None:
            images[row] = read_image(samples.items[index], preprocess)
        else:
            images[row] = fit(samples.pixels[index], preprocess)
    return images


def in_threads(
    function: Callable[[Indices], npt.NDArray[Any]], indices: Indices, chunk: int, timeout_seconds: float | None = None
) -> RowBatches:
    """Yield `function` of each `chunk` of `indices`, in order, one chunk per core ahead.

    Raises `RunError` when no result arrives for `timeout_seconds`.
    """
    parts = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
    try:
        yield from prefetch_map(function, parts, available_cpus() + 1, timeout_seconds)
    except TimeoutError:
        raise RunError(
            f"decoding hangs: no image for {timeout_seconds:g} s, most likely because a drive or network doesn't answer; "
            "a larger dataset.timeout_seconds waits longer"
        ) from None


def free_memory() -> float:
    """Return the bytes of free memory, infinite where the system doesn't tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
