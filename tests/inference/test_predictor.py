"""Predictions in Python: loading, inputs, devices and test-time augmentation."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from support.fabricate import COLOURS, composed, draw_image
from support.run_files import read_json, read_rows

import imgclf
from imgclf.console import silence_library_logs
from imgclf.errors import DataError
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.inference.inputs import each_input
from imgclf.inference.torch_runner import choose_device


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
        ("mps", "not available on this machine; choose cpu"),
        ("meta", "not supported; expected auto, cpu, cuda"),
        ("gpu", "no such device; expected auto, cpu, cuda"),
        ("", "no such device"),
    ],
)
def test_device_that_the_machine_lacks_raises_config_error(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    pretend(monkeypatch, gpus=2, mps=False)
    with pytest.raises(imgclf.ConfigError, match=f"^device {name}: .*{message}"):
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
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(imgclf.ConfigError, match="device cuda: not available"):
        imgclf.load(tmp_path / "empty.ckpt", device="cuda")
    with pytest.raises(imgclf.ConfigError, match="device cuda: not available"):
        evaluate_checkpoint(composed(f"checkpoint='{path}'", "device=cuda", config="evaluate"), tmp_path)


def test_tta_averages_the_probabilities_over_all_flips(run_tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal,vertical]") / "checkpoints" / "best.ckpt"
    draw_image(tmp_path / "one.png", (120, 90, 60), 7)
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    views = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    single = imgclf.load(path).predict_proba([np.ascontiguousarray(view) for view in views])
    assert np.ptp(single[:, 0]) > 1e-4, "the views must differ for the test to show anything"
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
    rows = read_rows(tmp_path / "out" / "predictions_test.csv")
    files = [row["file"] for row in rows]
    written = np.array([[float(row[f"p({name})"]) for name in sorted(COLOURS)] for row in rows])
    assert np.allclose(written, imgclf.load(path, tta=True).predict_proba(files), atol=1e-6)
    assert not np.allclose(written, imgclf.load(path).predict_proba(files), atol=1e-6)


def test_loaded_checkpoint_predicts_every_kind_of_input_as_the_run_did(
    tiny_run: Path, colours: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.ckpt"  # the file alone, without its run folder
    shutil.copy(tiny_run / "checkpoints" / "best.ckpt", moved)
    classifier = imgclf.load(moved)
    assert classifier.classes == tuple(COLOURS)
    assert classifier.metrics == read_json(tiny_run / "metrics.json")
    assert [row["epoch"] for row in classifier.history][:1] == [1]
    rows = read_rows(tiny_run / "predictions_test.csv")
    files = [row["file"] for row in rows]
    expected = np.array([[float(row[f"p({name})"]) for name in COLOURS] for row in rows], dtype=np.float32)
    probabilities = classifier.predict_proba(files)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities, expected, atol=1e-6)
    assert classifier.predict(files) == [row["predicted"] for row in rows]
    assert classifier.predict(files[0]) == rows[0]["predicted"]
    assert classifier.predict(Path(files[0])) == rows[0]["predicted"]
    assert classifier.predict(colours / "test") == classifier.predict(files)
    image = Image.open(files[0])
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for one in (image, array, tensor, tensor / 255):
        assert np.allclose(classifier.predict_proba(one), expected[:1], atol=1e-6)
    assert classifier.predict([image, files[1], array]) == [rows[i]["predicted"] for i in (0, 1, 0)]
    assert classifier.predict(np.stack([array, array])) == [rows[0]["predicted"]] * 2
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 3)


def test_unreadable_image_raises_image_error_or_is_returned_in_its_place(
    tiny_run: Path, colours: Path, tmp_path: Path
) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    good, bad = colours / "test" / "red" / "000.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    with pytest.raises(imgclf.ImageError, match=r"bad\.png"):
        classifier.predict([good, bad])
    first, second, third = classifier.predict([good, bad, tmp_path / "none.png"], errors="return")
    assert first in COLOURS
    assert isinstance(second, imgclf.ImageError) and isinstance(third, imgclf.ImageError)
    probabilities = classifier.predict_proba([good, bad], errors="return")
    assert np.isfinite(probabilities[0]).all() and np.isnan(probabilities[1]).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        classifier.predict(tmp_path / "empty")


def test_load_from_checkpoint_gives_a_classifier_whose_head_can_be_replaced(tiny_run: Path) -> None:
    classifier = imgclf.ImageClassifier.load_from_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    assert classifier.classes == tuple(COLOURS)
    assert not classifier.training
    other = classifier.replace_head(["a", "b"])
    assert other(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 2)


def test_lightning_trainer_tests_and_predicts_with_the_metrics_of_the_run(tiny_run: Path, colours: Path) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt").classifier
    data = imgclf.ImageDataModule(colours, preprocess=classifier.preprocess, batch_size=8)
    silence_library_logs()
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    (measured,) = trainer.test(classifier, datamodule=data, verbose=False)
    expected = read_json(tiny_run / "metrics.json")["test"]
    assert measured["test_accuracy"] == pytest.approx(expected["accuracy"])
    assert measured["test_loss"] == pytest.approx(expected["loss"], rel=1e-4)
    predictions = trainer.predict(classifier, datamodule=data)
    assert sum(len(part) for part in predictions or []) == 15


def test_loading_leaves_the_random_number_generator_unchanged(tiny_run: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    assert torch.equal(torch.rand(3), expected)


def test_predict_one_gives_the_class_its_probability_and_the_best_five(tiny_run: Path, colours: Path) -> None:
    classifier, image = imgclf.load(tiny_run / "checkpoints" / "best.ckpt"), colours / "test" / "red" / "000.png"
    prediction, probabilities = classifier.predict_one(image), classifier.predict_proba(image)[0]
    assert prediction.label == classifier.predict(image)
    assert prediction.probability == pytest.approx(probabilities.max())
    ranked = sorted(zip(classifier.classes, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])
    assert prediction.top == [(name, pytest.approx(probability)) for name, probability in ranked]
    lines = repr(prediction).splitlines()
    assert lines[0] == f"Prediction for {image}"
    assert [line.split() for line in lines[1:]] == [[name, f"{value:.1%}"] for name, value in ranked]
    assert classifier.predict_one(image, top=2).top == prediction.top[:2]
    with pytest.raises(imgclf.ConfigError, match="top=0: expected at least 1"):
        classifier.predict_one(image, top=0)
    with pytest.raises(imgclf.ConfigError, match="predict_one takes one image; predict takes several"):
        classifier.predict_one([image, image])
    with pytest.raises(imgclf.ImageError, match="expected an image file"):
        classifier.predict_one(colours / "none.png")


def test_unreadable_prediction_says_so_and_raises_its_error(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    (prediction,) = classifier.predict_each(each_input(tmp_path / "bad.jpg"))
    assert repr(prediction).startswith(f"Prediction for {tmp_path / 'bad.jpg'}\n  {tmp_path / 'bad.jpg'}")
    with pytest.raises(imgclf.ImageError, match=r"bad\.jpg"):
        _ = prediction.label


def test_text_of_a_predictor_names_file_network_and_classes(tiny_run: Path) -> None:
    path = tiny_run / "checkpoints" / "best.ckpt"
    expected = f"Predictor of {path}\n  small_cnn on 16 x 16 pixels, on cpu\n  3 classes: blue, green, red"
    assert repr(imgclf.load(path, device="cpu")) == expected
