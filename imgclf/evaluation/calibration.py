"""Calibration of probabilities, temperature scaling, and confidence intervals of accuracies.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On Calibration of Modern Neural Networks, ICML 2017, sections 3 and 4.2.
"""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReliabilityBin", "accuracy_interval", "calibration_error", "fit_temperature", "reliability"]

BINS = 15  # as in the paper
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

Array = NDArray[Any]


class ReliabilityBin(TypedDict):
    """The `count` samples whose largest probability lies in (low, high]: their mean confidence, and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: Array, targets: Array, bins: int = BINS) -> list[ReliabilityBin]:
    """Return the bins of equal width that hold samples: probabilities float [N, K], targets int [N]."""
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets  # [N] each
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in the paper
    rows = []
    for bin_number in np.unique(number).tolist():
        inside = number == bin_number
        row: ReliabilityBin = {
            "low": bin_number / bins,
            "high": (bin_number + 1) / bins,
            "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(hit[inside].mean()),
        }
        rows.append(row)
    return rows


def calibration_error(probabilities: Array, targets: Array, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean over samples of |confidence - accuracy| of their bin.

    torchmetrics' function has bins [low, high) and one more bin for a confidence of exactly 1, which is common in
    single precision.
    """
    rows = reliability(probabilities, targets, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / max(total, 1)


def fit_temperature(logits: Array, targets: Array) -> float:
    """Return the temperature T that minimises the cross-entropy of softmax(logits / T): float [N, K], targets int [N].

    T lies between 0.05 and 20: with every sample classified correctly the best T would be 0. The cross-entropy is
    convex in 1 / T, so a ternary search finds its minimum. Raises ValueError for no samples.
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if not len(logits):
        raise ValueError("no samples to fit a temperature on")
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE  # of 1 / T
    for _ in range(80):  # each step leaves two thirds of the interval
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _cross_entropy(logits * left, targets) <= _cross_entropy(logits * right, targets):
            high = right
        else:
            low = left
    return 2 / (low + high)


def _cross_entropy(logits: Array, targets: Array) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)  # [N, K]
    own = np.take_along_axis(shifted, targets[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def accuracy_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of an accuracy: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934), 404.

    With the lower end as the true accuracy, `correct` or more hits have probability (1 - confidence) / 2; with the
    upper end, `correct` or fewer. Raises ValueError unless 0 <= correct <= count and 1 <= count.
    """
    if not (0 <= correct <= count and count >= 1):
        raise ValueError(f"{correct} correct of {count}: expected 0 <= correct <= count, and count >= 1")
    tail = (1 - confidence) / 2
    low = 0.0 if correct == 0 else _solve(lambda share: _at_least(correct, count, share), tail)
    # At most `correct` hits are at least `count - correct` misses.
    high = 1.0 if correct == count else 1 - _solve(lambda share: _at_least(count - correct, count, share), tail)
    return low, high


def _at_least(hits: int, count: int, share: float) -> float:
    """Return P(X >= hits) for X binomial; the terms are summed from their logarithms, so that none overflows."""
    if not 0 < share < 1:
        return float(share > 0)
    numbers = np.arange(hits, count + 1)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1) for n in numbers])
    return float(np.exp(logs + numbers * math.log(share) + (count - numbers) * math.log1p(-share)).sum())


def _solve(rising: Callable[[float], float], value: float) -> float:
    """Return where a rising function on 0..1 has `value`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
