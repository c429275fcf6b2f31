"""Predictions in Python: devices, and test-time augmentation."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.fabricate import COLOURS, composed, draw_picture

import imgclf
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.inference.predictor import choose_device


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool) -> None:
    """Let torch report so many GPUs, and MPS or none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"), [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda"), (1, True, "cuda")]
)
def test_auto_device_is_cuda_else_mps_else_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, expected: str
) -> None:
    pretend(monkeypatch, gpus, mps)
    assert choose_device("auto") == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "has 2 GPU"),
        ("mps", "not available on this machine; pass device=cpu"),
        ("meta", "not supported; expected auto, cpu, cuda"),
        ("gpu", "no such device; expected auto, cpu, cuda"),
        ("", "no such device"),
    ],
)
def test_device_that_the_machine_lacks_raises_config_error(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    pretend(monkeypatch, gpus=2, mps=False)
    with pytest.raises(imgclf.ConfigError, match=f"^device='{name}': .*{message}"):
        choose_device(name)


def test_device_is_taken_by_name_or_as_a_torch_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2, mps=True)
    for name in ("cpu", "mps", "cuda", "cuda:1"):
        assert choose_device(name) == choose_device(torch.device(name)) == torch.device(name)


def test_load_and_evaluate_refuse_a_missing_device_before_they_read_the_file(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, gpus=0, mps=False)
    path = tiny_run / "checkpoints" / "best.ckpt"
    with pytest.raises(imgclf.ConfigError, match="device='cuda': not available"):
        imgclf.load(tmp_path / "none.ckpt", device="cuda")
    with pytest.raises(imgclf.ConfigError, match="device='cuda': not available"):
        evaluate_checkpoint(composed(f"checkpoint='{path}'", "device=cuda", config="evaluate"), tmp_path)


def test_tta_averages_the_probabilities_over_all_flips(run_tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal,vertical]") / "checkpoints" / "best.ckpt"
    draw_picture(tmp_path / "one.png", (120, 90, 60), 7)
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    views = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    single = imgclf.load(path).predict_proba([np.ascontiguousarray(view) for view in views])
    assert np.ptp(single[:, 0]) > 1e-4, "the views must differ, or the test shows nothing"
    mean = imgclf.load(path, tta=True).predict_proba([pixels])
    assert np.allclose(mean[0], single.mean(axis=0), atol=1e-6)


def test_tta_without_label_preserving_flips_raises_config_error(tiny_run: Path) -> None:
    with pytest.raises(imgclf.ConfigError, match="names no flip that keeps the class"):
        imgclf.load(tiny_run / "checkpoints" / "best.ckpt", tta=True)


def test_evaluation_with_tta_writes_the_probabilities_of_predict_proba(
    run_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    path = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal]") / "checkpoints" / "best.ckpt"
    settings = composed(f"checkpoint='{path}'", "tta=true", "report=false", config="evaluate")
    evaluate_checkpoint(settings, tmp_path / "out")
    with (tmp_path / "out" / "predictions_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row["file"] for row in rows]
    written = np.array([[float(row[name]) for name in sorted(COLOURS)] for row in rows])
    assert np.allclose(written, imgclf.load(path, tta=True).predict_proba(files), atol=1e-6)
    assert not np.allclose(written, imgclf.load(path).predict_proba(files), atol=1e-6)
