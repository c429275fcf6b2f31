"""Numbers of a report: pure functions from arrays to dict, CSV, JSON and a console table.

Shapes: probabilities float [N, K], targets and predictions int [N], matrix int [K, K] (rows true, columns predicted).
The prediction is the largest probability; of equal ones the lowest class wins, here and in every file.
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import DataError, RunError
from imgclf.files.atomic import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "HISTORY_COLUMNS",
    "confusion_matrix",
    "correct_phrase",
    "history_csv",
    "history_json",
    "metrics_json",
    "metrics_of",
    "per_class",
    "per_class_csv",
    "per_class_table",
    "predictions_csv",
    "read_history_csv",
    "split_metrics",
]

HISTORY_COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
_SCORES = ("precision", "recall", "f1", "support")

Array = NDArray[Any]
StrPath = str | os.PathLike[str]


def split_metrics(probabilities: Array, targets: Array, loss: float) -> dict[str, float | int]:
    """Measure one split: accuracy, loss (passed through), top5, macro_f1 (fractions of 1), correct and count.

    top5 is top-min(5, K), hence 1.0 up to five classes; equal probabilities rank by class, so that top-1 is accuracy.
    macro_f1 leaves out the classes that are neither in the targets nor predicted, as scikit-learn's `f1_score` does.
    Raises ValueError for no samples or wrong shapes, RunError for probabilities that aren't finite.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not probabilities.size:
        raise ValueError(
            f"probabilities {probabilities.shape} and targets {targets.shape}: expected [N, K] and [N], N and K >= 1"
        )
    count, num_classes = probabilities.shape
    if broken := int((~np.isfinite(probabilities)).any(axis=1).sum()):  # NaN compares false: it would rank first
        raise RunError(
            f"the probabilities of {broken} of {count} samples aren't finite: the network has diverged; "
            "train with a lower learning rate, or use an earlier checkpoint"
        )
    matrix = confusion_matrix(probabilities.argmax(axis=1), targets, num_classes)
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)  # [N, 1]
    earlier = np.arange(num_classes) < targets[:, None]  # [N, K]
    rank = ((probabilities > own) | ((probabilities == own) & earlier)).sum(axis=1)  # [N], 0 is the best
    return metrics_of(matrix, float(loss), float((rank < min(5, num_classes)).mean()))


def metrics_of(matrix: Array, loss: float, top5: float) -> dict[str, float | int]:
    """The dictionary of `split_metrics` from a confusion matrix of at least one sample, and what it can't tell."""
    correct, count = int(np.trace(matrix)), int(np.sum(matrix))
    macro_f1 = _averages(matrix)[0]["f1"]
    return {
        "accuracy": correct / max(count, 1),
        "loss": loss,
        "top5": top5,
        "macro_f1": macro_f1,
        "correct": correct,
        "count": count,
    }


def confusion_matrix(predictions: Array, targets: Array, num_classes: int) -> NDArray[np.int64]:
    """Count [K, K]: how many samples of the true class (row) were predicted as the class of the column.

    Raises ValueError for a class outside 0..K-1 or lengths that differ; no samples give a matrix of zeros.
    """
    predictions, targets = np.asarray(predictions, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    if predictions.shape != targets.shape or targets.ndim != 1:
        raise ValueError(f"predictions {predictions.shape} and targets {targets.shape}: expected [N] and [N]")
    for name, values in (("predictions", predictions), ("targets", targets)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"{name} lie in {values.min()}..{values.max()}: expected 0..{num_classes - 1}")
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def per_class(matrix: Array) -> list[dict[str, float | int]]:
    """Give precision, recall, f1 and support of each class; what would divide by zero is 0."""
    matrix = np.asarray(matrix)
    hits, predicted, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)  # [K] each
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    return [dict(zip(_SCORES, values, strict=True)) for values in columns]


def _averages(matrix: Array) -> list[dict[str, float | int]]:
    """Give the macro average (over classes that occur in targets or predictions) and the one weighted by support."""
    matrix = np.asarray(matrix)
    scores = np.array([[row[name] for name in _SCORES] for row in per_class(matrix)], dtype=np.float64)  # [K, 4]
    present = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0  # [K]
    total = int(matrix.sum())
    means = [
        (scores[:, :3] * weights[:, None]).sum(axis=0) / max(weights.sum(), 1) for weights in (present, scores[:, 3])
    ]
    return [dict(zip(_SCORES, [*mean.tolist(), total], strict=True)) for mean in means]


def _report_rows(classes: Sequence[str], matrix: Array) -> list[tuple[str, dict[str, float | int]]]:
    """Name the rows of the report: the K classes, then the two averages."""
    return list(zip([*classes, "macro avg", "weighted avg"], per_class(matrix) + _averages(matrix), strict=True))


def per_class_csv(path: StrPath, classes: Sequence[str], matrix: Array) -> None:
    """Write class, precision, recall, f1, support: a row a class, then "macro avg" and "weighted avg".

    The macro average is the `macro_f1` of `split_metrics`: classes that occur nowhere have a row, but no part in it.
    """
    rows = [
        [name, *(f"{row[score]:.6f}" for score in _SCORES[:3]), row["support"]]
        for name, row in _report_rows(classes, matrix)
    ]
    _write_csv(path, ["class", *_SCORES], rows)


def per_class_table(classes: Sequence[str], matrix: Array) -> "Table":
    """Build the rows of `per_class_csv` as a table for the console, the averages under a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class", overflow="fold")
    for score in _SCORES:
        table.add_column(score, justify="right", no_wrap=True)
    for index, (name, row) in enumerate(_report_rows(classes, matrix), start=1):
        values = [f"{row[score]:.3f}" for score in _SCORES[:3]]
        # Text, because a class named "[red]" is a name and not markup.
        table.add_row(Text(name), *values, str(row["support"]), end_section=index == len(classes))
    return table


def metrics_json(path: StrPath, metrics: Mapping[str, Mapping[str, float | int]]) -> None:
    """Write {split: `split_metrics`}; a number that isn't finite becomes null, which strict JSON needs."""
    _write_json(path, {split: {k: _plain(v) for k, v in values.items()} for split, values in metrics.items()})


def predictions_csv(
    path: StrPath, files: Sequence[StrPath], targets: Array | None, probabilities: Array, classes: Sequence[str]
) -> None:
    """Write file, true, predicted, and the probability of each class in a column of its name.

    Without targets the column "true" is empty. Seven significant digits: all that float32 holds, so that a row still
    sums to 1. Raises ValueError where the lengths differ or a target is no class.
    """
    probabilities = np.asarray(probabilities, dtype=np.float32)
    if probabilities.shape != (len(files), len(classes)):
        raise ValueError(f"probabilities {probabilities.shape}: expected [{len(files)} files, {len(classes)} classes]")
    predicted = probabilities.argmax(axis=1) if len(files) else np.zeros(0, dtype=np.int64)
    if targets is not None:
        confusion_matrix(predicted, targets, len(classes))  # its checks: -1 would be written as the last class
    true = [""] * len(files) if targets is None else [classes[target] for target in np.asarray(targets).tolist()]
    rows = (
        [os.fspath(file), name, classes[best], *(f"{p:.7g}" for p in row.tolist())]
        for file, name, best, row in zip(files, true, predicted.tolist(), probabilities, strict=True)
    )
    _write_csv(path, ["file", "true", "predicted", *classes], rows)


def correct_phrase(correct: int, count: int) -> str:
    """Say the accuracy in words: "68 of 75"."""
    return f"{correct} of {count}"


def history_csv(path: StrPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a row an epoch in `HISTORY_COLUMNS`; missing or None is an empty cell. ValueError for other keys."""
    _write_csv(path, HISTORY_COLUMNS, [["" if v is None else v for v in row.values()] for row in _history(rows)])


def history_json(path: StrPath, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of `history_csv` as a list of objects; missing or not finite is null."""
    _write_json(path, [{key: _plain(value) for key, value in row.items()} for row in _history(rows)])


def read_history_csv(path: StrPath) -> list[dict[str, Any]]:
    """Read what `history_csv` wrote: epoch an int, the rest floats, an empty cell None. DataError if it is no such."""
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
    """Give every row all the columns, in their order, as plain Python numbers (`item`: of numpy and torch scalars)."""
    for row in rows:
        if unknown := sorted(row.keys() - set(HISTORY_COLUMNS)):  # "train_acc" would leave a column silently empty
            raise ValueError(f"unknown history columns {unknown}: expected some of {', '.join(HISTORY_COLUMNS)}")
    values = ((row.get(key) for key in HISTORY_COLUMNS) for row in rows)
    return [dict(zip(HISTORY_COLUMNS, map(_number, row), strict=True)) for row in values]


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _plain(value: Any) -> float | int | None:
    """Give the number that strict JSON can hold."""
    number: Any = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _write_json(path: StrPath, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(path: StrPath, header: Sequence[str], rows: Any) -> None:
    """Write UTF-8 with "\\n" line ends; a file name that is no text (a lone surrogate) is written with backslashes."""
    lines = _Lines()
    writer = csv.writer(lines)
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, lines.text.getvalue().encode("utf-8", "backslashreplace"))


class _Lines:
    """Turn the "\r\n" at the end of csv's lines into "\n".

    csv quotes a cell for the characters of its own line end alone: told "\n", it would leave a lone "\r" unreadable.
    """

    def __init__(self) -> None:
        self.text = io.StringIO(newline="")

    def write(self, line: str) -> int:
        return self.text.write(line.removesuffix("\r\n") + "\n")
