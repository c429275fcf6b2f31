"""Weights files in the folder $IMGCLF_WEIGHTS are found by the name of their network."""

from pathlib import Path

import pytest
import timm
import torch

from imgclf.errors import CheckpointError, ConfigError
from imgclf.models.weights import find_weights
from imgclf.training.classifier import ImageClassifier


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLF_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "name", "found"),
    [
        ("mobilenetv2_100.safetensors", "mobilenetv2_100", True),
        ("mobilenetv2_100.pth", "mobilenetv2_100", True),
        ("mobilenetv2_100.ra_in1k.safetensors", "mobilenetv2_100", True),
        ("mobilenetv2_100_ra_in1k.safetensors", "mobilenetv2_100", True),
        ("mobilenetv2_100.ra_in1k.safetensors", "mobilenetv2_100.ra_in1k", True),
        ("mobilenetv2_100.other.safetensors", "mobilenetv2_100.ra_in1k", False),
        ("resnet18d.safetensors", "resnet18", False),
        ("tf_mobilenetv3_small_100_x.safetensors", "tf_mobilenetv3_small_075", False),
        ("mobilenetv3_large_100_a1_in1k.safetensors", "mobilenetv3_large_100", True),
        ("mobilenetv2_100.json", "mobilenetv2_100", False),
    ],
)
def test_file_is_found_by_the_name_of_its_network(folder: Path, file: str, name: str, found: bool) -> None:
    (folder / file).touch()
    assert find_weights(name) == (folder / file if found else None)


def test_exact_name_wins_over_one_with_a_tag(folder: Path) -> None:
    (folder / "resnet18.pth").touch()
    (folder / "resnet18.a1_in1k.pth").touch()
    assert find_weights("resnet18") == folder / "resnet18.pth"


def test_several_files_for_a_network_raise_config_error_with_their_names(folder: Path) -> None:
    (folder / "resnet18.a1_in1k.pth").touch()
    (folder / "resnet18.tv_in1k.pth").touch()
    with pytest.raises(ConfigError, match=r"resnet18\.a1_in1k\.pth, resnet18\.tv_in1k\.pth"):
        find_weights("resnet18")


def test_missing_folder_raises_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLF_WEIGHTS", "/nowhere")
    with pytest.raises(ConfigError, match=r"\$IMGCLF_WEIGHTS=/nowhere: no such folder"):
        find_weights("resnet18")


def test_no_folder_means_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGCLF_WEIGHTS", raising=False)
    assert find_weights("resnet18") is None


def test_imagenet_prediction_takes_the_weights_from_the_folder(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imgclf.inference import load_imagenet

    monkeypatch.setenv("IMGCLF_WEIGHTS", str(shared / "weights"))
    predictor = load_imagenet("mobilenetv2_100")
    assert Path(predictor.path).parent == shared / "weights" and len(predictor.classes) == 1000


def test_classifier_refuses_weights_that_need_another_network_than_its_own(tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet", num_classes=0, pad_type="same")
    torch.save(source.state_dict(), tmp_path / "same.pth")
    (tmp_path / "same.json").write_text(
        '{"architecture": "test_efficientnet", "create_model_kwargs": {"pad_type": "same"}}'
    )
    with pytest.raises(CheckpointError, match=r"need a network with backbone_kwargs=\{'pad_type': 'same'\}"):
        ImageClassifier({"backbone": "test_efficientnet"}, ["a", "b"], {"size": 32}).load_pretrained(
            tmp_path / "same.pth"
        )
    keywords = {"backbone": "test_efficientnet", "backbone_kwargs": {"pad_type": "same"}}
    ImageClassifier(keywords, ["a", "b"], {"size": 32}).load_pretrained(tmp_path / "same.pth")
