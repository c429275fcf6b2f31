"""Calibration and intervals against independent arithmetic."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from torchmetrics.functional.classification import multiclass_calibration_error

import imgclf
from imgclf.evaluation.calibration import accuracy_interval, calibration_error, fit_temperature, reliability


@pytest.mark.parametrize("count", [1, 2, 33, 75, 372, 8700])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.907, 1.0])
def test_intervals_agree_with_scipy(count: int, share: float) -> None:
    correct = round(share * count)
    low, high = accuracy_interval(correct, count)
    expected_low = beta.ppf(0.025, correct, count - correct + 1) if correct else 0.0
    expected_high = beta.ppf(0.975, correct + 1, count - correct) if correct < count else 1.0
    assert low == pytest.approx(expected_low, abs=1e-9) and high == pytest.approx(expected_high, abs=1e-9)


def test_interval_of_68_of_75_and_impossible_counts() -> None:
    low, high = accuracy_interval(68, 75)
    assert (round(100 * low, 1), round(100 * high, 1)) == (81.7, 96.2)
    for correct, count in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 <= correct <= count"):
            accuracy_interval(correct, count)


def test_reliability_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    targets = np.array([0, 1, 1, 1])
    rows = reliability(probabilities, targets, bins=10)
    expected = [(0.5, 1, 1.0), (0.6, 1, 1.0), (0.8, 1, 0.0), (0.9, 1, 1.0)]
    assert [(row["low"], row["count"], row["accuracy"]) for row in rows] == expected
    assert calibration_error(probabilities, targets, bins=10) == pytest.approx((0.4 + 0.3 + 0.9 + 0.05) / 4)
    assert sum(row["count"] for row in reliability(np.full((7, 3), 1 / 3), np.zeros(7, int))) == 7


@pytest.mark.parametrize(("num_classes", "scale"), [(3, 1.0), (24, 3.0), (53, 0.3)])
def test_calibration_error_agrees_with_torchmetrics_between_bin_edges(num_classes: int, scale: float) -> None:
    generator = np.random.default_rng(num_classes)
    logits = torch.from_numpy(scale * generator.normal(size=(600, num_classes)))
    probabilities, targets = logits.softmax(dim=1), torch.from_numpy(generator.integers(0, num_classes, 600))
    expected = multiclass_calibration_error(probabilities, targets, num_classes, n_bins=15).item()
    assert calibration_error(probabilities.numpy(), targets.numpy()) == pytest.approx(expected, abs=1e-6)


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    """torchmetrics gives it a bin of its own."""
    (row,) = reliability(np.array([[0.96, 0.04], [1.0, 0.0]]), np.array([0, 1]))
    assert (row["count"], row["high"], row["accuracy"]) == (2, 1.0, 0.5)
    assert row["confidence"] == pytest.approx(0.98)


def test_the_temperature_minimises_the_cross_entropy() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 7))
    targets = np.array([generator.choice(7, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    # The targets are drawn from these probabilities.
    assert fit_temperature(logits, targets) == pytest.approx(1.0, abs=0.1)

    def loss(temperature: float) -> float:
        scaled = 3 * logits / temperature
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(500), targets]).mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(3 * logits, targets) == pytest.approx(best, rel=1e-4)
    assert 0.05 <= fit_temperature(np.eye(3) * 5, np.arange(3)) < 0.2  # all correct: the lower the better, to rounding
    with pytest.raises(ValueError, match="no samples"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))


def test_calibrated_runs_have_calibrated_metrics_and_probabilities(
    run_tiny: Callable[..., Path], colours: Path
) -> None:
    plain, folder = run_tiny("trainer.max_epochs=1"), run_tiny("trainer.max_epochs=1", "calibrate=true")
    metrics = json.loads((folder / "metrics.json").read_text())
    before = json.loads((plain / "metrics.json").read_text())
    temperature = metrics["val"]["temperature"]
    assert temperature != 1 and metrics["test"]["temperature"] == temperature
    assert metrics["val"]["calibrated_loss"] <= metrics["val"]["loss"]
    for key in ("accuracy", "loss", "ece", "macro_f1"):
        assert metrics["test"][key] == before["test"][key]
    first = imgclf.load(plain / "checkpoints" / "best.ckpt").predict_proba(colours / "test").astype(np.float64)
    second = imgclf.load(folder / "checkpoints" / "best.ckpt").predict_proba(colours / "test")
    expected = first ** (1 / temperature)
    assert np.allclose(second, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    rows = (folder / "predictions_test.csv").read_text().splitlines()
    assert float(rows[1].split(",")[3]) == pytest.approx(float(second[0][0]), abs=1e-5)
