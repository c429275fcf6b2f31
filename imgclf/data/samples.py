"""Samples: which images a split has and the class of each; no file is opened, moved or decoded."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from imgclf.errors import ConfigError

__all__ = ["Samples", "hold_out", "natural_key", "subsample"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of K classes: `items` are file paths, or `file.csv:12` for row-wise pixels; `targets` int64 [N] index
    `classes`; `pixels` is uint8 [N, S, S, C] when the images are in memory, else None.
    """

    items: tuple[str, ...]
    targets: Indices
    classes: tuple[str, ...]
    pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Sequence[int] | Indices) -> "Samples":
        """Return the samples at `indices`, in that order, with the same classes."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            items=tuple(self.items[index] for index in indices),
            targets=self.targets[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
        )

    def counts(self) -> Indices:
        """Return the number of samples per class: int64 [K]."""
        return np.bincount(self.targets, minlength=len(self.classes)).astype(np.int64)


def hold_out(samples: Samples, fraction: float, seed: int, method: str = "random") -> tuple[Samples, Samples]:
    """Split off `fraction` of every class, and return (the rest, the held-out part); each keeps the original order.

    `method` is "random", or "blocks": one run of neighbouring file numbers per class, so that near-identical frames of a
    video aren't on both sides. Of a class with one sample, none is held out; of a larger class at least one is held out, and at
    least one stays.
    Raises `ConfigError` for another method or a fraction outside 0 to 1.
    """
    if method not in ("random", "blocks"):
        raise ConfigError(f"dataset.holdout={method!r}: expected random or blocks")
    if not 0 <= fraction < 1:
        raise ConfigError(f"hold-out fraction {fraction!r}: expected a number of at least 0 and below 1")
    held = np.zeros(len(samples), dtype=bool)
    for target in range(len(samples.classes)):
        members = np.flatnonzero(samples.targets == target)
        count = min(max(1, round_half_up(fraction * len(members))), len(members) - 1) if fraction else 0
        if count <= 0:
            continue
        generator = np.random.default_rng([seed, target])
        if method == "random":
            held[generator.permutation(members)[:count]] = True
        else:
            in_order = sorted(members, key=lambda index: natural_key(os.path.basename(samples.items[index])))  # noqa: PTH119
            start = int(generator.integers(len(members) - count + 1))
            held[in_order[start : start + count]] = True
    return samples.take(np.flatnonzero(~held)), samples.take(np.flatnonzero(held))


def subsample(samples: Samples, fraction: float, seed: int) -> Samples:
    """Return a stratified `fraction` of the samples, in their order; for one seed, a smaller one is part of a larger one.

    Every class keeps at least one sample. Raises `ConfigError` for a fraction outside 0 (excluded) to 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"dataset.fraction={fraction!r}: expected a number above 0, up to 1")
    kept = np.zeros(len(samples), dtype=bool)
    for target in range(len(samples.classes)):
        members = np.flatnonzero(samples.targets == target)
        order = np.random.default_rng([seed, target]).permutation(members)
        kept[order[: max(1, round_half_up(fraction * len(members)))]] = True
    return samples.take(np.flatnonzero(kept))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts "A2" before "A10": runs of digits compare as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def round_half_up(value: float) -> int:
    """Return the nearest whole number, halves up: Python's own `round` takes 2.5 to 2, and a reader expects 3."""
    return int(np.floor(value + 0.5 + 1e-9))
