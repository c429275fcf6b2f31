"""What is wrong with a data set, or odd: from samples and their scan to plain data, the content of check.json.

A finding is something to act upon, a note something to know. What each finding does under `dataset.exclude=check.json`:

unreadable    can't be decoded                              excluded
stray         in a class folder, but read by nobody         nothing: move it or remove it
labels        the same pixels under different labels        all excluded
leaks         the same pixels in several splits             the copies in train are excluded
repeats       the same pixels again in one split            all but the first of train are excluded
near_leaks    nearly the same in several splits             the copies in train are excluded
near_labels   nearly the same under different labels        nothing: look at them
near          nearly the same within one split (a note)     nothing

Validation and test pictures are only excluded when they can't be read or contradict themselves: what is measured on
should not change without need. Near duplicates are sought among what the exact ones leave.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imgclf.data.exclusion import FORMAT, relative_paths
from imgclf.quality.duplicates import Indices, copies_of, exact_groups, near_groups
from imgclf.quality.oddities import class_notes, describe_files, file_notes, stray_files
from imgclf.quality.scan import Scan

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["KINDS", "examine"]

KINDS = {
    "unreadable": ("files that can't be read", "excluded"),
    "stray": ("files in class folders that nobody reads", "not excluded, as they aren't read: move or remove them"),
    "labels": ("the same picture under different labels", "all are excluded"),
    "leaks": ("the same picture in several splits", "the copies in train are excluded"),
    "repeats": ("the same picture again in one split", "all but the first of train are excluded"),
    "near_leaks": ("nearly the same picture in several splits", "the copies in train are excluded"),
    "near_labels": ("nearly the same picture under different labels", "not excluded: look at them"),
    "near": ("nearly the same picture within one split", "not excluded"),
}


def examine(data: "ImageDataModule", scan: Scan) -> dict[str, Any]:
    """All findings and notes on `data`, whose splits were scanned one behind the other, in the form of check.json."""
    splits = data.samples
    split_of = np.repeat(np.arange(len(splits)), [len(samples) for samples in splits.values()])
    targets = np.concatenate([samples.targets for samples in splits.values()])
    items = [item for samples in splits.values() for item in samples.items]
    paths = relative_paths(items, data.root)
    groups, excluded = _group(scan, split_of, targets, list(splits).index("train"))
    names = list(splits)

    def picture(row: int) -> dict[str, Any]:
        says = {"split": names[split_of[row]], "path": paths[row], "class": data.classes[targets[row]]}
        return {**says, "excluded": True} if row in excluded else says

    def told(group: Indices) -> dict[str, Any]:
        says, why = {"pictures": [picture(row) for row in group]}, scan.facts[group[0]]
        return {**says, "message": why.removeprefix(f"{items[group[0]]}: ")} if isinstance(why, str) else says

    found = {kind: [told(group) for group in some] for kind, some in groups.items()}
    found["stray"] = [
        {"pictures": [{"split": split, "path": relative_paths([path], data.root)[0], "class": name}], "message": why}
        for split, path, name, why in stray_files(splits)
    ]
    findings = [_finding(kind, found[kind]) for kind in KINDS if kind != "near" and found[kind]]
    near = [_finding("near", found["near"])] if found["near"] else []
    counts = [{"kind": "counts", "text": note} for note in data.notes]
    notes = {note["text"]: note for note in (*counts, *class_notes(splits), *file_notes(scan, paths))}  # each once
    return {
        "format": FORMAT, "name": data.name, "root": str(data.root), "classes": list(data.classes), "clean": not findings,
        "counts": {split: dict(zip(data.classes, samples.counts().tolist(), strict=True))
                   for split, samples in splits.items()},
        "expected": _expected(data), "files": describe_files(scan), "findings": findings, "near": near,
        "notes": list(notes.values()),
        "exclude": [{"split": names[split_of[row]], "path": paths[row], "why": excluded[row]} for row in sorted(excluded)],
    }  # fmt: skip


def _group(
    scan: Scan, split_of: Indices, targets: Indices, train: int
) -> tuple[dict[str, list[Indices]], dict[int, str]]:
    """The groups of each kind, as rows, and why which rows are excluded."""
    readable, excluded = scan.readable, dict[int, str]()
    groups: dict[str, list[Indices]] = {kind: [] for kind in KINDS}

    def add(kind: str, group: Indices, out: Indices) -> None:
        groups[kind].append(group)
        for row in out:
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
            continue  # those were exact ones, of which nothing was excluded
        in_train, held = group[split_of[group] == train], group[split_of[group] != train]
        copies = copies_of(scan.thumbnails, held, in_train)
        if len(copies) or len(set(split_of[held])) > 1:
            add("near_leaks", group, copies)
        else:
            add("near_labels" if len(set(targets[group])) > 1 else "near", group, copies)
    return groups, excluded


def _finding(kind: str, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    title, action = KINDS[kind]
    pictures = sum(len(group["pictures"]) for group in groups)
    excluded = sum(picture.get("excluded", False) for group in groups for picture in group["pictures"])
    return {"kind": kind, "title": title, "action": action, "pictures": pictures, "excluded": excluded,
            "groups": list(groups)}  # fmt: skip


def _expected(data: "ImageDataModule") -> dict[str, int] | None:
    counts = data.expected.get(len(data.classes)) if data.check_counts else None
    return dict(zip(data.samples, counts, strict=True)) if counts else None
