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
from imgclf.data.pixel_csv import PixelTable, read_pixel_csv
from imgclf.data.samples import Samples, natural_key
from imgclf.errors import ConfigError, DataError, nearest
from imgclf.images import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "SplitFiles",
    "absent_classes",
    "class_names",
    "find_split",
    "find_train",
    "label",
    "list_images",
]

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # never classes
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
    folder that fits is searched. Raises `DataError` that lists the candidates when several are left.
    """
    matches = [(base, files) for base in _folders_below(root, layout) if (files := _find(base, layout))]
    if len(matches) <= 1:
        return matches[0] if matches else None
    wanted = {_plain(name) for name in names}
    named = [match for match in matches if wanted & {_plain(part) for part in match[0].relative_to(root).parts}]
    if len(named) == 1:
        return named[0]
    listing = ", ".join(str(base) for base, _ in named or matches)
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

    Raises `DataError` for a class that train doesn't have, or a class of train without images.
    """
    index = {name: target for target, name in enumerate(classes)}
    if not subset and (unknown := sorted(set(files.names) - set(classes))):
        raise DataError(
            f"{files.location}: {split} has class {', '.join(map(repr, unknown))}, which train doesn't have; "
            "remove it, or name the classes to use in dataset.classes"
        )
    keep = [row for row, name in enumerate(files.labels) if name in index]
    samples = Samples(
        items=tuple(files.items[row] for row in keep),
        targets=np.array([index[files.labels[row]] for row in keep], dtype=np.int64),
        classes=classes,
        pixels=None if files.pixels is None else files.pixels[keep],
    )
    if split == "train" and (empty := absent_classes(samples)):
        raise DataError(
            f"{files.location}: no images of class {', '.join(map(repr, empty))}; add some, remove the "
            "empty folder, or name the classes to use in dataset.classes"
        )
    return samples


def absent_classes(samples: Samples) -> list[str]:
    """Return the classes without a sample."""
    return [name for name, count in zip(samples.classes, samples.counts(), strict=True) if not count]


def list_images(folder: Path) -> list[Path]:
    """Return the image files right in `folder` in natural order; hidden files (`.DS_Store`, `._1.jpg`) don't count."""
    return [Path(path) for path in _list_names(folder)]


def _list_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if _is_image(e.name) and e.is_file()]
    start = str(folder / "x")[:-1]
    return [start + name for name in sorted(names, key=natural_key)]


def _folders_below(root: Path, layout: LayoutConfig) -> Iterator[Path]:
    """Yield `root` and the folders up to DEPTH levels below it, breadth-first; none inside a folder that fits the layout."""
    level = [root]
    for depth in range(DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            yield folder
            if depth < DEPTH and _find(folder, layout, probe=True) is None:
                deeper += _subfolders(folder)
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
        classes = [f for f in _subfolders(folder) if folder != base or f.name.casefold() not in SPLIT_NAMES]
        # A folder that is not called "train" must mostly hold images: one folder of stray images is no class.
        needed = 1 if folder != base else max(2, len(classes) / 2)
        if sum(_has_images(one) for one in classes) < needed:
            continue
        if probe:
            return SplitFiles(folder)
        files = {one.name: _list_names(one) for one in classes}
        items = tuple(item for name in sorted(files) for item in files[name])
        labels = tuple(name for name in sorted(files) for _ in files[name])
        return SplitFiles(folder, items, labels, tuple(sorted(files)))
    return None


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
        if not _has_images(folder):
            continue
        if probe:
            return SplitFiles(folder)
        files = list_images(folder)
        matches = [expression.match(path.stem) for path in files]
        if unmatched := [path.name for path, match in zip(files, matches, strict=True) if not match]:
            raise DataError(
                f"{folder / unmatched[0]}: the name doesn't fit the pattern {pattern!r} ({len(unmatched)} of "
                f"{len(files)} files don't); change the pattern or move the file away"
            )
        labels = tuple(match["label"] for match in matches if match)
        return SplitFiles(folder, tuple(str(path) for path in files), labels, tuple(sorted(set(labels))))
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
    """A CSV of `path,label`; paths are relative to the CSV's folder, and the header may be left out."""
    listing = _first_file(base, layout.files or ())
    if listing is None or probe:
        return SplitFiles(listing) if listing else None
    try:
        with open(listing, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listing}: can't be read as CSV ({error}); expected rows of path,label") from None
    wanted, columns = (layout.path_column, layout.label_column), (0, 1)
    header = {name.strip(): i for i, name in enumerate(rows[0][1])} if rows else {}
    if set(wanted) <= header.keys():
        columns, rows = (header[wanted[0]], header[wanted[1]]), rows[1:]
    items, labels = [], []
    for number, row in rows:
        if len(row) <= max(columns) or not row[columns[1]].strip():
            raise DataError(f"{listing}, line {number}: {','.join(row)[:60]!r}; expected {','.join(wanted)}")
        path = listing.parent / row[columns[0]].strip()
        if not path.is_file():
            raise DataError(f"{listing}, line {number}: there is no file {path}; correct the path or drop the line")
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
    folders = {folder.name.casefold(): folder for folder in _subfolders(base)}
    for name in names:
        if name == ".":
            yield base
        elif (folder := folders.get(name.casefold())) is not None:
            yield folder


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(e.name for e in entries if not _hidden(e.name) and e.is_dir())]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _first_file(base: Path, files: Sequence[str]) -> Path | None:
    return next((base / name for name in files if (base / name).is_file()), None)


def _is_image(name: str) -> bool:
    return not _hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, one call per file


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()
