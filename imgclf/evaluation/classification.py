"""Metrics of a confusion matrix int [K, K], rows true and columns predicted: pure functions."""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOP", "ClassScores", "averages", "format_accuracy", "has_top5", "metrics_from_confusion", "per_class"]

TOP = 5  # a hit among so many classes counts for `top5`

Matrix = NDArray[np.integer[Any]]


class ClassScores(TypedDict):
    """How well one class is predicted; `support` is its number of samples."""

    precision: float
    recall: float
    f1: float
    support: int


def metrics_from_confusion(matrix: Matrix, loss: float, top5: float) -> dict[str, float]:
    """Return accuracy, loss, top5, macro_f1 (fractions of 1), correct and count; `loss` and `top5` are passed through.

    Without top5 for `TOP` classes or fewer, where every sample is a hit. macro_f1 leaves out the classes that are
    neither in the targets nor predicted, as scikit-learn's `f1_score` does.
    """
    correct, count = int(np.trace(matrix)), int(np.sum(matrix))
    return {
        "accuracy": correct / max(count, 1),
        "loss": loss,
        **({"top5": top5} if has_top5(len(matrix)) else {}),
        "macro_f1": averages(matrix)[0]["f1"],
        "correct": correct,
        "count": count,
    }


def has_top5(num_classes: int) -> bool:
    """Return whether top-5 accuracy says anything about so many classes."""
    return num_classes > TOP


def per_class(matrix: Matrix) -> list[ClassScores]:
    """Return precision, recall, f1 and support of each class; a division by zero gives 0."""
    matrix = np.asarray(matrix)
    hits, predicted, support = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)  # [K] each
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    return [ClassScores(precision=p, recall=r, f1=f, support=count) for p, r, f, count in columns]


def averages(matrix: Matrix) -> list[ClassScores]:
    """Return the macro average (over classes that occur in targets or predictions) and the one weighted by support."""
    matrix = np.asarray(matrix)
    rows = per_class(matrix)
    scores = np.array([[row["precision"], row["recall"], row["f1"]] for row in rows], dtype=np.float64)  # [K, 3]
    support = matrix.sum(axis=1)  # [K]
    present = (matrix.sum(axis=0) + support) > 0  # [K]
    means = [(scores * weights[:, None]).sum(axis=0) / max(weights.sum(), 1) for weights in (present, support)]
    total = int(matrix.sum())
    return [ClassScores(precision=p, recall=r, f1=f, support=total) for p, r, f in map(np.ndarray.tolist, means)]


def format_accuracy(correct: int, count: int) -> str:
    """Return "68 of 75, 90.7 %"."""
    share = f", {100 * correct / count:.1f} %" if count else ""
    return f"{correct} of {count}{share}"
