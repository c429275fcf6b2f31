"""Findings and notes on a data set: from its samples and their scan to the content of check.json.

A finding asks for action, a note informs. `KINDS` lists the findings with what `dataset.exclude=check.json` does about each.
Validation and test images are excluded only if they can't be read or have two labels: the data that accuracy is measured on
should not change without need. Near duplicates are searched among the images that exact duplicates leave.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from imgclf.data.layouts import absent_classes
from imgclf.data.manifest import FORMAT, read_exclusion, relative_paths
from imgclf.data.unused import what_is_there
from imgclf.data.value_range import describe_range
from imgclf.quality.notes import Note, class_notes, file_notes, range_notes
from imgclf.quality.scan import ImageInfo, Indices, Scan, copies_of, exact_groups, near_groups

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = [
    "EARLIER",
    "KINDS",
    "FileSummary",
    "Finding",
    "Group",
    "ImageEntry",
    "Report",
    "data_key",
    "examine",
    "verdict",
]

# Kind of a finding -> its title, what happens to the images, and what a verdict says of it.
KINDS = {
    "unreadable": ("Unreadable files", "excluded", "{number} file{s} can't be read"),
    "empty": (
        "Classes without training images",
        "nothing to exclude: add images, remove the folder, or leave the class out of dataset.classes",
        "{number} class{es} without training images",
    ),
    "stray": (
        "Unused files in class folders",
        "not excluded, because they aren't read: move or remove them",
        "{number} unused file{s} in class folders",
    ),
    "labels": ("Duplicates with different labels", "all are excluded", "{number} {sets} with different labels"),
    "leaks": ("Duplicates in several splits", "the copies in train are excluded", "{number} {sets} across splits"),
    "repeats": (
        "Duplicates within one split",
        "all but the first in train are excluded",
        "{number} {sets} within one split",
    ),
    "near_leaks": (
        "Near duplicates in several splits",
        "the copies in train are excluded",
        "{number} {sets} across splits",
    ),
    "near_labels": (
        "Near duplicates with different labels",
        "not excluded: look at them",
        "{number} {sets} with different labels",
    ),
    "range": (
        "16-bit values that use little of their range",
        "not excluded: dataset.range=auto makes the largest value white",
        "16-bit images that use little of their range",
    ),
    "near": ("Near duplicates within one split", "not excluded", "{number} {sets} within one split"),
}
# Why an image is excluded that was before this check.
EARLIER = "dataset.exclude"
# What `--quick` leaves out.
NOT_CHECKED = (
    "whether files are damaged behind their first bytes",
    "near duplicates, and equal images in unequal files",
    "sizes and colour modes",
)
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


class FileSummary(TypedDict):
    """Numbers of images per format, mode and size (the 20 most frequent), among the readable ones."""

    images: int
    readable: int
    formats: dict[str, int]
    modes: dict[str, int]
    different_sizes: int
    sizes: list[dict[str, int]]


class Report(TypedDict):
    """The content of check.json; `clean` is null after a quick check that found nothing, because that proves nothing. All checks
    of the same unchanged files have the same `key`.
    """

    format: str
    key: str
    name: str
    root: str
    classes: list[str]
    quick: bool
    not_checked: list[str]
    clean: bool | None
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
    described["empty"] = [_without_images(data, name) for name in absent_classes(splits["train"])]
    described["stray"] = [
        {"images": [{"split": stray.split, "path": stray.path, "class": stray.name}], "message": stray.why}
        for stray in data.unused.strays
    ]
    if data.settings.range == "full":
        peaks = [getattr(info, "peak", None) for info in scan.infos[: len(splits["train"])]]
        described["range"] = list(_little_range(peaks, describe_image))
    findings = [_finding(kind, described[kind]) for kind in KINDS if kind != "near" and described[kind]]
    notes: list[Note] = [{"kind": "counts", "text": text} for text in data.notes]
    notes += [*class_notes(splits), *(range_notes(data) if scan.quick else ()), *file_notes(scan, paths)]
    counts = {split: samples.counts().tolist() for split, samples in splits.items()}
    return {
        "format": FORMAT,
        "key": data_key(data),
        "name": data.name,
        "root": str(data.root),
        "classes": list(data.classes),
        "quick": scan.quick,
        "not_checked": list(NOT_CHECKED) if scan.quick else [],
        "clean": False if findings else None if scan.quick else True,
        "counts": {split: dict(zip(data.classes, values, strict=True)) for split, values in counts.items()},
        "expected": _expected(data),
        "files": _summarise_files(scan),
        "findings": findings,
        "near": [_finding("near", described["near"])] if described["near"] else [],
        "notes": list({note["text"]: note for note in notes}.values()),
        "exclude": [
            *({"split": names[split_of[row]], "path": paths[row], "why": excluded[row]} for row in sorted(excluded)),
            *_excluded_before(data),
        ],
    }


def data_key(data: "ImageDataModule") -> str:
    """Return a digest of the files that are checked, with their sizes and times of change; reads none of them."""
    # Files elsewhere below the root, such as those of runs, don't count.
    notes = [note for note in data.notes if note != data.unused.line]
    digest = hashlib.blake2b(repr((data.name, str(data.root), notes, data.settings.exclude)).encode(), digest_size=16)
    for split, samples in data.samples.items():
        digest.update(repr((split, samples.classes)).encode() + samples.targets.tobytes())
        if samples.pixels is not None:
            digest.update(np.ascontiguousarray(samples.pixels).data)
            continue
        for item in samples.items:
            try:
                found = os.stat(item)  # noqa: PTH116, one call per file
                digest.update(repr((item, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode())
            except OSError:
                digest.update(repr(item).encode())
    digest.update(repr(data.unused.strays).encode())
    return digest.hexdigest()


def verdict(report: Report) -> str:
    """Return the outcome in one sentence: "1 file can't be read, 12 duplicate pairs across splits"."""
    if report["findings"]:
        return ", ".join(map(_describe_finding, report["findings"]))
    how = " by a quick check" if report["quick"] else ""
    return f"no problems found in {report['files']['images']:,} images{how}"


def _describe_finding(finding: Finding) -> str:
    groups, kind = finding["groups"], finding["kind"]
    noun = "pair" if all(len(group["images"]) == 2 for group in groups) else "group"
    number, s = f"{len(groups):,}", "s" * (len(groups) != 1)
    sets = f"{'near-' * kind.startswith('near')}duplicate {noun}{s}"
    return KINDS[kind][2].format(number=number, s=s, es="es" * bool(s), sets=sets)


def _without_images(data: "ImageDataModule", name: str) -> Group:
    """The folder of a class that has no training images, with what it has instead."""
    path = relative_paths([str(data.train_location / name)], data.root)[0]
    return {
        "images": [{"split": "train", "path": path, "class": name}],
        "message": f"no images{what_is_there(data.train_location / name)}",
    }


def _excluded_before(data: "ImageDataModule") -> list[dict[str, str]]:
    """The images that `dataset.exclude` left out before this check: one file then excludes all."""
    entries = read_exclusion(data.settings.exclude).entries if data.settings.exclude else {}
    some = [(key, times) for key, times in sorted(entries.items())]
    return [{"split": split, "path": path, "why": EARLIER} for (split, path), times in some for _ in range(times)]


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
    left = readable & (not scan.quick)
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
    title, action, _ = KINDS[kind]
    images = [image for group in groups for image in group["images"]]
    excluded = sum(image.get("excluded", False) for image in images)
    return Finding(kind=kind, title=title, action=action, images=len(images), excluded=excluded, groups=groups)


def _expected(data: "ImageDataModule") -> dict[str, int] | None:
    counts = data.expected.get(len(data.classes)) if data.check_counts else None
    return dict(zip(data.samples, counts, strict=True)) if counts else None


def _summarise_files(scan: Scan) -> FileSummary:
    infos = [info for info in scan.infos if isinstance(info, ImageInfo)]
    sizes = Counter((info.width, info.height) for info in infos if info.width)
    return {
        "images": len(scan.infos),
        "readable": len(infos),
        "formats": dict(Counter(info.format for info in infos).most_common()),
        "modes": dict(Counter(info.mode for info in infos if info.mode).most_common()),
        "different_sizes": len(sizes),
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in sizes.most_common(20)],
    }


def _little_range(peaks: Sequence[int | None], describe_image: Callable[[int], ImageEntry]) -> Iterator[Group]:
    """The image with the largest value, if 16-bit training images use little of their range."""
    values = {row: value for row, value in enumerate(peaks) if value is not None}
    if values and (message := describe_range(max(values.values()))):
        row = max(values, key=lambda row: values[row])
        yield {"images": [describe_image(row)], "message": f"{message} ({len(values):,} training images)"}
