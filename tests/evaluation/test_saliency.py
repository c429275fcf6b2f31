"""Saliency maps, checked where the answer is known."""

import numpy as np
import pytest
import torch

from imgclf.config import ModelConfig
from imgclf.errors import ConfigError
from imgclf.evaluation.saliency import explain, overlay
from imgclf.models import ImageModel
from imgclf.preprocess import Preprocess

SIDE = 64


def build_model(backbone: str = "small_cnn", freeze: str = "none", **head: object) -> ImageModel:
    kwargs = {"layers": [8, "pool", 8, "pool", 8, "pool"]} if backbone == "small_cnn" else {}
    config = {"backbone": backbone, "backbone_kwargs": kwargs, "head": head, "freeze": freeze}
    return ImageModel.build(ModelConfig.from_dict(config), ["dark", "bright"], Preprocess(size=SIDE)).eval()


def brightness_model(pool: str) -> ImageModel:
    """A model whose logit of `bright` depends on bright places alone: every layer passes the brightness on."""
    model = build_model(pool=pool)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = 1 / layer.weight.shape[1]
            layer.bias.zero_()
        output = model.network.head.output
        output.bias.zero_()
        output.weight.zero_()
        output.weight[1] = 1.0
    return model


def spot(row: int, column: int) -> torch.Tensor:
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    image[:, :, row : row + 16, column : column + 16] = 255
    return image


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (8, 40), (48, 16)])
def test_map_is_high_on_the_bright_spot_only(pool: str, row: int, column: int) -> None:
    heat = explain(brightness_model(pool), spot(row, column), torch.tensor([1]))[0]
    assert heat.shape == (SIDE, SIDE) and heat.max() == pytest.approx(1, abs=0.05)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert row - 4 <= peak[0] < row + 20 and column - 4 <= peak[1] < column + 20
    far = heat.copy()
    far[max(0, row - 12) : row + 28, max(0, column - 12) : column + 28] = 0
    assert far.max() == 0


def test_map_of_a_class_shows_only_the_places_that_count_for_it() -> None:
    """Behind `pool: flatten` the network may use the left half for one class: there, and only there, is its map."""
    model = brightness_model("flatten")
    with torch.no_grad():
        weights = model.network.head.output.weight.view(2, 8, 8, 8)
        weights.zero_()
        weights[1, :, :, :4], weights[0, :, :, 4:] = 1.0, 1.0
    both = torch.maximum(spot(24, 4), spot(24, 44))
    left, right = (explain(model, both, torch.tensor([target]))[0] for target in (1, 0))
    assert left[:, :32].max() > 0.9 and left[:, 40:].max() == 0
    assert right[:, 32:].max() > 0.9 and right[:, :24].max() == 0


def test_map_adds_up_to_the_logit() -> None:
    """With average pooling and no hidden layer the signed map sums to the logit without its bias."""
    model = brightness_model("avg")
    features = model.network.backbone(model.normalize(spot(8, 8)))
    logit = model(spot(8, 8))[0, 1] - model.network.head.output.bias[1]
    shares = (features.mean(dim=(2, 3)) * model.network.head.output.weight[1]).sum()
    assert torch.allclose(shares, logit, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv1_100", "vgg11", "resnet18"])
@pytest.mark.parametrize("freeze", ["all", "none"])
def test_maps_of_any_cnn_are_finite_and_change_nothing(name: str, freeze: str) -> None:
    model = build_model(name, freeze, hidden=[8])
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    heat = explain(model, images, torch.tensor([0, 1]))
    assert heat.shape == (2, SIDE, SIDE) and np.isfinite(heat).all() and 0 <= heat.min() <= heat.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_transformer_raises_config_error() -> None:
    model = build_model("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="no feature map"):
        explain(model, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.tensor([0]))


def test_overlay_keeps_the_image_where_the_map_is_zero() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 3] = 1
    mixed = overlay(pixels, heat)
    assert mixed.shape == (8, 8, 3) and mixed.dtype == np.uint8
    grey = np.abs(mixed[heat == 0].astype(int) - 0.9 * pixels[heat == 0].mean(axis=1, keepdims=True))
    assert grey.max() <= 1 and mixed[2, 3].tolist() != mixed[2, 4].tolist()
    assert overlay(pixels[:, :, :1], heat).shape == (8, 8, 3)
