"""The numbers of a run as files: CSV and JSON, written whole; and the table of classes for the console."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import DataError, one_line
from imgclf.evaluation.classification import ClassScores, averages, per_class
from imgclf.files.atomic import write_atomically
from imgclf.names import as_json, escaped, printable, unescaped

if TYPE_CHECKING:
    from rich.table import Table

    from imgclf.evaluation import Evaluation

__all__ = [
    "HISTORY_COLUMNS",
    "confusion_csv",
    "finite",
    "history_csv",
    "history_json",
    "metrics_json",
    "original_text",
    "per_class_csv",
    "per_class_table",
    "predictions_csv",
    "predictions_header",
    "read_confusion_csv",
    "read_history_csv",
    "read_predictions_csv",
    "report_files",
    "score_rows",
    "text_cell",
    "write_csv",
    "write_evaluation",
    "write_history",
]

HISTORY_COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")

# Text that a spreadsheet takes for a formula (full-width signs too), also behind apostrophes. Source: OWASP, CSV Injection.
_FORMULA = re.compile("'*[=+@\\-\uff1d\uff0b\uff20\uff0d].", re.DOTALL)
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.ASCII | re.IGNORECASE)

Array = NDArray[Any]
StrPath = str | os.PathLike[str]


def write_evaluation(folder: Path, split: str, evaluation: "Evaluation", predictions: bool = True) -> list[str]:
    """Write per_class_{split}.csv, confusion_{split}.csv and, with `predictions`, predictions_{split}.csv; return their names."""
    classes = evaluation.samples.classes
    names = [f"per_class_{split}.csv", f"confusion_{split}.csv", f"predictions_{split}.csv"]
    per_class_csv(folder / names[0], classes, evaluation.matrix)
    confusion_csv(folder / names[1], classes, evaluation.matrix)
    if not predictions:
        return names[:2]
    files = [evaluation.samples.items[index] for index in evaluation.order]
    predictions_csv(folder / names[2], files, evaluation.targets, evaluation.probabilities, classes)
    return names


def report_files(splits: Iterable[str], history: Sequence[object]) -> list[str]:
    """Return the names of the files that `imgclf.report.write_report` writes for evaluations of these splits."""
    names = [f"confusion_{split}.png" for split in splits]
    return names + ["curves.png"] * bool(history) + ["report.html"] * bool(names)


def confusion_csv(path: StrPath, classes: Sequence[str], matrix: Array) -> None:
    """Write the counts of a matrix [K, K]: a row for each true class, a column for each predicted class."""
    counts = np.asarray(matrix).tolist()
    write_csv(path, ["true \\ predicted", *classes], [[name, *row] for name, row in zip(classes, counts, strict=True)])


def read_confusion_csv(path: StrPath) -> tuple[list[str], NDArray[np.int64]]:
    """Read a file of `confusion_csv`: the K classes, and the counts int64 [K, K]; raises `DataError`."""
    header, rows = _read_rows(path)
    try:
        return [original_text(name) for name in header[1:]], np.array([row[1:] for row in rows], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{os.fspath(path)}: can't be read as counts ({one_line(error, 160)})") from None


def per_class_csv(path: StrPath, classes: Sequence[str], matrix: Array) -> None:
    """Write class, precision, recall, f1, support: one row per class, then "accuracy", "macro avg" and "weighted avg".

    As scikit-learn's `classification_report`, accuracy stands in the column f1. The macro average is the metric
    macro_f1: classes that occur nowhere have a row, but don't count in it.
    """
    rows = [[name, *cells, row["support"]] for name, row, cells in score_rows(classes, matrix, digits=6)]
    write_csv(path, ["class", *ClassScores.__annotations__], rows)


def per_class_table(classes: Sequence[str], matrix: Array) -> "Table":
    """Return the rows of `per_class_csv` as a table for the console, the averages under a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class", overflow="ellipsis", no_wrap=True, max_width=36)  # 80 columns hold the table
    for score in ClassScores.__annotations__:
        table.add_column(score, justify="right", no_wrap=True)
    for number, (name, row, cells) in enumerate(score_rows(classes, matrix, digits=3), start=1):
        # Text, because a class named "[red]" is a name and not markup.
        table.add_row(Text(printable(name)), *cells, str(row["support"]), end_section=number == len(classes))
    return table


def score_rows(classes: Sequence[str], matrix: Array, digits: int) -> Iterator[tuple[str, ClassScores, list[str]]]:
    """Yield (name, scores, the fractions as text) of the K classes, then of accuracy and the two averages."""

    def texts(row: ClassScores) -> list[str]:
        return [f"{value:.{digits}f}" for value in (row["precision"], row["recall"], row["f1"])]

    for name, row in zip(classes, per_class(matrix), strict=True):
        yield name, row, texts(row)
    macro, weighted = averages(matrix)
    # Every sample has one class and one prediction, so that the recall weighted by support is the accuracy.
    accuracy = ClassScores(precision=0.0, recall=0.0, f1=weighted["recall"], support=weighted["support"])
    yield "accuracy", accuracy, ["", "", texts(accuracy)[2]]
    yield "macro avg", macro, texts(macro)
    yield "weighted avg", weighted, texts(weighted)


def metrics_json(path: StrPath, metrics: Mapping[str, Mapping[str, object]]) -> None:
    """Write {split: metrics}; a number that isn't finite becomes null, which strict JSON needs."""
    _write_json(path, metrics)


def predictions_csv(
    path: StrPath, files: Sequence[StrPath], targets: Array | None, probabilities: Array, classes: Sequence[str]
) -> None:
    """Write file, true, predicted, and the probability of each class in a column called p(<class>).

    Without targets the column "true" is empty. Seven significant digits are all that float32 holds, so that a row still
    sums to 1. Raises ValueError where the lengths differ or a target is no class.
    """
    probabilities = np.asarray(probabilities, dtype=np.float32)
    if probabilities.shape != (len(files), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape}: expected [{len(files)} files, {len(classes)} classes]")
    predicted = probabilities.argmax(axis=1) if len(files) else np.zeros(0, dtype=np.int64)
    true = [""] * len(files) if targets is None else _names_of(np.asarray(targets), len(files), classes)
    rows = (
        [os.fspath(file), name, classes[best], *(f"{p:.7g}" for p in row.tolist())]
        for file, name, best, row in zip(files, true, predicted.tolist(), probabilities, strict=True)
    )
    write_csv(path, ["file", "true", *predictions_header(classes)], rows)


def predictions_header(classes: Sequence[str]) -> list[str]:
    """Return the names of the columns for the predicted class and the probabilities: a class may be called "true" or "file"."""
    return ["predicted", *(f"p({name})" for name in classes)]


def read_predictions_csv(path: StrPath) -> tuple[list[str], list[list[str]]]:
    """Read a file of `predictions_csv`: the K classes, and the rows as text [N, 3 + K]; raises `DataError`.

    Columns are told by their position: earlier versions called those of the probabilities by the bare names of the classes.
    """
    header, rows = _read_rows(path)
    name, columns = os.fspath(path), header[3:]
    if header[:3] != ["file", "true", "predicted"] or any(len(row) != len(header) for row in rows):
        raise DataError(f"{name}: can't be read as predictions; expected file, true, predicted and the probabilities")
    if all(column.startswith("p(") and column.endswith(")") for column in columns):
        columns = [original_text(column)[2:-1] for column in columns]
    return columns, [[*map(original_text, row[:3]), *row[3:]] for row in rows]


def _names_of(targets: Array, count: int, classes: Sequence[str]) -> list[str]:
    """Return the class name of each target; -1 is an error, not the last class."""
    if targets.shape != (count,):
        raise ValueError(f"targets {targets.shape}: expected [{count}]")
    if count and (targets.min() < 0 or targets.max() >= len(classes)):
        raise ValueError(f"targets lie in {targets.min()}..{targets.max()}: expected 0..{len(classes) - 1}")
    return [classes[target] for target in targets.tolist()]


def write_history(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write history.csv and history.json."""
    history_csv(folder / "history.csv", rows)
    history_json(folder / "history.json", rows)


def history_csv(path: StrPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch in `HISTORY_COLUMNS`; missing or None is an empty cell. ValueError for other keys."""
    write_csv(path, HISTORY_COLUMNS, [["" if v is None else v for v in row.values()] for row in _history(rows)])


def history_json(path: StrPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of `history_csv` as a list of objects; missing or not finite is null."""
    _write_json(path, _history(rows))


def read_history_csv(path: StrPath) -> list[dict[str, Any]]:
    """Read the rows of `history_csv`: epoch an int, the rest floats, an empty cell None; raises `DataError`."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets put a mark in front
            reader = csv.reader(file)
            if tuple(header := next(reader, [])) != HISTORY_COLUMNS:
                raise ValueError(f"its first line is {','.join(header)!r}")
            return [_history_row(cells) for cells in reader if cells]
    except (ValueError, csv.Error, OSError) as error:  # undecodable bytes are a ValueError too
        expected = ",".join(HISTORY_COLUMNS)
        raise DataError(
            f"{os.fspath(path)} can't be read as a history: {error}; expected the columns {expected}, and numbers"
        ) from error


def _history_row(cells: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {k: float(v) if v else None for k, v in zip(HISTORY_COLUMNS, cells, strict=True)}
    return row | {"epoch": int(cells[0])}


def _history(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every row with all the columns, in their order, as plain Python numbers."""
    for row in rows:
        if unknown := sorted(row.keys() - set(HISTORY_COLUMNS)):  # "train_acc" would leave a column silently empty
            raise ValueError(f"unknown history columns {unknown}: expected some of {', '.join(HISTORY_COLUMNS)}")
    return [{key: _number(row.get(key)) for key in HISTORY_COLUMNS} for row in rows]


def finite(value: Any) -> Any:
    """Return `value` as strict JSON holds it: plain numbers at any depth, and None for one that isn't finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    number = _number(value)
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _number(value: Any) -> Any:
    """Return a scalar of numpy or torch as a Python number."""
    return value.item() if hasattr(value, "item") else value


def _write_json(path: StrPath, value: object) -> None:
    write_atomically(path, as_json(finite(value), indent=2, allow_nan=False) + "\n")


def write_csv(path: StrPath, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write UTF-8 with "\\n" line ends, texts as by `text_cell`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([text_cell(cell) if isinstance(cell, str) else cell for cell in row])
    write_atomically(path, text.getvalue())


def text_cell(text: str, encoding: str = "utf-8") -> str:
    """Return the cell of a text: `escaped`, and with an apostrophe in front where a spreadsheet would run it as a formula.

    That is text of two characters or more that begins with =, +, - or @, and is no number. Apostrophes before it are doubled
    by one more, so that the readers of these files get the very text back.
    """
    cell = escaped(text, encoding)
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def original_text(cell: str) -> str:
    """Return the text that `text_cell` was given."""
    return unescaped(cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell)


def _read_rows(path: StrPath) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file; raises `DataError`."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (ValueError, csv.Error, OSError) as error:
        raise DataError(f"{os.fspath(path)}: can't be read ({one_line(error, 160)})") from None
    return header, rows
