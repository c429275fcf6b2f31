"""What every peer prints as its last line: one JSON object that the orchestrator reads."""

import json
import resource
from collections.abc import Iterable
from importlib.metadata import version
from statistics import median
from typing import Any

__all__ = ["check_parameters", "report"]


def check_parameters(wanted: list[int] | None, found: tuple[int, int]) -> list[int]:
    """`found` (trainable, total) again, BatchNorm's statistics counted as Keras counts them; raises if they differ."""
    if wanted is not None and list(found) != list(wanted):
        raise SystemExit(f"another network: {found} parameters (trainable, total), imgclf's has {tuple(wanted)}")
    return list(found)


def report(packages: Iterable[str], fit_seconds: float, epoch_seconds: list[float], pictures: int, **more: Any) -> None:
    """Print the answer; `pictures` are those that an epoch trains on. The first epoch is no steady state, unless it is the
    only one.
    """
    steady = epoch_seconds[1:] or epoch_seconds
    answer = {
        "fit_seconds": fit_seconds,
        "epoch_seconds": epoch_seconds,
        "images_per_second": pictures / median(steady),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {name: version(name) for name in packages},
        **more,
    }
    print(json.dumps(answer), flush=True)
