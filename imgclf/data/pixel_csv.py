"""Images as rows of a CSV file: one label and the pixels of a square per line, as in sign-MNIST."""

import csv
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from imgclf.errors import DataError

__all__ = ["PixelTable", "read_pixel_csv"]

_LABEL_LENGTH = 80  # characters that the fast way keeps; longer labels take the slow one
_VALUES = {str(value): value for value in range(256)}
_WHOLE = re.compile(r"\s*\+?0*([0-9]{1,3})\s*", re.ASCII)
_COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_NUMBER_LABEL = re.compile(r"\+?([0-9]{1,18})(\.0*)?")


@dataclass(frozen=True)
class PixelTable:
    """N images: `pixels` uint8 [N, S, S, C], `labels` as text, `lines` [N] their line numbers in the file, from 1."""

    pixels: np.ndarray
    labels: list[str]
    lines: np.ndarray


def read_pixel_csv(path: str | os.PathLike[str], channels: int | None = None) -> PixelTable:
    """Read a CSV file of square images, one per row, with or without a header.

    A row is the label and S * S grey values, or 3 * S * S values r, g, b, r, g, b ... from the top left, row by row; no
    number is both, so the width says which, and `channels` (1 or 3) only refuses the other. The first row is a header
    when it has a cell `label` or no number after its first cell. The label column is the one called `label`, else
    the first. Labels are any text; numbers among them lose leading zeros and a ".0". Pixels are whole numbers from 0 to
    255: "12.0" is refused, since a file of floats may hold another scale. Blank lines are skipped. Where a header numbers
    the pixels ("pixel0", "r0"), they are read in the order of the numbers, whatever that of the columns.

    Raises `DataError` naming the file, the line, what came and what was expected.
    """
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113, unlike the methods of a Path, never raises: a name may be too long
        problem = "is a folder" if os.path.isdir(path) else "no such file"  # noqa: PTH112
        raise DataError(f"{path}: {problem}, expected a CSV file of pixels")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start, first, header = _first_row(path, file)
            column = next((i for i, cell in enumerate(first) if _is_label(cell)), 0) if header else 0
            _refuse_blank_ends(path, start, first)
            shape = _shape(path, start, len(first) - 1, channels)
            order = _order(path, start, first[:column] + first[column + 1 :]) if header else None
            rows = _read_fast(path, header, column, len(first))
            rows = rows or _read_slowly(path, header, column, len(first))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no text (byte {error.start:,} isn't UTF-8), expected a CSV file of pixels"
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}: isn't CSV ({error}), expected rows of a label and pixels") from None
    pixels, labels, lines = rows
    pixels = pixels if order is None else np.take(pixels, order, axis=1)
    if not len(pixels):
        raise DataError(f"{path}: line {start} is a header and no row follows, expected a label and pixels per row")
    names = {label: _label(path, label, lines, labels) for label in set(labels)}
    return PixelTable(pixels.reshape(-1, *shape), [names[label] for label in labels], lines)


def _is_label(cell: str) -> bool:
    return cell.strip().lower() == "label"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _rows(file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row; blank lines are skipped."""
    reader = csv.reader(file)
    line = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _first_row(path: Path, file: IO[str]) -> tuple[int, list[str], bool]:
    """Return line number and cells of the first row, and whether it is a header."""
    head = file.read(4096)
    if "\0" in head:
        raise DataError(f"{path}: is a binary file, expected a CSV file of pixels")
    if head.lstrip().lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        raise DataError(
            f"{path}: line 1 begins with {head.lstrip()[:15]!r}, a web page saved as CSV: download it again"
        )
    file.seek(0)
    line, cells = next(_rows(file), (0, []))
    if not cells:
        raise DataError(f"{path}: is empty, expected rows of a label and pixels")
    header = any(map(_is_label, cells)) or not any(map(_is_number, cells[1:]))
    return line, cells, header


def _refuse_blank_ends(path: Path, line: int, cells: list[str]) -> None:
    """Raise `DataError` for the two columns that programs add without being asked."""
    if not cells[0].strip() or cells[0].strip().lower().startswith("unnamed:"):
        raise DataError(
            f"{path}: line {line}: the first column has no name, as the index that pandas adds: write the file with "
            "index=False, or call the column label"
        )
    if not cells[-1].strip():
        raise DataError(f"{path}: line {line} ends with a comma: remove the comma at the end of every line")


def _order(path: Path, line: int, names: list[str]) -> list[int] | None:
    """Return the positions of the columns in the order of the pixels, by the numbers in their names; None as they are.

    Programs that sort columns by text put "pixel10" before "pixel2". Names with two numbers may mean row and column or
    column and row. Raises `DataError` where the names are in no order and don't give one.
    """
    parts = [re.split(r"([0-9]+)", name.strip().lower()) for name in names]
    numbers = [tuple(map(int, part[1::2])) for part in parts]
    if len(set(map(len, numbers))) > 1 or not numbers[0]:
        return None  # not all of them are numbered
    words = [re.findall("[a-z]+", "_".join(part[::2])) for part in parts]
    colours = [tuple(_COLOURS[word] for word in some if word in _COLOURS) for some in words]
    if set(colours) != {(0,), (1,), (2,)}:
        colours = [()] * len(names)
    keys = list(zip(numbers, colours, strict=True))
    if keys in (sorted(keys), sorted(keys, key=lambda key: (key[0][::-1], key[1]))):
        return None
    templates = len({tuple(part[::2]) for part in parts}) == len(set(colours))
    complete = len(set(keys)) == len(keys) == (max(keys)[0][0] - min(keys)[0][0] + 1) * len(set(colours))
    if len(numbers[0]) == 1 and templates and complete:
        return sorted(range(len(keys)), key=keys.__getitem__)
    place = next(i for i in range(1, len(keys)) if keys[i] < keys[i - 1])
    raise DataError(
        f"{path}: line {line}: column {names[place].strip()!r} comes after {names[place - 1].strip()!r}; expected the pixels "
        "from the top left, row by row: sort the columns"
    )


def _shape(path: Path, line: int, pixels: int, channels: int | None) -> tuple[int, int, int]:
    """Return (S, S, C) of a row with this number of pixels."""
    for count in (1, 3):
        side = math.isqrt(pixels // count)
        if pixels and side * side * count == pixels:
            if channels in (None, count):
                return side, side, count
            raise DataError(f"{path}: rows of {side} x {side} pixels with {count} channel(s), expected {channels}")
    hint = "such as 1 + 28 * 28 = 785, or 1 + 3 * 28 * 28 in colour"
    for count in (1, 3):
        side = math.isqrt(max(0, pixels - 1) // count)
        if side > 1 and side * side * count == pixels - 1:
            hint = "one cell less; is there an index besides the label, or a comma at the end? pandas: index=False"
    raise DataError(f"{path}: line {line} has {pixels + 1} cells, expected a label and the pixels of a square ({hint})")


def _read_fast(path: Path, header: bool, column: int, width: int) -> tuple[np.ndarray, list[str], np.ndarray] | None:
    """Read all rows by NumPy's parser; None when a cell or line is unusual, which `_read_slowly` then judges."""
    fields = [
        ("before", np.uint8, (column,)),
        ("label", f"U{_LABEL_LENGTH}"),
        ("after", np.uint8, (width - column - 1,)),
    ]
    kept = [field for field in fields if field[-1] != (0,)]
    with path.open(encoding="utf-8-sig", newline="") as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns where it reads "1.5" as 1
        if header:
            file.readline()
        try:
            table = np.loadtxt(file, dtype=kept, delimiter=",", quotechar='"', comments=None, ndmin=1)
        except (ValueError, Warning):
            return None
    lines = 0
    with path.open("rb") as binary:
        while block := binary.read(2**20):
            lines += block.count(b"\n")
            last = block
    lines += not last.endswith(b"\n")
    labels = table["label"].tolist()
    if len(table) + header != lines or max(map(len, labels)) == _LABEL_LENGTH:
        return None
    parts = [table[name] for name in ("before", "after") if name in (table.dtype.names or ())]
    pixels = np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=1)
    return pixels, labels, np.arange(1 + header, lines + 1, dtype=np.int64)


def _read_slowly(path: Path, header: bool, column: int, width: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Read all rows one by one; raises `DataError` at the first wrong cell or row."""
    pixels, labels, lines = [], [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _rows(file)
        if header:
            next(rows)
        for line, cells in rows:
            if len(cells) != width:
                _refuse_width(path, line, cells, width, last=next(rows, None) is None)
            labels.append(cells.pop(column))
            lines.append(line)
            values = list(map(_VALUES.get, cells))
            for index, value in enumerate(values):
                if value is None:
                    match = _WHOLE.fullmatch(cells[index])
                    if not match or int(match[1]) > 255:
                        place = f"{path}: line {line}, column {index + 1 + (index >= column)} is {cells[index][:40]!r}"
                        raise DataError(f"{place}, expected a whole number from 0 to 255")
                    values[index] = int(match[1])
            pixels.append(np.array(values, np.uint8))
    shape = (len(pixels), width - 1)
    return np.array(pixels, np.uint8).reshape(shape), labels, np.array(lines, np.int64)


def _refuse_width(path: Path, line: int, cells: list[str], width: int, *, last: bool) -> NoReturn:
    cut = " (the last line: the file is cut off, download it again)" if last and len(cells) < width else ""
    comma = " (it ends with a comma: remove it)" if len(cells) == width + 1 and not cells[-1].strip() else ""
    raise DataError(f"{path}: line {line} has {len(cells)} cells, expected {width} as in the first row{cut}{comma}")


def _label(path: Path, label: str, lines: np.ndarray, labels: list[str]) -> str:
    """Return the label without surplus white space, leading zeros or a trailing .0."""
    text = " ".join(label.split())
    if not text:
        raise DataError(f"{path}: line {lines[labels.index(label)]} has no label, expected a number or a class name")
    number = _NUMBER_LABEL.fullmatch(text)
    return str(int(number[1])) if number else text
