"""Exported files: the answers of the checkpoint, the same bytes each time, and nothing written that differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import imgclf
from imgclf.config import HeadConfig, ModelConfig
from imgclf.errors import CheckpointError
from imgclf.export import main
from imgclf.exporting import export_onnx, onnx_file
from imgclf.exporting.run import images_of_run
from imgclf.files import onnx_format
from imgclf.models.exported import METADATA_KEY, load_exported
from imgclf.models.image_model import ImageModel, load_image_model
from imgclf.preprocess import Preprocess

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's best checkpoint as an ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    assert main([str(tiny_run), "--out", str(path)]) == 0
    return path


def noise(model: ImageModel, count: int) -> np.ndarray:
    side, channels = model.preprocess.size, model.preprocess.channels
    return np.random.default_rng(1).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def answers(model: ImageModel, images: np.ndarray) -> np.ndarray:
    """The checkpoint's own probabilities, by torch alone."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        return (logits / model.temperature).softmax(dim=1).numpy()


def test_a_plain_runtime_gives_the_checkpoints_answers_for_any_batch(exported: Path, tiny_run: Path) -> None:
    model, session = load_image_model(tiny_run / "checkpoints" / "best.ckpt"), onnxruntime.InferenceSession(exported)
    for count in (1, 2, 7):
        images = noise(model, count)
        (actual,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(actual, answers(model, images), atol=1e-6)


def test_the_file_is_valid_and_names_what_it_takes_and_gives(exported: Path, tiny_run: Path) -> None:
    proto = onnx.load(exported)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", onnx_file.OPSET)]
    facts = json.loads({entry.key: entry.value for entry in proto.metadata_props}[METADATA_KEY])
    model = load_image_model(tiny_run / "checkpoints" / "best.ckpt")
    assert facts["classes"] == list(model.classes) and Preprocess.from_dict(facts["preprocess"]) == model.preprocess
    assert facts["metadata"]["metrics"] == json.loads((tiny_run / "metrics.json").read_text())
    assert facts["opset"] == onnx_file.OPSET and facts["licence"] is None and facts["version"]
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node), "no paths of this machine"


def test_the_same_checkpoint_gives_the_same_bytes(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    assert main([str(tiny_run), "--out", str(tmp_path / "again.onnx")]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_temperature_head_and_grey_images_are_in_the_file(tmp_path: Path) -> None:
    preprocess = Preprocess(size=24, mean=(0.4,), std=(0.3,), resize="letterbox")
    config = ModelConfig(backbone="small_cnn", pretrained=False, in_chans=1, head=HeadConfig(hidden=[5]))
    model = ImageModel.build(config, ["a", "b", "c"], preprocess, seed=3).eval()
    model.metadata.temperature = 2.5
    images = noise(model, 5)
    done = export_onnx(model, tmp_path / "grey.onnx", images)
    loaded = load_exported(tmp_path / "grey.onnx")
    assert loaded.temperature == 2.5 and loaded.preprocess == preprocess and loaded.classes == ("a", "b", "c")
    np.testing.assert_allclose(loaded.probabilities(images), answers(model, images), atol=1e-6)
    assert done.difference < 1e-6 and done.size == (tmp_path / "grey.onnx").stat().st_size


def test_half_is_half_the_size_and_keeps_the_classes(
    tiny_run: Path, exported: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "half.onnx"
    assert main([str(tiny_run), "--half", "--out", str(path)]) == 0
    assert "the same classes" in capsys.readouterr().out
    whole, half = load_exported(exported), load_exported(path)
    images = noise(load_image_model(tiny_run / "checkpoints" / "best.ckpt"), 8)
    difference = np.abs(whole.probabilities(images) - half.probabilities(images)).max()
    assert 0 < difference < 1e-2
    tensors = [
        {t.name.removesuffix(".half"): t for t in onnx.load(file).graph.initializer} for file in (exported, path)
    ]
    large = {name for name, tensor in tensors[0].items() if len(tensor.raw_data) >= 4096}
    assert large and tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert len(tensors[1][name].raw_data) == len(tensor.raw_data) // (2 if name in large else 1)


@pytest.mark.parametrize(("drift", "words"), [(0.01, "differ by up to 1"), (float("nan"), "differ by up to nan")])
def test_a_file_that_answers_otherwise_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, drift: float, words: str
) -> None:
    own = onnx_file._answers
    monkeypatch.setattr(onnx_file, "_answers", lambda model, images: own(model, images) + np.float32(drift))
    assert main([str(tiny_run), "--out", str(tmp_path / "no.onnx")]) == 2
    error = capsys.readouterr().err
    assert words in error and "not written" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_imgclf_would_refuse_to_load_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(onnx_format, "_REFUSED", {"Conv"})
    assert main([str(tiny_run), "--out", str(tmp_path / "no.onnx")]) == 2
    error = capsys.readouterr().err
    assert "not written, it couldn't be loaded: calls the operator Conv" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_export_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    model = load_image_model(tiny_run / "checkpoints" / "best.ckpt")

    class Branching(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) if images.sum() > 0 else images[:, :, 0, 0]

    model.network = Branching()
    with pytest.raises(CheckpointError, match=r"torch can't export this network \(") as caught:
        export_onnx(model, tmp_path / "no.onnx", noise(model, 2))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_images_of_the_run_are_checked_or_noise_where_they_are_gone(
    tiny_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = load_image_model(tiny_run / "checkpoints" / "best.ckpt")
    images, words = images_of_run(model)
    assert words == "12 of the run's images" and images.shape == (12, 16, 16, 3)  # all of the validation images
    model.metadata.data.root = str(tmp_path / "gone")
    images, words = images_of_run(model)
    assert "noise" in words and len(images) == 16


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere: no such"),
        (["{run}", "--out", "model.pt"], "--out model.pt: expected the name of a file that ends in .onnx"),
    ],
)
def test_mistakes_are_one_line(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main([word.format(run=tiny_run) for word in words])
    except SystemExit as stop:
        code = int(str(stop.code))
    error = capsys.readouterr().err
    assert code == 2 and line in error and error.count("\n") == 1, error
    assert not list(tmp_path.rglob("*.onnx"))


def test_train_writes_the_file_and_makes_it_again_where_it_is_missing(
    run_tiny: Callable[..., Path], capsys: Capture
) -> None:
    folder = run_tiny("trainer.max_epochs=1", "export=true")
    file = folder / "checkpoints" / "best.onnx"
    data = file.read_bytes()
    assert "exported: " in capsys.readouterr().out
    assert imgclf.load(file).metrics == imgclf.load(folder).metrics
    file.unlink()
    imgclf.train(resume=str(folder))
    assert file.read_bytes() == data


def test_export_beside_the_checkpoint_by_default(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    assert main([str(copy)]) == 0
    assert (copy / "checkpoints" / "best.onnx").is_file()
