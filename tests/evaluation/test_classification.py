"""Metrics of a split and of its classes, against scikit-learn and by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score

from imgclf.errors import RunError
from imgclf.evaluation.classification import averages, format_accuracy, per_class
from imgclf.evaluation.evaluate import metrics_from_probabilities

from support.fabricate import random_predictions  # isort: skip

Array = NDArray[Any]


@pytest.mark.parametrize(("num_classes", "missing"), [(3, ()), (7, (2,)), (24, ()), (53, (0, 52))])
def test_metrics_agree_with_scikit_learn(num_classes: int, missing: tuple[int, ...]) -> None:
    probabilities, targets = random_predictions(400, num_classes, missing=missing)
    predictions = probabilities.argmax(axis=1)
    metrics, _ = metrics_from_probabilities(probabilities, targets, 0.25)
    top5 = ["top5"] if num_classes > 5 else []  # of five classes every sample is a hit
    assert list(metrics) == ["accuracy", "loss", *top5, "macro_f1", "correct", "count"]
    assert metrics["accuracy"] == pytest.approx((predictions == targets).mean())
    assert metrics["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    if top5:
        labels = np.arange(num_classes)
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(targets, probabilities, k=5, labels=labels))
    assert (metrics["loss"], metrics["correct"], metrics["count"]) == (0.25, (predictions == targets).sum(), 400)
    assert {type(value) for value in metrics.values()} == {int, float}


def test_metrics_by_hand() -> None:
    # Predicted 0, 0, 1, 1: class 0 has tp 1, fp 1, fn 1 (F1 1/2), class 1 the same; class 2 occurs nowhere.
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.6, 0]], dtype=np.float32)
    metrics, _ = metrics_from_probabilities(probabilities, np.array([0, 1, 0, 1]), 1.5)
    assert metrics == {"accuracy": 0.5, "loss": 1.5, "macro_f1": 0.5, "correct": 2, "count": 4}


def test_metrics_of_two_classes_and_one_sample() -> None:
    metrics, _ = metrics_from_probabilities(np.array([[0.9, 0.1]]), np.array([1]), 2.0)
    assert metrics == {"accuracy": 0.0, "loss": 2.0, "macro_f1": 0.0, "correct": 0, "count": 1}


def test_equal_probabilities_rank_by_class() -> None:
    metrics, _ = metrics_from_probabilities(np.full((8, 8), 1 / 8, dtype=np.float32), np.arange(8), 2.0)
    assert (metrics["correct"], metrics["top5"]) == (1, 5 / 8)


def test_invalid_probabilities_and_targets_are_errors() -> None:
    with pytest.raises(ValueError, match="N and K >= 1"):
        metrics_from_probabilities(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 0.0)
    with pytest.raises(ValueError, match=r"expected \[N, K\]"):
        metrics_from_probabilities(np.ones((2, 3)), np.zeros(3, dtype=np.int64), 0.0)
    for target in (-1, 3):
        with pytest.raises(ValueError, match=r"expected 0\.\.2"):
            metrics_from_probabilities(np.ones((2, 3)), np.array([0, target]), 0.0)
    with pytest.raises(RunError, match="1 of 2 samples aren't finite"):
        metrics_from_probabilities(np.array([[np.nan, np.nan], [0.5, 0.5]]), np.array([0, 0]), math.nan)


def test_confusion_matrix_agrees_with_scikit_learn() -> None:
    probabilities, targets = random_predictions(300, 9, missing=(4,))
    _, matrix = metrics_from_probabilities(probabilities, targets, 0.0)
    assert matrix.dtype == np.int64
    expected = sklearn_confusion_matrix(targets, probabilities.argmax(axis=1), labels=range(9))
    np.testing.assert_array_equal(matrix, expected)
    _, matrix = metrics_from_probabilities(np.array([[0.1, 0.9]]), np.array([0]), 0.0)
    np.testing.assert_array_equal(matrix, [[0, 1], [0, 0]])


def test_per_class_scores_agree_with_scikit_learn() -> None:
    probabilities, targets = random_predictions(300, 9, missing=(4,))
    _, matrix = metrics_from_probabilities(probabilities, targets, 0.0)
    score: Callable[..., Any] = precision_recall_fscore_support
    predictions = probabilities.argmax(axis=1)
    expected = score(targets, predictions, labels=range(9), zero_division=0)
    rows = per_class(matrix)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column.tolist())  # type: ignore[literal-required]
    for row, average in zip(averages(matrix), ("macro", "weighted"), strict=True):
        values = row["precision"], row["recall"], row["f1"]
        assert values == pytest.approx(score(targets, predictions, average=average)[:3])
        assert row["support"] == 300


def test_accuracy_is_formatted_as_count_and_percentage() -> None:
    assert format_accuracy(68, 75) == "68 of 75, 90.7 %"
    assert format_accuracy(0, 0) == "0 of 0"
