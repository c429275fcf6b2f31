"""Whether probabilities are what they say, and the one number that mends them most of the time.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On Calibration of Modern Neural Networks, ICML 2017, sections 3 and 4.2.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy_interval", "calibration_error", "fit_temperature", "reliability"]

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0

Array = NDArray[Any]


def reliability(probabilities: Array, targets: Array, bins: int = BINS) -> list[dict[str, float | int]]:
    """Of each of `bins` equal ranges of the largest probability that holds a sample: `low` and `high`, how many samples
    (`count`), their mean `confidence` and `accuracy`. probabilities float [N, K], targets int [N].
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets  # [N] each
    where = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high], as in the paper
    rows: list[dict[str, float | int]] = []
    for number in range(bins):
        inside = where == number
        if count := int(inside.sum()):
            rows.append({"low": number / bins, "high": (number + 1) / bins, "count": count,
                         "confidence": float(confidence[inside].mean()), "accuracy": float(hit[inside].mean())})  # fmt: skip
    return rows


def calibration_error(probabilities: Array, targets: Array, bins: int = BINS) -> float:
    """The expected calibration error: how far confidence and accuracy are apart in a range, by mean over the samples."""
    rows = reliability(probabilities, targets, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / max(total, 1)


def fit_temperature(logits: Array, targets: Array) -> float:
    """The temperature T for which softmax(logits / T) has the least cross-entropy: logits float [N, K], targets int [N].

    Between 0.05 and 20: where all samples are classified rightly the best T would be 0. In 1 / T the cross-entropy is
    convex, hence a search by thirds finds the least. Raises ValueError for no samples.
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if not len(logits):
        raise ValueError("no samples to fit a temperature on")
    low, high = 1 / HOTTEST, 1 / COLDEST  # of 1 / T
    for _ in range(80):  # each leaves two thirds
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
    """The exact interval for an accuracy of `correct` of `count`: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934), 404.

    The lower end is the accuracy under which so many hits or more have probability (1 - confidence) / 2; the upper end,
    under which so many or fewer have. Raises ValueError unless 0 <= correct <= count and 1 <= count.
    """
    if not (0 <= correct <= count and count >= 1):
        raise ValueError(f"{correct} correct of {count}: expected 0 <= correct <= count, and count >= 1")
    tail = (1 - confidence) / 2
    low = 0.0 if correct == 0 else _solve(lambda share: _at_least(correct, count, share), tail)
    # So many hits or fewer are so many misses or more.
    high = 1.0 if correct == count else 1 - _solve(lambda share: _at_least(count - correct, count, share), tail)
    return low, high


def _at_least(hits: int, count: int, share: float) -> float:
    """P(X >= hits) for X binomial: terms by their logarithms, so that none of them overflows."""
    if not 0 < share < 1:
        return float(share > 0)
    numbers = np.arange(hits, count + 1)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1) for n in numbers])
    return float(np.exp(logs + numbers * math.log(share) + (count - numbers) * math.log1p(-share)).sum())


def _solve(rising: Any, value: float) -> float:
    """Where a rising function of 0..1 has `value`, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
