"""What a data set shows without being decoded: sizes, first bytes and equal files; and a few images of each class to look at."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgclf.data.manifest import relative_paths
from imgclf.data.samples import Samples
from imgclf.data.show import draw_readable
from imgclf.errors import ImageError
from imgclf.images import read_start
from imgclf.quality.scan import SIDE, ImageInfo, Scan, digest_of
from imgclf.report.page import shrunk

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["ClassSamples", "draw_samples", "quick_scan"]

# Up to so many classes, so many images of each, and their longer side in pixels.
SHOWN = ((20, 8, 96), (60, 8, 64), (150, 4, 64), (400, 2, 64), (1000, 1, 64))

Pixels = NDArray[np.uint8]


class ClassSamples(NamedTuple):
    """Training images of the first classes: per class a list of (path, pixels uint8 [H, W, 3 or 1] of up to `side`)."""

    rows: list[list[tuple[str, Pixels]]]
    side: int


def quick_scan(splits: Sequence[Samples], advance: Callable[[int], object] = int) -> Scan:
    """Scan the samples of all splits without decoding: the first bytes of each file, and all bytes of those that may be equal."""
    infos: list[ImageInfo | str] = []
    digests: list[bytes] = []
    for samples in splits:
        if samples.pixels is None:
            scanned = _scan_files(samples.items, advance)
        else:
            height, width, channels = samples.pixels.shape[1:]
            info: ImageInfo | str = ImageInfo("row", "L" if channels == 1 else "RGB", width, height)
            scanned = [(info, digest_of(row)) for row in samples.pixels]
            advance(len(samples))
        infos += [info for info, _ in scanned]
        digests += [digest for _, digest in scanned]
    # Files of several splits are compared too, so that only now is known which ones share their first bytes.
    items = [item for samples in splits for item in samples.items]
    shared = {digest for digest, count in Counter(digests).items() if count > 1 and any(digest)}
    in_memory = np.repeat([samples.pixels is not None for samples in splits], [len(samples) for samples in splits])
    for row, digest in enumerate(digests):
        if digest in shared and not in_memory[row]:
            digests[row] = _digest_file(items[row])
    numbers = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    return Scan(tuple(infos), numbers, np.zeros((len(infos), SIDE, SIDE, 3), np.uint8), quick=True)


def _scan_files(items: Sequence[str], advance: Callable[[int], object]) -> list[tuple[ImageInfo | str, bytes]]:
    """Header and digest of the first bytes and the size of each file; an error and zeros where it can't be an image."""
    scanned: list[tuple[ImageInfo | str, bytes]] = []
    for item in items:
        try:
            start = read_start(item)
            digest = hashlib.blake2b(start.data, digest_size=16, salt=start.size.to_bytes(16, "little"))
            scanned.append((ImageInfo(start.format, "", 0, 0), digest.digest()))
        except ImageError as error:
            scanned.append((str(error), bytes(16)))
        advance(1)
    return scanned


def _digest_file(item: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with Path(item).open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.digest()


def draw_samples(data: "ImageDataModule", scan: Scan) -> tuple[ClassSamples, Scan]:
    """Draw a few training images of each class by the data's seed, and return them by class, with the scan.

    Instead of an image that turns out to be unreadable another one is drawn, and the scan returned names it.
    """
    train, infos = data.samples["train"], list(scan.infos)  # the rows of train come first in a scan
    classes, count, side = next((limits for limits in SHOWN if len(train.classes) <= limits[0]), SHOWN[-1])
    rows: list[list[tuple[str, Pixels]]] = []
    for target in range(min(len(train.classes), classes)):
        members = np.flatnonzero(train.targets == target)
        order = np.random.default_rng([data.seed, target]).permutation(members).tolist()
        candidates = [row for row in order if isinstance(infos[row], ImageInfo)]
        images, errors = draw_readable(lambda row: shrunk(data.image("train", row), side), candidates, count)
        rows.append([(relative_paths([train.items[row]], data.root)[0], image) for row, image in images.items()])
        for row, reason in errors.items():
            infos[row] = reason
    return ClassSamples(rows, side), replace(scan, infos=tuple(infos))
