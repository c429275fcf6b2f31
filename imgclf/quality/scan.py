"""Decode every image of a data set once, in parallel, and group the duplicates; numpy alone, and never all pairs.

Exact duplicates have equal pixels. Near duplicates are the same image saved as JPEG (quality 50 and up), at half or a
multiple of its size, or in another format; nearly equal frames of a video count too, a crop or a brighter copy does not.

Candidates come from a hash of 256 signs of differences between neighbouring parts of a thumbnail, with a dead zone, so that
noise in flat areas flips none. Two images are compared if one of the hash's 16 bands, of 16 bits each, is equal; of the many
that share a band (blank images share all), only neighbours in the order of a mean, which differs from band to band. The
cost is bounded by N * BANDS * WINDOW. Thumbnails then confirm or reject each candidate.
"""

import hashlib
import multiprocessing
import signal
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
from imgclf.data.value_range import LITTLE
from imgclf.errors import ImageError, RunError
from imgclf.images import decode, describe, peak
from imgclf.signals import exit_with_parent
from imgclf.threads import available_cpus

__all__ = ["ImageInfo", "Scan", "copies_of", "digest_of", "exact_groups", "near_groups", "scan"]

# Files that a process takes at once.
CHUNK = 64
# Files from which on processes save more time than they take to start.
PARALLEL = 512
# Pixels of a thumbnail: a card's pip still changes a cell by 20 levels and more, JPEG noise by less than 9.
SIDE = 16
BANDS = 16
# Neighbours in a band that an image is compared with.
WINDOW = 32
# Grey levels of 255.
DEAD_ZONE = 4.0
# Grey levels of 255. JPEG at quality 75 of half the size: 600 images of four data sets stay below 2.0 in the mean and below
# 9 in every cell; two cards of one design differ by more than 20 in the cells of a pip.
MEAN_GREY, MAX_GREY, MAX_COLOUR = 2.0, 9.0, 8.0
# Of the images' contrast: low-texture images are alike in every absolute measure.
RELATIVE = 0.25
# Contrast in grey levels below which an image is blank: blank images differ by their colour alone.
BLANK = 1.0
# Pairs that `copies_of` compares at most.
MOST_PAIRS = 4_000_000

Pixels = npt.NDArray[np.uint8]
# [N, SIDE, SIDE, 3], or [N, SIDE, SIDE] of grey.
Thumbnails = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class ImageInfo(NamedTuple):
    """Header of an image file, and `peak`, the largest number of 16-bit grey; of a row of pixels, the format is "row" and the
    mode L or RGB.
    """

    format: str
    mode: str
    width: int
    height: int
    notes: tuple[str, ...] = ()
    peak: int | None = None


# Of n samples: infos or errors, digests of 16 bytes each, thumbnails [n, SIDE, SIDE, 3].
_Part = tuple[list[ImageInfo | str], bytes, Thumbnails]


@dataclass(frozen=True, eq=False)
class Scan:
    """N scanned samples, in order: `infos`, with the error message of an unreadable sample in its place; `digests` uint64
    [N, 2] of the decoded pixels and their shape; `thumbnails` uint8 [N, SIDE, SIDE, 3]; both 0 for unreadable samples.

    A quick scan decodes nothing: its digests are those of the files, its infos have the format alone, and its thumbnails are 0.
    """

    infos: tuple[ImageInfo | str, ...]
    digests: npt.NDArray[np.uint64]
    thumbnails: Thumbnails
    quick: bool = False

    @property
    def readable(self) -> Mask:
        """Whether each sample could be decoded: bool [N]."""
        return np.array([isinstance(info, ImageInfo) for info in self.infos], dtype=bool)


def scan(splits: Sequence[Samples], workers: int | None = None, advance: Callable[[int], object] = int) -> Scan:
    """Scan the samples of all splits, one split after the other; changes no file.

    The result is the same for any number of `workers`: None chooses by cores and files, 0 and 1 start no process.
    `advance` is called with the number of samples done since its last call. Raises `RunError` when a process dies.
    """
    infos: list[ImageInfo | str] = []
    digests: list[bytes] = []
    thumbnails: list[Thumbnails] = []
    for samples in splits:
        parts = _scan_files(samples.items, workers) if samples.pixels is None else _scan_rows(samples.pixels)
        with closing(parts):
            for part_infos, part_digests, part_thumbnails in parts:
                infos += part_infos
                digests.append(part_digests)
                thumbnails.append(part_thumbnails)
                advance(len(part_infos))
    numbers = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    return Scan(tuple(infos), numbers, np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *thumbnails]))


def _scan_files(items: Sequence[str], workers: int | None) -> Generator[_Part, None, None]:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    if workers is None:
        workers = min(16, available_cpus()) if len(items) >= PARALLEL else 0
    if workers <= 1:
        yield from map(_scan_chunk, chunks)
        return
    # spawn, because a fork copies locks that torch's threads hold
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield from pool.map(_scan_chunk, chunks)
    except BrokenProcessPool:
        raise RunError("a decoding process died, perhaps because memory ran out; pass workers=0") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    exit_with_parent()


def _scan_chunk(items: Sequence[str]) -> _Part:
    infos: list[ImageInfo | str] = []
    digests, thumbnails = [], np.zeros((len(items), SIDE, SIDE, 3), np.uint8)
    for row, item in enumerate(items):
        digest = bytes(16)
        try:
            info = describe(item)
            most = peak(item) if info["mode"].startswith("I") else None
            # Dark 16-bit images are compared by the bits that they use: in the highest 8 alone, different ones are equal.
            bits = 16 if most is None or most > LITTLE else max(1, most.bit_length())
            pixels = decode(item, bits=bits)
            digest, thumbnails[row] = digest_of(pixels, bits), _thumbnail(pixels)
            size = info["width"], info["height"]
            infos.append(ImageInfo(info["format"], info["mode"], *size, tuple(info["notes"]), most))
        except ImageError as error:
            infos.append(str(error))
        digests.append(digest)
    return infos, b"".join(digests), thumbnails


def _scan_rows(pixels: Pixels) -> Generator[_Part, None, None]:
    """Scan images in memory: uint8 [N, S, S, C]."""
    height, width, channels = pixels.shape[1:]
    info = ImageInfo("row", "L" if channels == 1 else "RGB", width, height)
    for start in range(0, len(pixels), 1024):
        rows = pixels[start : start + 1024]
        yield [info] * len(rows), b"".join(map(digest_of, rows)), np.stack([_thumbnail(row) for row in rows])


def digest_of(pixels: Pixels, bits: int = 16) -> bytes:
    """16 bytes that only equal pixels in the same shape, decoded with the same `bits`, share."""
    shape, kind = repr(pixels.shape).encode(), b"" if bits == 16 else b"%d" % bits
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, salt=shape[:16], person=kind).digest()


def _thumbnail(pixels: Pixels) -> Pixels:
    """uint8 [SIDE, SIDE, 3]: averages over areas, squashed."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.broadcast_to(small.reshape(SIDE, SIDE, -1), (SIDE, SIDE, 3))


def exact_groups(digests: npt.NDArray[np.uint64], keep: Mask) -> list[Indices]:
    """Groups of two or more samples with equal digests [N, 2], among those to `keep`, each in ascending order."""
    rows = np.flatnonzero(keep)
    _, label = np.unique(digests[rows], axis=0, return_inverse=True)
    return _grouped(rows, label.reshape(-1))


def near_groups(thumbnails: Thumbnails, keep: Mask) -> list[Indices]:
    """Groups of two or more samples, among those to `keep`, that chains of verified near duplicates connect.

    A pair is missed when no band is equal, or when more than WINDOW samples lie between in each equal band.
    """
    rows = np.flatnonzero(keep)
    if not len(rows):
        return []
    flat = np.ascontiguousarray(thumbnails[rows]).reshape(len(rows), -1)
    _, first, inverse = np.unique(flat.view(f"V{flat.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return _grouped(rows, _clusters(thumbnails[rows[first]])[inverse.reshape(-1)])


def copies_of(thumbnails: Thumbnails, originals: Indices, others: Indices) -> Indices:
    """Those of `others` that are verified near duplicates of one of the `originals`; both are of one group.

    All `others` of a group too large to compare all pairs, whose images show next to nothing.
    """
    if len(originals) * len(others) > MOST_PAIRS:
        return others
    pairs = np.stack(np.meshgrid(others, originals, indexing="ij"), axis=-1)  # [O, R, 2]
    return others[verified(thumbnails, pairs.reshape(-1, 2)).reshape(pairs.shape[:2]).any(axis=1)]


def hashes(thumbnails: Thumbnails) -> npt.NDArray[np.uint16]:
    """uint16 [N, BANDS]: the bands of the hash; every band takes its bits from the whole image."""
    grey = _grey(thumbnails).astype(np.float32)
    rows, columns = grey.reshape(-1, 8, 2, 16).mean(axis=2), grey.reshape(-1, 16, 8, 2).mean(axis=3)
    steps = (np.roll(rows, 1, axis=2) - rows, np.roll(columns, 1, axis=1) - columns)  # 128 each
    bits = np.concatenate([step.reshape(-1, 128) for step in steps], axis=1) > DEAD_ZONE
    spread = np.random.default_rng(0).permutation(256)
    return np.ascontiguousarray(np.packbits(bits[:, spread], axis=1)).view(np.uint16)


def verified(thumbnails: Thumbnails, pairs: Indices) -> Mask:
    """Whether each of the pairs [P, 2] are near duplicates by their thumbnails: bool [P]; symmetric."""
    used, position = np.unique(pairs, return_inverse=True)
    grey = _grey(thumbnails[used])
    return _verified(thumbnails[used], grey, _limits(grey), position.reshape(-1, 2))


def _verified(thumbnails: Thumbnails, grey: Thumbnails, limit: Floats, pairs: Indices) -> Mask:
    result = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 4096):
        rows = np.arange(start, min(start + 4096, len(pairs)))
        one, other = pairs[rows].T
        error = np.abs(np.subtract(grey[one], grey[other], dtype=np.int16)).reshape(-1, SIDE**2)
        alike = (error.max(axis=1) <= MAX_GREY) & (error.mean(axis=1) <= np.minimum(limit[one], limit[other]))
        one, other = one[alike], other[alike]
        distance = np.abs(_colour(thumbnails[one]) - _colour(thumbnails[other])).max(axis=(1, 2, 3))
        result[rows[alike]] = distance <= MAX_COLOUR
    return result


def _clusters(thumbnails: Thumbnails) -> Indices:
    """int64 [N]: equal for rows that verified pairs connect. Rows of one cluster are not compared again."""
    grey, count = _grey(thumbnails), len(thumbnails)
    blocks = grey.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 16)
    # Means under orthogonal signs: like those of blocks, they differ by at most the mean absolute difference.
    bands, means, limit, label = hashes(thumbnails), blocks @ _signs() / 16, _limits(grey), np.arange(count)
    for band in range(BANDS):
        order = np.lexsort((means[:, band], bands[:, band]))
        key, first, second = bands[order, band], means[order, band], means[order, (band + 1) % BANDS]
        for step in range(1, min(WINDOW + 1, count)):
            close = (key[step:] == key[:-step]) & (first[step:] - first[:-step] <= MEAN_GREY)
            if not close.any():
                break
            near = np.flatnonzero(close & (np.abs(second[step:] - second[:-step]) <= MEAN_GREY))
            pairs = np.stack([order[near], order[near + step]], axis=1)
            pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
            one, other = pairs.T
            distance = np.abs(blocks[one] - blocks[other]).mean(axis=1)
            pairs = pairs[distance <= np.minimum(limit[one], limit[other])]
            label = _joined(label, pairs[_verified(thumbnails, grey, limit, pairs)])
    return label


def _joined(label: Indices, pairs: Indices) -> Indices:
    """Labels [N] with the clusters that the pairs connect made one, under their least label."""
    while len(pairs):
        one, other = label[pairs].T
        pairs = pairs[one != other]
        np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
        while (label != label[label]).any():
            label = label[label]
    return label


def _signs() -> Floats:
    """[16, BANDS]: patterns of signs, each orthogonal to the others (Hadamard)."""
    signs = np.ones((1, 1), np.float32)
    while len(signs) < BANDS:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs


def _limits(grey: Thumbnails) -> Floats:
    """float [N]: the mean absolute difference that a near duplicate may have, in grey levels."""
    contrast = grey.reshape(-1, SIDE**2).std(axis=1, dtype=np.float32)
    return np.where(contrast < BLANK, BLANK, np.minimum(MEAN_GREY, RELATIVE * contrast)).astype(np.float32)


def _grey(thumbnails: Thumbnails) -> Thumbnails:
    """uint8 [N, SIDE, SIDE], ITU-R 601."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    parts = [thumbnails[start : start + 4096] @ weights for start in range(0, len(thumbnails), 4096)]
    return np.concatenate([np.empty((0, SIDE, SIDE), np.uint8), *(np.rint(part).astype(np.uint8) for part in parts)])


def _colour(thumbnails: Thumbnails) -> Floats:
    """float [N, 4, 4, 3]: colour minus grey; coarse, because JPEG halves the resolution of colour."""
    coarse = thumbnails.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4), dtype=np.float32)
    return coarse - coarse @ np.array([[0.299], [0.587], [0.114]], np.float32)


def _grouped(rows: Indices, label: Indices) -> list[Indices]:
    """Groups of two or more rows with equal labels, in the order of their first rows."""
    _, position, counts = np.unique(label, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[position.reshape(-1)] > 1)
    order = shared[np.argsort(label[shared], kind="stable")]
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    return sorted((rows[group] for group in np.split(order, cuts) if len(group)), key=lambda group: int(group[0]))
