"""Where the pictures of a split are, for each layout that is known; finding, never decoding.

A layout is plain data, as a YAML holds it: `{kind: folders, names: [valid, val]}`. Each kind has one `_find_*` function
that looks into one folder and returns what it found there, or None. A new layout is one more such function.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgclf.data.pixel_csv import PixelTable, read_pixel_csv
from imgclf.data.samples import natural_key
from imgclf.errors import ConfigError, DataError

__all__ = ["IMAGE_SUFFIXES", "SplitFiles", "find_split", "find_train", "list_images"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # beside classes: none
DEPTH = 3  # levels below the root that are searched


@dataclass(frozen=True, eq=False)
class SplitFiles:
    """One split as it lies on disk: `items` and their `labels` (text), the `place` to name in messages, every class name
    that a folder stands for (empty ones too), and the pixels where the items are rows.
    """

    place: Path
    items: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    pixels: npt.NDArray[np.uint8] | None = None


def find_train(root: Path, layout: Mapping[str, Any], names: Sequence[str]) -> tuple[Path, SplitFiles] | None:
    """The training split and the folder it was found from, breadth-first from `root`; None where there is none.

    Of several, the one in a folder called like one of `names` (case, `-`, `_` and spaces ignored) wins; a copy nested in
    one that fits is never looked at. Raises `DataError` that lists them when several are left.
    """
    matches = [(base, found) for base in _folders_below(root, layout) if (found := _find(base, layout))]
    if len(matches) <= 1:
        return matches[0] if matches else None
    wanted = {_plain(name) for name in names}
    named = [match for match in matches if wanted & {_plain(part) for part in match[0].relative_to(root).parts}]
    if len(named) == 1:
        return named[0]
    listing = ", ".join(str(base) for base, _ in named or matches)
    raise DataError(f"{root} holds several data sets that fit: {listing}; pass one of them as data_dir")


def find_split(root: Path, base: Path, layout: Mapping[str, Any]) -> SplitFiles | None:
    """A validation or test split beside the training split (`base`); None if absent.

    With `anywhere: true` in the layout it is also sought below `root`: only for names that no other data set has, because
    another's `test` folder may stand there too.
    """
    if (found := _find(base, layout)) or not layout.get("anywhere"):
        return found
    return next((found for folder in _folders_below(root, layout) if (found := _find(folder, layout))), None)


def list_images(folder: Path) -> list[Path]:
    """The picture files right in `folder`, by name in natural order; hidden files (`.DS_Store`, `._1.jpg`) don't count."""
    return [Path(path) for path in _list_names(folder)]


def _list_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if _is_image(e.name) and e.is_file()]
    start = str(folder / "x")[:-1]
    return [start + name for name in sorted(names, key=natural_key)]


def _folders_below(root: Path, layout: Mapping[str, Any]) -> Iterator[Path]:
    """`root` and what lies up to DEPTH levels below it, breadth-first; nothing inside a folder that fits the layout."""
    level = [root]
    for depth in range(DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            yield folder
            if depth < DEPTH and not _fits(folder, layout):
                deeper += _subfolders(folder)
        level = deeper


def _fits(folder: Path, layout: Mapping[str, Any]) -> bool:
    return _find(folder, layout, probe=True) is not None


def _find(base: Path, layout: Mapping[str, Any], probe: bool = False) -> SplitFiles | None:
    options = dict(layout)
    kind = options.pop("kind", None)
    options.pop("anywhere", None)
    if kind not in _KINDS:
        raise ConfigError(f"dataset.splits: kind={kind!r}: expected one of {', '.join(_KINDS)}")
    try:
        finder = partial(_KINDS[kind], base, probe=probe, **options)
        return finder()
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"dataset.splits: {dict(layout)!r} can't be read: {error}") from None
    except PermissionError as error:
        raise DataError(f"{error.filename}: permission denied; make it readable or pass another data_dir") from None


def _find_folders(base: Path, *, probe: bool, names: Sequence[str]) -> SplitFiles | None:
    """One subfolder a class, holding pictures. `names`: what the split's folder may be called; "." is `base` itself."""
    for place in _named(base, names):
        classes = [f for f in _subfolders(place) if place != base or f.name.casefold() not in SPLIT_NAMES]
        # A folder that is not called "train" must mostly hold pictures: one folder of stray pictures is no class.
        needed = 1 if place != base else max(2, len(classes) / 2)
        if sum(_has_images(folder) for folder in classes) < needed:
            continue
        if probe:
            return SplitFiles(place, (), (), ())
        files = {folder.name: _list_names(folder) for folder in classes}
        items = tuple(item for name in sorted(files) for item in files[name])
        labels = tuple(name for name in sorted(files) for _ in files[name])
        return SplitFiles(place, items, labels, tuple(sorted(files)))
    return None


def _find_flat(base: Path, *, probe: bool, names: Sequence[str], pattern: str) -> SplitFiles | None:
    """All pictures in one folder; `pattern` is a regular expression for the file's stem with a group `label`."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"dataset.splits: pattern={pattern!r} is no regular expression: {error}") from None
    if "label" not in expression.groupindex:
        raise ConfigError(f"dataset.splits: pattern={pattern!r} needs a group (?P<label>...) that catches the class")
    for place in _named(base, names):
        if not _has_images(place):
            continue
        if probe:
            return SplitFiles(place, (), (), ())
        files = list_images(place)
        matches = [expression.match(path.stem) for path in files]
        if unmatched := [path.name for path, match in zip(files, matches, strict=True) if not match]:
            raise DataError(
                f"{place / unmatched[0]}: the name doesn't fit the pattern {pattern!r} ({len(unmatched)} of "
                f"{len(files)} files don't); change the pattern or move the file away"
            )
        labels = tuple(match["label"] for match in matches if match)
        return SplitFiles(place, tuple(str(path) for path in files), labels, tuple(sorted(set(labels))))
    return None


def _find_pixels(base: Path, *, probe: bool, files: Sequence[str], rows: Sequence[float] = (0, 1),
                 channels: int | None = None, label_names: Mapping[str, str] | None = None) -> SplitFiles | None:  # fmt: skip
    """A CSV with one picture a row. `rows`: from which to which fraction of the file, in its order, the split goes;
    `label_names`: what the labels in the file stand for (a label outside it is an error).
    """
    path = _first_file(base, files)
    if path is None or probe:
        return SplitFiles(path, (), (), ()) if path else None
    table = _table(path, channels, path.stat().st_mtime_ns)
    part = slice(*(int(fraction * len(table.labels) + 1e-9) for fraction in rows))
    labels, lines = list(table.labels), table.lines
    if label_names is not None:
        for label, line in zip(labels, lines, strict=True):
            if label not in label_names:
                raise DataError(f"{path}, line {line}: label {label!r} stands for no class; expected one of "
                                f"{', '.join(label_names)}")  # fmt: skip
        labels = [label_names[label] for label in labels]
    items = tuple(f"{path}:{line}" for line in lines[part])
    return SplitFiles(path, items, tuple(labels[part]), tuple(sorted(set(labels[part]))), table.pixels[part])


@lru_cache(maxsize=1)
def _table(path: Path, channels: int | None, changed: int) -> PixelTable:
    """The rows of a file that two splits share are parsed once."""
    return read_pixel_csv(path, channels)


def _find_list(base: Path, *, probe: bool, files: Sequence[str], path_column: str = "path",
               label_column: str = "label") -> SplitFiles | None:  # fmt: skip
    """A CSV of `path,label`; paths are relative to the CSV's folder. The header may be left out."""
    listing = _first_file(base, files)
    if listing is None or probe:
        return SplitFiles(listing, (), (), ()) if listing else None
    try:
        with open(listing, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listing}: can't be read as CSV ({error}); expected rows of path,label") from None
    columns = (0, 1)
    if (
        rows
        and {path_column, label_column} <= (header := {name.strip(): i for i, name in enumerate(rows[0][1])}).keys()
    ):
        columns, rows = (header[path_column], header[label_column]), rows[1:]
    items, labels = [], []
    for number, row in rows:
        if len(row) <= max(columns) or not row[columns[1]].strip():
            raise DataError(f"{listing}, line {number}: {','.join(row)[:60]!r}; expected {path_column},{label_column}")
        path = listing.parent / row[columns[0]].strip()
        if not path.is_file():
            raise DataError(f"{listing}, line {number}: there is no file {path}; correct the path or drop the line")
        items.append(str(path))
        labels.append(row[columns[1]].strip())
    return SplitFiles(listing, tuple(items), tuple(labels), tuple(sorted(set(labels))))


_KINDS: dict[str, Callable[..., SplitFiles | None]] = {
    "folders": _find_folders, "flat": _find_flat, "pixels": _find_pixels, "list": _find_list,
}  # fmt: skip


def _named(base: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folders in `base` that are called like one of `names`, whatever the case; "." is `base` itself."""
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
    return not _hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, one call a file


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()
