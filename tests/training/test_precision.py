"""One precision a run: training, validation and the final evaluation compute in the same one."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest


def losses(folder: Path) -> tuple[float, float, float]:
    """Return the validation loss of the best epoch in the history, and those of the final evaluation on val and test."""
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -int(row["epoch"])))
    metrics = json.loads((folder / "metrics.json").read_text())
    return float(best["val_loss"]), metrics["val"]["loss"], metrics["test"]["loss"]


@pytest.mark.trust(
    "a run in a mixed precision, with cached features or without", "history and metrics of two precisions"
)
@pytest.mark.filterwarnings("ignore:You passed `Trainer:UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])  # on a CPU 16-mixed is bf16-mixed
def test_final_evaluation_has_the_precision_of_the_run(run_tiny: Callable[..., Path], precision: str) -> None:
    options = ("model.freeze=all", "trainer.max_epochs=1", "model.head.l2=0.01")
    whole = losses(run_tiny(*options, "features=off"))
    found = [
        losses(run_tiny(*options, f"trainer.precision={precision}", f"features={kind}")) for kind in ("auto", "off")
    ]
    for history, val, _ in found:
        assert val == pytest.approx(history, abs=1e-6)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    if precision == "32-true":
        assert found[1] == pytest.approx(whole, abs=1e-6)
    else:  # rounded, in all three places
        assert all(1e-6 < abs(ours - theirs) < 0.02 for ours, theirs in zip(found[1], whole, strict=True))
