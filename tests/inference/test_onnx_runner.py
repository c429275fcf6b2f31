"""An exported file in the place of a checkpoint: the same answers in every command, and no torch is loaded."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from support.fabricate import composed

import imgclf
from imgclf.export import main as export
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.predict import main as predict

Capture = pytest.CaptureFixture[str]
# Runs predict with several lists of words in one process, and ends with 1 if any of them loaded torch.
WITHOUT_TORCH = """
import json, sys
from imgclf.predict import main
codes = [main(words) for words in json.loads(sys.argv[1])]
sys.exit(any(codes) or bool({"torch", "timm", "pytorch_lightning", "rich"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's best checkpoint as an ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    assert export([str(tiny_run), "--out", str(path)]) == 0
    return path


def test_predict_answers_without_torch(exported: Path, colours: Path, tmp_path: Path) -> None:
    test, image = str(colours / "test"), str(colours / "test" / "red" / "000.png")
    calls = [
        [str(exported), image],
        [str(exported), test, "--json", "--threshold", "0.9"],
        [str(exported), test, "--csv", "--save-to", str(tmp_path / "sorted")],
        [str(exported), test, "--grid", str(tmp_path / "grid.png"), "--engine", "onnxruntime"],
    ]
    words = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, json.dumps(calls)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "grid.png").is_file() and len(list((tmp_path / "sorted").rglob("*.png"))) == 15


@pytest.mark.parametrize("options", [[], ["--threshold", "0.6"]])
def test_predict_prints_what_it_prints_for_the_checkpoint(
    exported: Path, tiny_run: Path, colours: Path, capsys: Capture, options: list[str]
) -> None:
    outputs = []
    for model in (exported, tiny_run):
        assert predict([str(model), str(colours / "test"), "--json", *options]) == 0
        out, err = capsys.readouterr()
        outputs.append((err, [json.loads(line) for line in out.splitlines()]))
    (ours, rows), (theirs, expected) = outputs
    assert ours == theirs and len(rows) == len(expected) == 15
    for row, other in zip(rows, expected, strict=True):
        assert row["predicted"] == other["predicted"] and row["probability"] == pytest.approx(
            other["probability"], abs=2e-5
        )


def test_test_time_augmentation_gives_the_checkpoints_answers(run_tiny: object, colours: Path, tmp_path: Path) -> None:
    run = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal,vertical]", "calibrate=true")  # type: ignore[operator]
    assert export([str(run), "--out", str(tmp_path / "model.onnx")]) == 0
    ours, theirs = (imgclf.load(path, tta=True) for path in (tmp_path / "model.onnx", run))
    assert theirs.model.metadata.temperature != 1
    np.testing.assert_allclose(ours.predict_proba(colours / "test"), theirs.predict_proba(colours / "test"), atol=1e-5)


def test_arrays_tensors_and_folders_are_taken_as_from_a_checkpoint(
    exported: Path, tiny_run: Path, colours: Path
) -> None:
    import torch

    ours, theirs = imgclf.load(exported), imgclf.load(tiny_run)
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    for images in (
        image,
        torch.from_numpy(image).permute(2, 0, 1),
        [image, image],
        colours / "test",
        image[None] / 255,
    ):
        np.testing.assert_allclose(ours.predict_proba(images), theirs.predict_proba(images), atol=1e-5)
    assert ours.classes == theirs.classes and ours.metrics == theirs.metrics and ours.history == theirs.history
    assert ours.predict_one(image).label == theirs.predict_one(image).label
    assert "small_cnn on 16 x 16 pixels, exported, on cpu" in repr(ours)


def test_evaluation_of_the_file_equals_that_of_the_checkpoint(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    metrics = []
    for number, model in enumerate((exported, tiny_run)):
        words = (f"checkpoint='{model}'", "split=test", "report=true")
        folder = tmp_path / str(number)
        evaluate_checkpoint(composed(*words, config="evaluate"), folder)
        metrics.append(json.loads((folder / "metrics.json").read_text())["test"])
        assert (folder / "report.html").is_file()
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[1].items():
        assert metrics[0][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra fast")
def test_openvino_gives_the_answers_of_onnxruntime(exported: Path, colours: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)
    expected = imgclf.load(exported, engine="onnxruntime").predict_proba(images)
    np.testing.assert_allclose(imgclf.load(exported, engine="openvino").predict_proba(images), expected, atol=1e-5)
    model = imgclf.load(exported).model
    assert model.choose_engine("auto", 10_000) == "openvino" and model.choose_engine("auto", 10) == "onnxruntime"  # type: ignore[attr-defined]
