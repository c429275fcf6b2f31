"""What a user should know of a data set, but need not act upon: small and unequal classes, odd sizes, modes and files."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgclf.data.layouts import IMAGE_SUFFIXES, list_images
from imgclf.data.manifest import file_size
from imgclf.data.samples import Samples
from imgclf.quality.scan import ImageInfo, Scan

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["IMBALANCE", "TINY", "class_notes", "describe_files", "file_notes", "quick_notes", "stray_files"]

TINY = 10  # training pictures: below it, a class is seen too seldom to be learned
IMBALANCE = 5  # times as many training pictures in the largest class as in the smallest
COMMON = 0.5  # of all files: a size or mode that so many share makes the others odd
LITTER = frozenset({"thumbs.db", "desktop.ini"})  # what a file manager leaves behind
_SUFFIXES = {"JPEG": {".jpg", ".jpeg", ".jpe", ".mpo"}, "MPO": {".jpg", ".jpeg", ".jpe", ".mpo"}, "PNG": {".png"},
             "WEBP": {".webp"}, "GIF": {".gif"}, "BMP": {".bmp"}, "TIFF": {".tif", ".tiff"}}  # fmt: skip

Note = dict[str, Any]  # kind, text, and all the files where it is of files


def quick_notes(data: "ImageDataModule") -> list[str]:
    """What can be said without opening a picture, a line each: small and unequal classes, empty files, how many files."""
    notes = [note["text"] for note in class_notes(data.samples)]
    files = [item for samples in data.samples.values() if samples.pixels is None for item in samples.items]
    sizes = [max(0, file_size(item)) for item in files]
    if empty := [item for item, size in zip(files, sizes, strict=True) if not size]:
        notes.append(f"{len(empty):,} files are empty or gone: {_some(empty)}; `python -m imgclf.check` lists what else "
                     "can't be read")  # fmt: skip
    if files:
        notes.append(f"{len(files):,} picture files, {sum(sizes) / 2**20:,.1f} MiB")
    return notes


def class_notes(splits: Mapping[str, Samples]) -> list[Note]:
    """Classes with few training pictures, and classes with many times as many as others."""
    train, notes = splits["train"], []
    counts = train.counts()
    if tiny := [f"{train.classes[target]} ({counts[target]})" for target in np.flatnonzero(counts < TINY)]:
        text = f"{len(tiny)} of {len(counts)} classes have fewer than {TINY} training pictures: {_some(tiny)}"
        notes.append({"kind": "tiny", "text": text})
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= IMBALANCE * counts[least]:
        text = (f"unequal classes: {train.classes[most]} has {counts[most]:,} training pictures, {train.classes[least]} "
                f"{counts[least]:,}; loss.class_weights=balanced makes up for it")  # fmt: skip
        notes.append({"kind": "imbalance", "text": text})
    return notes


def describe_files(scan: Scan) -> dict[str, Any]:
    """How many pictures have which format, mode and size (the commonest 20), of those that can be read."""
    facts = [fact for fact in scan.facts if isinstance(fact, ImageInfo)]
    sizes = Counter((fact.width, fact.height) for fact in facts)
    return {
        "pictures": len(scan.facts), "readable": len(facts),
        "formats": dict(Counter(fact.format for fact in facts).most_common()),
        "modes": dict(Counter(fact.mode for fact in facts).most_common()), "different_sizes": len(sizes),
        "sizes": [{"width": w, "height": h, "pictures": n} for (w, h), n in sizes.most_common(20)],
    }  # fmt: skip


def file_notes(scan: Scan, paths: Sequence[str]) -> list[Note]:
    """Sizes and modes unlike the others', what decoding changes, names that belie the content, pictures of one colour."""
    odd: dict[tuple[str, str], list[str]] = defaultdict(list)
    usual = {"size": _usual(scan, _size_of), "mode": _usual(scan, lambda fact: fact.mode)}
    flat = np.ptp(scan.thumbnails.reshape(len(paths), -1, 3), axis=1).max(axis=1, initial=0) == 0
    for row, (fact, path) in enumerate(zip(scan.facts, paths, strict=True)):
        if not isinstance(fact, ImageInfo):
            continue
        if usual["size"] not in (None, _size_of(fact)):
            odd["size", f"not {usual['size']} pixels as most are"].append(f"{path} ({_size_of(fact)})")
        if usual["mode"] not in (None, fact.mode):
            odd["mode", f"not {usual['mode']} as most are"].append(f"{path} ({fact.mode})")
        if fact.format in _SUFFIXES and Path(path).suffix.lower() not in _SUFFIXES[fact.format]:
            odd["suffix", f"called otherwise, but {fact.format} inside (read by content)"].append(path)
        if flat[row]:
            odd["blank", "of a single colour"].append(path)
        for note in fact.notes:
            odd["decoding", note].append(path)
    return [{"kind": kind, "text": f"{len(some):,} of {len(paths):,} pictures: {what}: {_some(some)}", "files": some}
            for (kind, what), some in sorted(odd.items())]  # fmt: skip


def stray_files(splits: Mapping[str, Samples]) -> Iterator[tuple[str, str, str, str]]:
    """(split, path, class, why) of what lies in a class folder and isn't read; hidden files don't count."""
    seen = set()
    for split, samples in splits.items():
        if samples.pixels is not None:
            continue
        for item, target in zip(samples.items, samples.targets.tolist(), strict=True):
            folder, name = item.rpartition(os.sep)[0], samples.classes[target]
            if folder in seen or folder.rpartition(os.sep)[2] != name:
                continue
            seen.add(folder)
            with os.scandir(folder) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
            for entry in entries:
                if entry.is_dir() and entry.name != "__MACOSX" and list_images(Path(entry.path)):
                    yield split, entry.path, name, "a folder with pictures inside a class folder"
                elif entry.is_file() and not _read_or_litter(entry.name):
                    yield split, entry.path, name, "not called like a picture"


def _read_or_litter(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES or name.lower() in LITTER


def _usual(scan: Scan, key: Any) -> str | None:
    values = Counter(key(fact) for fact in scan.facts if isinstance(fact, ImageInfo))
    return next((value for value, count in values.most_common(1) if count >= COMMON * values.total()), None)


def _size_of(fact: ImageInfo) -> str:
    return f"{fact.width} x {fact.height}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
