"""Layouts of data sets on disk: which files a split holds, with their labels; nothing is decoded.

A layout is a `LayoutConfig`, as a YAML holds it: `{kind: folders, names: [valid, val]}`. Each kind has one `_find_*` function
that looks into one folder and returns the split's files there, or None. A new layout is one more such function.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgclf.config import LayoutConfig
from imgclf.data.folders import has_images, list_names, subfolders
from imgclf.data.pixel_csv import PixelTable, read_pixel_csv
from imgclf.data.samples import Samples, natural_key
from imgclf.errors import ConfigError, DataError, nearest

__all__ = [
    "SPLIT_NAMES",
    "SplitFiles",
    "absent_classes",
    "candidates",
    "class_names",
    "find_split",
    "find_train",
    "label",
]

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # not classes
TRAIN_NAMES = frozenset({"train", "training"})
DEPTH = 3  # levels below the root that are searched


@dataclass(frozen=True, eq=False)
class SplitFiles:
    """One split as it lies on disk: `items` and their `labels` (text), the `location` to name in messages, the `names` of all
    classes that a folder stands for (empty ones too), and the pixels where the items are rows of a CSV.
    """

    location: Path
    items: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pixels: npt.NDArray[np.uint8] | None = None


def find_train(root: Path, layout: LayoutConfig, names: Sequence[str]) -> tuple[Path, SplitFiles] | None:
    """Return the training split and the folder it was searched from, breadth-first from `root`; None if there is none.

    Of several, the one in a folder called like one of `names` (case, `-`, `_` and spaces ignored) wins; nothing inside a
    folder that fits is searched. Raises `DataError` that lists the candidates when several are left; where all of them are
    class folders in folders side by side, these may be classes in groups.
    """
    matches = [(base, files) for base in _folders_below(root, layout) if (files := _find(base, layout))]
    if len(matches) <= 1:
        return matches[0] if matches else None
    wanted = {_plain(name) for name in names}
    named = [match for match in matches if wanted & {_plain(part) for part in match[0].relative_to(root).parts}]
    if len(named) == 1:
        return named[0]
    some = named or matches
    listing = ", ".join(str(base) for base, _ in some)
    if all(base == files.location for base, files in some) and len({base.parent for base, _ in some}) == 1:
        raise DataError(
            f"{listing}: each holds class folders of its own, and classes are read one level deep; if they are groups of "
            f"classes, move the class folders up into {some[0][0].parent}, if they are data sets, pass one as data_dir"
        )
    raise DataError(f"{root} holds several data sets that fit: {listing}; pass one of them as data_dir")


def find_split(root: Path, base: Path, layout: LayoutConfig) -> SplitFiles | None:
    """Return a validation or test split next to the training split (in `base`); None if absent.

    With `anywhere` it is searched for below `root` too: only for names that no other data set has, because another's `test`
    folder may stand there.
    """
    if (files := _find(base, layout)) or not layout.anywhere:
        return files
    return next((files for folder in _folders_below(root, layout) if (files := _find(folder, layout))), None)


def class_names(files: SplitFiles, wanted: Sequence[object] | None) -> tuple[str, ...]:
    """Return the classes of the training split, or those of them that are `wanted`, sorted by name.

    Raises `ConfigError` for a wanted class that doesn't exist, `DataError` where fewer than two are left.
    """
    names = sorted(files.names, key=natural_key if all(name.isdecimal() for name in files.names) else None)
    if wanted is not None:
        if odd := [name for name in wanted if isinstance(name, bool) or not isinstance(name, (str, int))]:
            raise ConfigError(f"dataset.classes holds {odd[0]!r}, which is no text: put the name into quotes")
        chosen = {str(name) for name in wanted}
        if absent := sorted(chosen - set(names)):
            raise ConfigError(
                f"dataset.classes: {', '.join(absent)} not in {files.location}; {nearest(absent[0], names)}"
            )
        names = [name for name in names if name in chosen]
    if len(names) < 2:
        raise DataError(
            f"{files.location}: {len(names)} class(es) ({', '.join(names)}); a classifier needs at least two"
        )
    return tuple(names)


def label(files: SplitFiles, classes: tuple[str, ...], split: str, subset: bool) -> Samples:
    """Return the files of `split` as samples, their labels as indices of `classes`; with `subset`, others are left out.

    Raises `DataError` for a class that train doesn't have.
    """
    index = {name: target for target, name in enumerate(classes)}
    if not subset and (unknown := sorted(set(files.names) - set(classes))):
        raise DataError(
            f"{files.location}: {split} has class {', '.join(map(repr, unknown))}, which train doesn't have; "
            "remove it, or name the classes to use in dataset.classes"
        )
    keep = [row for row, name in enumerate(files.labels) if name in index]
    return Samples(
        items=tuple(files.items[row] for row in keep),
        targets=np.array([index[files.labels[row]] for row in keep], dtype=np.int64),
        classes=classes,
        pixels=None if files.pixels is None else files.pixels[keep],
    )


def absent_classes(samples: Samples) -> list[str]:
    """Return the classes without a sample."""
    return [name for name, count in zip(samples.classes, samples.counts(), strict=True) if not count]


def candidates(base: Path, layout: LayoutConfig) -> list[Path]:
    """Return what is in `base` under one of the layout's names, of which a split is only one: folders `valid` and `val`."""
    wanted = {name.casefold() for name in layout.names or ()}
    folders = [folder for folder in subfolders(base) if folder.name.casefold() in wanted]
    return [*folders, *(base / name for name in layout.files or () if (base / name).is_file())]


def _folders_below(root: Path, layout: LayoutConfig) -> Iterator[Path]:
    """Yield `root` and the folders up to DEPTH levels below it, breadth-first and each once; none inside one that fits."""
    level, seen = [root], set[Path]()
    for depth in range(DEPTH + 1):
        deeper: list[Path] = []
        for folder in sorted(level, key=Path.is_symlink):  # a folder that a link leads to has a path of its own
            if (real := folder.resolve()) in seen:
                continue
            seen.add(real)
            yield folder
            if depth < DEPTH and _find(folder, layout, probe=True) is None:
                deeper += subfolders(folder)
        level = deeper


def _find(base: Path, layout: LayoutConfig, probe: bool = False) -> SplitFiles | None:
    """Return the split in `base`; with `probe` only whether it is there, without its items."""
    required, finder = _KINDS[layout.kind]
    if absent := [name for name in required if not getattr(layout, name)]:
        raise ConfigError(f"dataset.splits: kind={layout.kind} needs {absent[0]}; got {layout.to_dict()}")
    try:
        return finder(base, layout, probe)
    except PermissionError as error:
        raise DataError(f"{error.filename}: permission denied; make it readable or pass another data_dir") from None


def _find_folders(base: Path, layout: LayoutConfig, probe: bool) -> SplitFiles | None:
    """One subfolder per class, holding images."""
    for folder in _named(base, layout.names or ()):
        classes = _class_folders(folder, may_hold_splits=folder == base)
        # A folder that is not called "train" must mostly hold images: one folder of stray images is no class.
        needed = 1 if folder != base else max(2, len(classes) / 2)
        if sum(has_images(one) for one in classes) < needed:
            continue
        if probe:
            return SplitFiles(folder)
        files = {one.name: list_names(one) for one in classes}
        items = tuple(item for name in sorted(files) for item in files[name])
        labels = tuple(name for name in sorted(files) for _ in files[name])
        return SplitFiles(folder, items, labels, tuple(sorted(files)))
    return None


def _class_folders(folder: Path, may_hold_splits: bool) -> list[Path]:
    """Return the folders in `folder` that are classes, not splits.

    "train" beside class folders is a class where it has images and no class folders: of vehicles, say. Images in a "test"
    beside them may well be unlabelled.
    """
    folders = subfolders(folder)
    if not may_hold_splits:
        return folders
    classes = [one for one in folders if one.name.casefold() not in SPLIT_NAMES]
    splits = [one for one in folders if one not in classes]
    named = [one for one in splits if one.name.casefold() in TRAIN_NAMES]
    trains = [one for one in named if has_images(one) and not any(map(has_images, subfolders(one)))]
    return sorted(classes + trains) if len(classes) > 1 or trains == splits else classes


def _find_flat(base: Path, layout: LayoutConfig, probe: bool) -> SplitFiles | None:
    """All images in one folder; `pattern` finds the class in the file's stem."""
    pattern = layout.pattern or ""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"dataset.splits: pattern={pattern!r} is no regular expression: {error}") from None
    if "label" not in expression.groupindex:
        raise ConfigError(f"dataset.splits: pattern={pattern!r} needs a group (?P<label>...) that catches the class")
    for folder in _named(base, layout.names or ()):
        if not has_images(folder):
            continue
        if probe:
            return SplitFiles(folder)
        files = list_names(folder)
        matches = [expression.match(Path(path).stem) for path in files]
        if unmatched := [path for path, match in zip(files, matches, strict=True) if not match]:
            raise DataError(
                f"{unmatched[0]}: the name doesn't fit the pattern {pattern!r} ({len(unmatched)} of "
                f"{len(files)} files don't); change the pattern or move the file away"
            )
        labels = tuple(match["label"] for match in matches if match)
        return SplitFiles(folder, tuple(files), labels, tuple(sorted(set(labels))))
    return None


def _find_pixels(base: Path, layout: LayoutConfig, probe: bool) -> SplitFiles | None:
    """A CSV with one image per row; a label outside `label_names` is an error."""
    path = _first_file(base, layout.files or ())
    if path is None or probe:
        return SplitFiles(path) if path else None
    table = _table(path, layout.channels, path.stat().st_mtime_ns)
    part = slice(*(int(fraction * len(table.labels) + 1e-9) for fraction in layout.rows or (0, 1)))
    labels, lines, names = list(table.labels), table.lines, layout.label_names
    if names is not None:
        for text, line in zip(labels, lines, strict=True):
            if text not in names:
                raise DataError(
                    f"{path}, line {line}: label {text!r} stands for no class; expected one of {', '.join(names)}"
                )
        labels = [names[text] for text in labels]
    items = tuple(f"{path}:{line}" for line in lines[part])
    return SplitFiles(path, items, tuple(labels[part]), tuple(sorted(set(labels[part]))), table.pixels[part])


@lru_cache(maxsize=1)
def _table(path: Path, channels: int | None, changed: int) -> PixelTable:
    """The rows of a file that two splits share are parsed once."""
    return read_pixel_csv(path, channels)


def _find_list(base: Path, layout: LayoutConfig, probe: bool) -> SplitFiles | None:
    """A CSV of `path,label`; paths are relative to the CSV's folder, and the header may be left out.

    Columns are found by their names, whatever the case.
    """
    listing = _first_file(base, layout.files or ())
    if listing is None or probe:
        return SplitFiles(listing) if listing else None
    try:
        with open(listing, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listing}: can't be read as CSV ({error}); expected rows of path,label") from None
    wanted, columns = (layout.path_column, layout.label_column), (0, 1)
    exact = {name.strip(): i for i, name in enumerate(rows[0][1])} if rows else {}
    header = {name.casefold(): i for name, i in exact.items()} | exact
    if all(name in header or name.casefold() in header for name in wanted):
        first, second = (header.get(name, header.get(name.casefold(), 0)) for name in wanted)
        columns, rows = (first, second), rows[1:]
    elif rows and not os.path.isfile(listing.parent / rows[0][1][0].strip()):  # noqa: PTH113, a cell may be too long for a name
        raise DataError(
            f"{listing}, line {rows[0][0]}: {','.join(rows[0][1])[:60]!r} names no file and has no columns {','.join(wanted)}; "
            "correct the row, or name the columns by dataset.splits.train.path_column and label_column"
        )
    items, labels = [], []
    for number, row in rows:
        if len(row) <= max(columns) or not row[columns[1]].strip():
            raise DataError(f"{listing}, line {number}: {','.join(row)[:60]!r}; expected {','.join(wanted)}")
        path = listing.parent / row[columns[0]].strip()
        if not os.path.isfile(path):  # noqa: PTH113, as above
            raise DataError(
                f"{listing}, line {number}: there is no file {str(path)[:300]}; correct the path or drop the line"
            )
        items.append(str(path))
        labels.append(row[columns[1]].strip())
    return SplitFiles(listing, tuple(items), tuple(labels), tuple(sorted(set(labels))))


# Kind -> the fields that it needs, and its function.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Path, LayoutConfig, bool], SplitFiles | None]]] = {
    "folders": (("names",), _find_folders),
    "flat": (("names", "pattern"), _find_flat),
    "pixels": (("files",), _find_pixels),
    "list": (("files",), _find_list),
}


def _named(base: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the folders in `base` that are called like one of `names`, ignoring case; "." is `base` itself."""
    folders = {folder.name.casefold(): folder for folder in subfolders(base)}
    for name in names:
        if name == ".":
            yield base
        elif (folder := folders.get(name.casefold())) is not None:
            yield folder


def _first_file(base: Path, files: Sequence[str]) -> Path | None:
    return next((base / name for name in files if (base / name).is_file()), None)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()
