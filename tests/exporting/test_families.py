"""The smallest network of each of timm's families as an ONNX file: the checkpoint's answers, or a refusal in one line."""

from pathlib import Path

import numpy as np
import pytest
from support.networks import families

from imgclf.config import ModelConfig
from imgclf.errors import CheckpointError, ConfigError
from imgclf.exporting import export_onnx
from imgclf.models.image_model import ImageModel
from imgclf.preprocess import Preprocess

# Networks of timm that the ordinary tests export, cut down to one block.
SMALL = {"vit_tiny_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2}}


def try_export(name: str, keywords: dict[str, object], size: int | None, path: Path) -> str:
    """Return "exported", or the line of the refusal."""
    try:
        preprocess = Preprocess.of(name, **({"size": size} if size else {}))
        config = ModelConfig(backbone=name, pretrained=False, backbone_kwargs=keywords)
        model = ImageModel.build(config, ["a", "b", "c"], preprocess).eval()
    except (ConfigError, CheckpointError) as error:
        return str(error)
    shape = (3, preprocess.size, preprocess.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    try:
        assert export_onnx(model, path, images).difference <= 1e-4
    except CheckpointError as error:
        assert not path.exists()
        return str(error)
    return "exported"


@pytest.mark.parametrize("name", SMALL)
def test_small_network_is_exported(name: str, tmp_path: Path) -> None:
    assert try_export(name, SMALL[name], 64, tmp_path / "model.onnx") == "exported"


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", sorted(families()))
def test_family_is_exported_or_refused_in_one_line(
    family: str, tmp_path: Path, record_property: pytest.FixtureRequest
) -> None:
    outcome = try_export(families()[family], {}, None, tmp_path / "model.onnx")
    print(f"{family}: {outcome}")  # shown by -rP
    record_property("outcome", outcome)  # type: ignore[operator]
    assert "\n" not in outcome and len(outcome) < 500
