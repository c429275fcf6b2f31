"""The last line of every peer: one JSON object, which process.py reads."""

import json
import resource
from collections.abc import Iterable
from importlib.metadata import version
from statistics import median
from typing import Any

__all__ = ["check_parameters", "report"]


def check_parameters(expected: list[int] | None, counts: tuple[int, int]) -> list[int]:
    """Return `counts` (trainable, total; BatchNorm's statistics count as in Keras); exits where `expected` differs."""
    if expected is not None and list(counts) != list(expected):
        raise SystemExit(f"another network: {counts} parameters (trainable, total), imgclf's has {tuple(expected)}")
    return list(counts)


def report(packages: Iterable[str], fit_seconds: float, epoch_seconds: list[float], images: int, **more: Any) -> None:
    """Print the answer; an epoch trains on `images`. The first epoch is not a steady state, unless it is the only one."""
    steady = epoch_seconds[1:] or epoch_seconds
    answer = {
        "fit_seconds": fit_seconds,
        "epoch_seconds": epoch_seconds,
        "images_per_second": images / median(steady),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {name: version(name) for name in packages},
        **more,
    }
    print(json.dumps(answer), flush=True)
