"""Files below a data folder that no split uses, counted by reason: images are never left out without a word.

Names alone are looked at; no file is opened.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imgclf.config import LayoutConfig
from imgclf.data.folders import Folder, has_images, subfolders, walk
from imgclf.data.layouts import SPLIT_NAMES, SplitFiles, candidates
from imgclf.errors import DataError
from imgclf.images import unused_reason

__all__ = ["Stray", "Unused", "find_unused", "refuse_empty", "what_is_there"]

# Files behind which the rest of a folder that isn't a data set alone (a home folder, say) isn't looked at.
MOST = 300_000
NO_IMAGE = unused_reason("")
BROKEN = "links that lead nowhere, or in a circle"


class Stray(NamedTuple):
    """A file or folder in the folder of a class that isn't read, and why; `path` is below the data folder."""

    split: str
    name: str
    path: str
    why: str


@dataclass
class Unused:
    """The unused files: {reason: their paths below the data folder}; how much `litter` of which name; all `strays`.

    `left_out` counts the images of classes that `dataset.classes` doesn't name; `whole` is false where files weren't looked at.
    """

    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    litter: Counter[str] = field(default_factory=Counter)
    strays: list[Stray] = field(default_factory=list)
    left_out: int = 0
    whole: bool = True

    @property
    def line(self) -> str:
        """All that isn't used in one line: "not used: 12 HEIC files (...), 1 other file (a.csv); ignored: 1 Thumbs.db"."""
        parts = [_describe(reason, paths) for reason, paths in self.files.items()]
        if self.left_out:
            parts.append(f"{_count(self.left_out, 'image')} of classes that dataset.classes doesn't name")
        if not self.whole:
            parts.append(f"and more (only {MOST:,} files were looked at)")
        ignored = ", ".join(f"{count:,} {name}" for name, count in sorted(self.litter.items()))
        lines = [f"not used: {', '.join(parts)}"] * bool(parts) + [f"ignored: {ignored}"] * bool(ignored)
        return "; ".join(lines)


def find_unused(
    root: Path, splits: Mapping[str, SplitFiles], layouts: Mapping[str, LayoutConfig | None], classes: Sequence[str]
) -> Unused:
    """Return the files below `root` that none of the `splits` has; `layouts` say what else the splits might be called."""
    root, chosen = root.absolute(), set(classes)
    known, unused, start = _Known(splits, layouts), Unused(), len(str(root).rstrip(os.sep)) + 1
    unused.left_out = sum(name not in chosen for files in splits.values() for name in files.labels)
    looked_at, inside = 0, dict[str, tuple[str, str]]()
    for folder in walk(root, MOST + known.count):
        looked_at += len(folder.files)
        below = folder.path[start:]
        key = _identity(folder.path)
        own, above = known.classes.get(key), inside.get(os.path.dirname(folder.path))  # noqa: PTH120
        if place := own or above:
            inside[folder.path] = place
        _count_litter(folder, unused.litter)
        if folder.error:
            unused.files[f"folders that can't be opened ({folder.error})"].append(below or ".")
        used, images = known.images.get(key, ()), 0
        for name in folder.files:
            if name in used or (path := os.path.join(folder.path, name)) in known.tables:  # noqa: PTH118
                continue
            why = unused_reason(name)
            images += not why
            reason = known.rivals.get(path) or why or known.why(folder.path, below, above)
            unused.files[reason].append(path[start:])
            if why and own:
                unused.strays.append(Stray(*own, path[start:], why))
        for name in folder.broken:
            path = os.path.join(below, name)  # noqa: PTH118
            unused.files[BROKEN].append(path)
            if own:
                unused.strays.append(Stray(*own, path, "a link that leads nowhere, or in a circle"))
        if images and above and not own:
            unused.strays.append(Stray(*above, below, "a folder with images inside a class folder"))
    unused.whole = looked_at <= MOST + known.count
    unused.files = {reason: sorted(paths) for reason, paths in sorted(unused.files.items())}
    unused.strays = sorted((stray for stray in unused.strays if stray.name in chosen), key=lambda stray: stray.path)
    return unused


class _Known:
    """What the splits use: `images`, the names in each folder; `tables`, their CSV files; `classes`, the split and class of each
    folder. `rivals` are folders and files that a split could have been, with what was taken in their place.
    """

    def __init__(self, splits: Mapping[str, SplitFiles], layouts: Mapping[str, LayoutConfig | None]) -> None:
        self.images: dict[tuple[int, int], set[str]] = {}
        self.classes: dict[tuple[int, int], tuple[str, str]] = {}
        self.tables: set[str] = set()
        self.rivals: dict[str, str] = {}
        self.locations: set[str] = set()
        self.count, self.listed = 0, False
        by_folder: dict[str, set[str]] = defaultdict(set)
        for split, files in splits.items():
            layout = layouts.get(split)
            location = files.location.absolute()
            self.locations.add(str(location))
            if not location.is_dir():
                self.tables.add(str(location))
                self.listed |= files.pixels is None
            elif layout and layout.kind == "folders":
                self.classes |= {_identity(str(location / name)): (split, name) for name in files.names}
            for item in files.items if files.pixels is None else ():
                folder, _, name = item.rpartition(os.sep)
                by_folder[folder].add(name)
            self.count += len(files.items)
            if layout:
                noun = "files" if str(location) in self.tables else "images"
                reason = f"{noun} of a second {split} split: {location.name} is taken"
                self.rivals |= {str(path): reason for path in candidates(location.parent, layout) if path != location}
        self.rivals = {path: text for path, text in self.rivals.items() if path not in self.locations}
        for folder, names in by_folder.items():
            self.images.setdefault(_identity(folder or "."), set()).update(names)

    def why(self, path: str, below: str, inside_class: object) -> str:
        """Return why the images right in a folder aren't used; `below` is its path below the data folder."""
        if inside_class:
            return "images in folders inside a class folder: classes are read one level deep"
        for part in (path, *map(str, Path(path).parents)):
            if part in self.rivals:
                return self.rivals[part]
        if self.listed:
            return "images that no list names"
        if path in self.locations:
            return "images beside the class folders"
        if Path(path).name.casefold() in SPLIT_NAMES and not any(map(has_images, subfolders(Path(path)))):
            return "images in a folder without class folders: rename it if it is a class"
        return "images in other folders" if below else "images right in the data folder"


def _identity(path: str) -> tuple[int, int]:
    """Return what two paths of one folder share; (0, 0) where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116, one call per folder
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _count_litter(folder: Folder, litter: Counter[str]) -> None:
    for name in folder.litter:
        shown = name == ".DS_Store" or not name.startswith(".")
        litter[name if shown else "._*" if name.startswith("._") else "hidden"] += 1


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _describe(reason: str, paths: Sequence[str]) -> str:
    """Return "3 images in other folders (a, b)", "12 HEIC files (...)" or "2 other files (.csv, .txt)"."""
    number = len(paths)
    if reason == NO_IMAGE:
        suffixes = sorted({os.path.splitext(path)[1].lower() or "without a suffix" for path in paths})  # noqa: PTH122
        return f"{_count(number, 'other file')} ({_first(paths if number <= 2 else suffixes)})"
    noun, space, rest = reason.partition(" ")
    if noun in ("images", "files", "links", "folders"):
        text, _, hint = rest.partition(": ")
        where = dict.fromkeys(os.path.dirname(path) or "." if noun == "images" else path for path in paths)  # noqa: PTH120
        return f"{_count(number, noun[:-1])}{space}{text} ({_first(list(where))}{f'; {hint}' * bool(hint)})"
    kind, _, remedy = reason.partition(": ")
    return f"{_count(number, f'{kind} file')} ({remedy})"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def refuse_empty(files: SplitFiles, empty: Iterable[str]) -> None:
    """Raise `DataError` for classes without images, with what is in the folder of the first; not for none."""
    names = list(empty)
    if not names:
        return
    raise DataError(
        f"{files.location}: no images of class {', '.join(map(repr, names))}{what_is_there(files.location / names[0])}; add "
        "some, remove the empty folder, or name the classes to use in dataset.classes"
    )


def what_is_there(folder: Path) -> str:
    """Return what the folder of a class without images holds instead, in brackets; "" for nothing that can be told."""
    if folder.is_dir():
        nested = [one.name for one in subfolders(folder) if has_images(one)]
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in next(walk(folder)).files:
            kinds[unused_reason(name)].append(name)
        if nested:
            return f" (its images are in {_first(nested)} below it: classes are read one level deep)"
        if kinds:
            return f" (only {', '.join(_describe(why, some) for why, some in kinds.items())})"
    return ""
