"""Findings and notes on a data set: from its samples and their scan to the content of check.json.

A finding asks for action, a note informs. `KINDS` lists the findings with what `dataset.exclude=check.json` does about each.
Validation and test images are excluded only if they can't be read or have two labels: the data that accuracy is measured on
should not change without need. Near duplicates are searched among the images that exact duplicates leave.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from imgclf.data.layouts import IMAGE_SUFFIXES, list_images
from imgclf.data.manifest import FORMAT, file_size, relative_paths
from imgclf.data.samples import Samples
from imgclf.quality.scan import ImageInfo, Indices, Scan, copies_of, exact_groups, near_groups

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["KINDS", "Finding", "Group", "ImageEntry", "Report", "examine", "quick_notes"]

# Kind of a finding -> its title, and what happens to the images.
KINDS = {
    "unreadable": ("Unreadable files", "excluded"),
    "stray": ("Unused files in class folders", "not excluded, because they aren't read: move or remove them"),
    "labels": ("Duplicates with different labels", "all are excluded"),
    "leaks": ("Duplicates in several splits", "the copies in train are excluded"),
    "repeats": ("Duplicates within one split", "all but the first in train are excluded"),
    "near_leaks": ("Near duplicates in several splits", "the copies in train are excluded"),
    "near_labels": ("Near duplicates with different labels", "not excluded: look at them"),
    "near": ("Near duplicates within one split", "not excluded"),
}
# Training images below which a class is too small to learn.
TINY = 10
# Ratio of the largest to the smallest class that is worth a note.
IMBALANCE = 5
# Share of all files from which on a size or mode is the usual one.
COMMON = 0.5
# Files that a file manager leaves behind.
LITTER = frozenset({"thumbs.db", "desktop.ini"})
JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".mpo"}
SUFFIXES = {"JPEG": JPEG_SUFFIXES, "MPO": JPEG_SUFFIXES, "PNG": {".png"}, "WEBP": {".webp"}, "GIF": {".gif"}}
SUFFIXES |= {"BMP": {".bmp"}, "TIFF": {".tif", ".tiff"}}

# An image of a group; "excluded" only where true.
ImageEntry = TypedDict("ImageEntry", {"split": str, "path": str, "class": str, "excluded": bool}, total=False)


class Group(TypedDict, total=False):
    """Images that are duplicates of each other, or a single file with a message."""

    images: list[ImageEntry]
    message: str


class Finding(TypedDict):
    """All groups of one kind; `images` and `excluded` count their images."""

    kind: str
    title: str
    action: str
    images: int
    excluded: int
    groups: list[Group]


class Note(TypedDict, total=False):
    """One line, with the paths of all files that it is about."""

    kind: str
    text: str
    files: list[str]


class FileSummary(TypedDict):
    """Numbers of images per format, mode and size (the 20 most frequent), among the readable ones."""

    images: int
    readable: int
    formats: dict[str, int]
    modes: dict[str, int]
    different_sizes: int
    sizes: list[dict[str, int]]


class Report(TypedDict):
    """The content of check.json."""

    format: str
    name: str
    root: str
    classes: list[str]
    clean: bool
    counts: dict[str, dict[str, int]]
    expected: dict[str, int] | None
    files: FileSummary
    findings: list[Finding]
    near: list[Finding]
    notes: list[Note]
    exclude: list[dict[str, str]]


def examine(data: "ImageDataModule", scan: Scan) -> Report:
    """All findings and notes on `data`; `scan` holds the samples of its splits, one split after the other."""
    splits, names = data.samples, list(data.samples)
    split_of = np.repeat(np.arange(len(splits)), [len(samples) for samples in splits.values()])
    targets = np.concatenate([samples.targets for samples in splits.values()])
    items = [item for samples in splits.values() for item in samples.items]
    paths = relative_paths(items, data.root)
    groups, excluded = _group(scan, split_of, targets, names.index("train"))

    def describe_image(row: int) -> ImageEntry:
        entry: ImageEntry = {"split": names[split_of[row]], "path": paths[row], "class": data.classes[targets[row]]}
        return {**entry, "excluded": True} if row in excluded else entry

    def describe_group(rows: Indices) -> Group:
        images, info = [describe_image(row) for row in rows], scan.infos[rows[0]]
        if isinstance(info, ImageInfo):
            return {"images": images}
        return {"images": images, "message": info.removeprefix(f"{items[rows[0]]}: ")}

    described = {kind: [describe_group(rows) for rows in groups[kind]] for kind in KINDS}
    described["stray"] = list(_stray_files(splits, data.root))
    findings = [_finding(kind, described[kind]) for kind in KINDS if kind != "near" and described[kind]]
    notes: list[Note] = [{"kind": "counts", "text": text} for text in data.notes]
    notes += [*_class_notes(splits), *_file_notes(scan, paths)]
    counts = {split: samples.counts().tolist() for split, samples in splits.items()}
    return {
        "format": FORMAT,
        "name": data.name,
        "root": str(data.root),
        "classes": list(data.classes),
        "clean": not findings,
        "counts": {split: dict(zip(data.classes, values, strict=True)) for split, values in counts.items()},
        "expected": _expected(data),
        "files": _summarise_files(scan),
        "findings": findings,
        "near": [_finding("near", described["near"])] if described["near"] else [],
        "notes": list({note["text"]: note for note in notes}.values()),
        "exclude": [
            {"split": names[split_of[row]], "path": paths[row], "why": excluded[row]} for row in sorted(excluded)
        ],
    }


def quick_notes(data: "ImageDataModule") -> list[str]:
    """Notes that need no decoding, one line each: small and unequal classes, empty files, number and size of the files."""
    notes = [note["text"] for note in _class_notes(data.samples)]
    files = [item for samples in data.samples.values() if samples.pixels is None for item in samples.items]
    sizes = [max(0, file_size(item)) for item in files]
    if empty := [item for item, size in zip(files, sizes, strict=True) if not size]:
        notes.append(f"{len(empty):,} files are empty or missing: {_first(empty)}; `imgclf check` lists all bad files")
    if files:
        notes.append(f"{len(files):,} image files, {sum(sizes) / 2**20:,.1f} MiB")
    return notes


def _group(
    scan: Scan, split_of: Indices, targets: Indices, train: int
) -> tuple[dict[str, list[Indices]], dict[int, str]]:
    """Rows of the groups of each kind, and {excluded row: kind}."""
    readable, excluded = scan.readable, dict[int, str]()
    groups: dict[str, list[Indices]] = {kind: [] for kind in KINDS}

    def add(kind: str, group: Indices, drop: Indices) -> None:
        groups[kind].append(group)
        for row in drop:
            excluded.setdefault(int(row), kind)

    for row in np.flatnonzero(~readable):
        add("unreadable", np.array([row]), np.array([row]))
    for group in exact_groups(scan.digests, readable):
        in_train = group[split_of[group] == train]
        if len(set(targets[group])) > 1:
            add("labels", group, group)
        elif len(set(split_of[group])) > 1:
            add("leaks", group, in_train)
        else:
            add("repeats", group, in_train[1:])
    left = readable.copy()
    left[list(excluded)] = False
    for group in near_groups(scan.thumbnails, left):
        if len(np.unique(scan.digests[group], axis=0)) == 1:
            continue  # exact duplicates of which none was excluded
        in_train, held_out = group[split_of[group] == train], group[split_of[group] != train]
        copies = copies_of(scan.thumbnails, held_out, in_train)
        if len(copies) or len(set(split_of[held_out])) > 1:
            add("near_leaks", group, copies)
        else:
            add("near_labels" if len(set(targets[group])) > 1 else "near", group, copies)
    return groups, excluded


def _finding(kind: str, groups: list[Group]) -> Finding:
    title, action = KINDS[kind]
    images = [image for group in groups for image in group["images"]]
    excluded = sum(image.get("excluded", False) for image in images)
    return Finding(kind=kind, title=title, action=action, images=len(images), excluded=excluded, groups=groups)


def _expected(data: "ImageDataModule") -> dict[str, int] | None:
    counts = data.expected.get(len(data.classes)) if data.check_counts else None
    return dict(zip(data.samples, counts, strict=True)) if counts else None


def _class_notes(splits: Mapping[str, Samples]) -> Iterator[Note]:
    """Notes on classes with few training images, and on classes of very different sizes."""
    classes, counts = splits["train"].classes, splits["train"].counts()
    if tiny := [f"{classes[target]} ({counts[target]})" for target in np.flatnonzero(counts < TINY)]:
        text = f"{len(tiny)} of {len(counts)} classes have fewer than {TINY} training images: {_first(tiny)}"
        yield {"kind": "tiny", "text": text}
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= IMBALANCE * counts[least]:
        sizes = f"{classes[most]} has {counts[most]:,} training images, {classes[least]} {counts[least]:,}"
        yield {"kind": "imbalance", "text": f"unequal classes: {sizes}; loss.class_weights=balanced compensates"}


def _summarise_files(scan: Scan) -> FileSummary:
    infos = [info for info in scan.infos if isinstance(info, ImageInfo)]
    sizes = Counter((info.width, info.height) for info in infos)
    return {
        "images": len(scan.infos),
        "readable": len(infos),
        "formats": dict(Counter(info.format for info in infos).most_common()),
        "modes": dict(Counter(info.mode for info in infos).most_common()),
        "different_sizes": len(sizes),
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in sizes.most_common(20)],
    }


def _file_notes(scan: Scan, paths: Sequence[str]) -> Iterator[Note]:
    """Notes on unusual sizes and modes, wrong suffixes, images of one colour, and on what decoding changes."""
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    usual_size, usual_mode = _usual(scan, _size_of), _usual(scan, lambda info: info.mode)
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


def _usual(scan: Scan, key: Callable[[ImageInfo], str]) -> str | None:
    """The value of `key` that most readable images have; None if no value is that common."""
    values = Counter(key(info) for info in scan.infos if isinstance(info, ImageInfo))
    return next((value for value, count in values.most_common(1) if count >= COMMON * values.total()), None)


def _size_of(info: ImageInfo) -> str:
    return f"{info.width} x {info.height}"


def _stray_files(splits: Mapping[str, Samples], root: Path) -> Iterator[Group]:
    """Files and folders in class folders that are not read; hidden ones are ignored."""
    seen = set()
    for split, samples in splits.items():
        if samples.pixels is not None:
            continue
        for item, target in zip(samples.items, samples.targets.tolist(), strict=True):
            folder, name = item.rpartition(os.sep)[0], samples.classes[target]
            if folder in seen or folder.rpartition(os.sep)[2] != name:
                continue
            seen.add(folder)
            with os.scandir(folder) as iterator:
                entries = sorted((e for e in iterator if not e.name.startswith(".")), key=lambda e: e.name)
            for entry in entries:
                if message := _why_unused(entry):
                    path = relative_paths([entry.path], root)[0]
                    yield {"images": [{"split": split, "path": path, "class": name}], "message": message}


def _why_unused(entry: "os.DirEntry[str]") -> str | None:
    if entry.is_dir() and entry.name != "__MACOSX" and list_images(Path(entry.path)):
        return "a folder with images inside a class folder"
    is_read = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES or entry.name.lower() in LITTER
    return "no suffix of an image file" if entry.is_file() and not is_read else None


def _first(names: Sequence[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
