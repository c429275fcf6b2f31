"""How much of a sweep's outcome each setting explains."""

from collections.abc import Sequence
from statistics import fmean

__all__ = ["importance"]

BINS = 4  # for a setting with more values, all of them numbers


def importance(levels: Sequence[str], values: Sequence[float]) -> float | None:
    """Return the share of the variance of `values` that the `levels` of a setting explain beyond chance, from 0 to 1.

    This is epsilon squared: T. L. Kelley, PNAS 21 (1935), 554. None where there are too few values. Numbers with more
    than four levels are grouped by quartile.
    """
    levels = _quartiles(levels)
    groups: dict[str, list[float]] = {}
    for level, value in zip(levels, values, strict=True):
        groups.setdefault(level, []).append(value)
    free = len(values) - len(groups)
    mean = fmean(values) if values else 0.0
    total = sum((value - mean) ** 2 for value in values)
    if len(groups) < 2 or free < 1 or not total > 0:
        return None
    within = sum((value - fmean(group)) ** 2 for group in groups.values() for value in group)
    return min(1.0, max(0.0, (total - within - (len(groups) - 1) * within / free) / total))


def _quartiles(levels: Sequence[str]) -> Sequence[str]:
    if len(set(levels)) <= BINS:
        return levels
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        return levels
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    quartiles = [""] * len(numbers)
    for rank, index in enumerate(order):
        quartiles[index] = str(rank * BINS // len(order))
    return quartiles
