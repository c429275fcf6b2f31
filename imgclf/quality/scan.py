"""Decoding every sample once, in parallel: whether it can be read, what its header says, and how it looks in the small."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from imgclf.data.samples import Samples
from imgclf.errors import ImageError, RunError
from imgclf.images import decode, describe
from imgclf.quality.duplicates import SIDE

__all__ = ["ImageInfo", "Scan", "scan"]

CHUNK = 64  # files a process takes at once
PARALLEL = 512  # files: below that, starting processes takes longer than it saves

Pixels = npt.NDArray[np.uint8]


class ImageInfo(NamedTuple):
    """What `describe` says of a file; of a row of pixels, its format is "row" and its mode L or RGB."""

    format: str
    mode: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scan:
    """What N samples are, in their order: `facts`, or the line that says why one can't be read; `digests` uint64 [N, 2] of
    the decoded pixels and their shape; `thumbnails` uint8 [N, SIDE, SIDE, 3]. Unreadable samples hold zeros.
    """

    facts: tuple[ImageInfo | str, ...]
    digests: npt.NDArray[np.uint64]
    thumbnails: Pixels

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Which samples could be decoded: bool [N]."""
        return np.array([isinstance(fact, ImageInfo) for fact in self.facts], dtype=bool)


def scan(parts: Sequence[Samples], workers: int | None = None, advance: Callable[[int], object] = int) -> Scan:
    """Look at every sample of `parts`, one part behind the other; changes no file.

    `workers` processes (None: by the number of cores and files; 0 and 1: none but this one) give the same result.
    `advance` is called with the number of samples done since. Raises `RunError` when a process dies.
    """
    facts: list[ImageInfo | str] = []
    digests: list[bytes] = []
    small: list[Pixels] = []
    for part in parts:
        looks = _rows(part.pixels) if part.pixels is not None else _files(part.items, workers)
        with closing(looks):
            for some_facts, some_digests, some_small in looks:
                facts += some_facts
                digests.append(some_digests)
                small.append(some_small)
                advance(len(some_facts))
    numbers = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    return Scan(tuple(facts), numbers, np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *small]))


Looks = tuple[list[ImageInfo | str], bytes, Pixels]  # of n samples: facts, 16 bytes each, thumbnails [n, SIDE, SIDE, 3]


def _files(items: Sequence[str], workers: int | None) -> Generator[Looks, None, None]:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(16, cores) if len(items) >= PARALLEL else 0
    if workers <= 1:
        yield from map(_look_at_files, chunks)
        return
    # spawn, because a fork copies locks that torch's threads hold
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_process)
    try:
        yield from pool.map(_look_at_files, chunks)
    except BrokenProcessPool:
        raise RunError("a process that decodes pictures died, perhaps for want of memory; pass workers=0") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Ctrl-C is the parent's affair; when the parent is gone, however it went, the process goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _look_at_files(items: Sequence[str]) -> Looks:
    facts: list[ImageInfo | str] = []
    digests, small = [], np.zeros((len(items), SIDE, SIDE, 3), np.uint8)
    for row, item in enumerate(items):
        digest = bytes(16)
        try:
            pixels = decode(item)
            says = describe(item)
            digest, small[row] = _digest(pixels), _thumbnail(pixels)
            facts.append(ImageInfo(says["format"], says["mode"], says["width"], says["height"], tuple(says["notes"])))
        except ImageError as error:
            facts.append(str(error))
        digests.append(digest)
    return facts, b"".join(digests), small


def _rows(pixels: Pixels) -> Generator[Looks, None, None]:
    """Pictures that are in memory already: uint8 [N, S, S, C]."""
    height, width, channels = pixels.shape[1:]
    fact = ImageInfo("row", "L" if channels == 1 else "RGB", width, height)
    for start in range(0, len(pixels), 1024):
        some = pixels[start : start + 1024]
        small = np.stack([_thumbnail(picture) for picture in some])
        yield [fact] * len(some), b"".join(map(_digest, some)), small


def _digest(pixels: Pixels) -> bytes:
    """16 bytes that only equal pixels in the same shape share."""
    shape = repr(pixels.shape).encode()
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, salt=shape[:16]).digest()


def _thumbnail(pixels: Pixels) -> Pixels:
    """uint8 [SIDE, SIDE, 3]: averages over areas, squashed."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.broadcast_to(small.reshape(SIDE, SIDE, -1), (SIDE, SIDE, 3))
