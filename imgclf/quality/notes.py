"""Notes on a data set, which inform and ask for no action: its classes, and how its files differ from each other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from imgclf.data.manifest import file_size
from imgclf.data.samples import Samples
from imgclf.data.value_range import sampled_range
from imgclf.images import SUFFIXES
from imgclf.quality.scan import ImageInfo, Scan

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["TINY", "Note", "class_notes", "file_notes", "quick_notes", "range_notes"]

# Training images below which a class is too small to learn.
TINY = 10
# Ratio of the largest to the smallest class that is worth a note.
IMBALANCE = 5
# Share of all files from which on a size or mode is the usual one.
COMMON = 0.5


class Note(TypedDict, total=False):
    """One line, with the paths of all files that it is about."""

    kind: str
    text: str
    files: list[str]


def class_notes(splits: Mapping[str, Samples]) -> Iterator[Note]:
    """Notes on classes with few training images, and on classes of very different sizes."""
    classes, counts = splits["train"].classes, splits["train"].counts()
    if tiny := [f"{classes[target]} ({counts[target]})" for target in np.flatnonzero(counts < TINY)]:
        text = f"{len(tiny)} of {len(counts)} classes have fewer than {TINY} training images: {_first(tiny)}"
        yield {"kind": "tiny", "text": text}
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= IMBALANCE * counts[least]:
        sizes = f"{classes[most]} has {counts[most]:,} training images, {classes[least]} {counts[least]:,}"
        yield {"kind": "imbalance", "text": f"unequal classes: {sizes}; loss.class_weights=balanced compensates"}


def file_notes(scan: Scan, paths: Sequence[str]) -> Iterator[Note]:
    """Notes on unusual sizes and modes, wrong suffixes, images of one colour, and on what decoding changes."""
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    usual_size, usual_mode = _usual(scan, _size_of), _usual(scan, lambda info: info.mode)
    flat = np.zeros(len(paths), dtype=bool)
    if not scan.quick:
        flat = np.ptp(scan.thumbnails.reshape(len(paths), -1, 3), axis=1).max(axis=1, initial=0) == 0
    for row, (info, path) in enumerate(zip(scan.infos, paths, strict=True)):
        if not isinstance(info, ImageInfo):
            continue
        if usual_size not in (None, _size_of(info)):
            files["size", f"not of the usual {usual_size} pixels"].append(f"{path} ({_size_of(info)})")
        if usual_mode not in (None, info.mode):
            files["mode", f"not of the usual mode {usual_mode}"].append(f"{path} ({info.mode})")
        if info.format in SUFFIXES and Path(path).suffix.lower() not in SUFFIXES[info.format]:
            files["suffix", f"{info.format} by content, but not by name (decoded by content)"].append(path)
        if flat[row]:
            files["blank", "of a single colour"].append(path)
        for note in info.notes:
            files["decoding", note].append(path)
    for (kind, what), some in sorted(files.items()):
        text = f"{len(some):,} of {len(paths):,} images: {what}: {_first(some)}"
        yield {"kind": kind, "text": text, "files": some}


def range_notes(data: "ImageDataModule") -> Iterator[Note]:
    """A note on 16-bit training images that use little of their range, by a few of them."""
    if data.settings.range == "full" and (text := sampled_range(data.samples["train"])):
        yield {"kind": "range", "text": text}


def _usual(scan: Scan, key: Callable[[ImageInfo], str]) -> str | None:
    """The value of `key` that most readable images have; None if no value is that common."""
    values = Counter(key(info) for info in scan.infos if isinstance(info, ImageInfo))
    return next((value for value, count in values.most_common(1) if count >= COMMON * values.total()), None)


def _size_of(info: ImageInfo) -> str:
    return f"{info.width} x {info.height}"


def _first(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def quick_notes(data: "ImageDataModule") -> list[str]:
    """Notes that need next to no decoding, one line each: small and unequal classes, the range of 16-bit images, empty files,
    number and size of the files.
    """
    notes = [note["text"] for note in (*class_notes(data.samples), *range_notes(data))]
    files = [item for samples in data.samples.values() if samples.pixels is None for item in samples.items]
    sizes = [max(0, file_size(item)) for item in files]
    if empty := [item for item, size in zip(files, sizes, strict=True) if not size]:
        text = f"{len(empty):,} files are empty or missing: {_first(empty)}"
        notes.append(f"{text}; `imgclf check` lists all bad files")
    if files:
        notes.append(f"{len(files):,} image files, {sum(sizes) / 2**20:,.1f} MiB")
    return notes
