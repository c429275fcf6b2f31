"""Where a network looked, checked where the answer is known."""

import numpy as np
import pytest
import torch

from imgclf.config import ModelConfig
from imgclf.errors import ConfigError
from imgclf.evaluation.saliency import explain, overlay
from imgclf.models import ImageModel
from imgclf.preprocess import Preprocess

SIDE = 64
PREPROCESS = Preprocess(size=SIDE)


def network(backbone: str = "small_cnn", freeze: str = "none", **head: object) -> ImageModel:
    kwargs = {"layers": [8, "pool", 8, "pool", 8, "pool"]} if backbone == "small_cnn" else {}
    model = {"backbone": backbone, "backbone_kwargs": kwargs, "head": head, "freeze": freeze}
    return ImageModel.build(ModelConfig.from_dict(model), ["dark", "bright"], PREPROCESS).eval()


def sees_brightness(pool: str) -> ImageModel:
    """A network that is sure of `bright` by the bright places alone: every layer hands the brightness on."""
    made = network(pool=pool)
    with torch.no_grad():
        for layer in (m for m in made.modules() if isinstance(m, torch.nn.Conv2d)):
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = 1 / layer.weight.shape[1]
            layer.bias.zero_()
        output = made.network.head.output
        output.bias.zero_()
        output.weight.zero_()
        output.weight[1] = 1.0
    return made


def spot(row: int, column: int) -> torch.Tensor:
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    image[:, :, row : row + 16, column : column + 16] = 255
    return image


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (8, 40), (48, 16)])
def test_the_bright_spot_is_found(pool: str, row: int, column: int) -> None:
    heat = explain(sees_brightness(pool), spot(row, column), torch.tensor([1]))[0]
    assert heat.shape == (SIDE, SIDE) and heat.max() == pytest.approx(1, abs=0.05)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert row - 4 <= peak[0] < row + 20 and column - 4 <= peak[1] < column + 20
    far = heat.copy()
    far[max(0, row - 12) : row + 28, max(0, column - 12) : column + 28] = 0
    assert far.max() == 0


def test_a_place_that_counts_for_one_class_only() -> None:
    """Behind `pool: flatten` the network may look at the left half for one class: there, and only there, is the map."""
    made = sees_brightness("flatten")
    with torch.no_grad():
        weights = made.network.head.output.weight.view(2, 8, 8, 8)
        weights.zero_()
        weights[1, :, :, :4], weights[0, :, :, 4:] = 1.0, 1.0
    both = torch.maximum(spot(24, 4), spot(24, 44))
    left, right = (explain(made, both, torch.tensor([target]))[0] for target in (1, 0))
    assert left[:, :32].max() > 0.9 and left[:, 40:].max() == 0
    assert right[:, 32:].max() > 0.9 and right[:, :24].max() == 0


def test_the_map_adds_up_to_the_logit() -> None:
    """With average pooling and no hidden layer the signed map sums to the logit without its bias, place by place."""
    made = sees_brightness("avg")
    features = made.network.backbone(made.normalize(spot(8, 8)))
    logit = made(spot(8, 8))[0, 1] - made.network.head.output.bias[1]
    shares = (features.mean(dim=(2, 3)) * made.network.head.output.weight[1]).sum()
    assert torch.allclose(shares, logit, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv1_100", "vgg11", "resnet18"])
@pytest.mark.parametrize("freeze", ["all", "none"])
def test_any_cnn_frozen_or_not(name: str, freeze: str) -> None:
    made = network(name, freeze, hidden=[8])
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    heat = explain(made, images, torch.tensor([0, 1]))
    assert heat.shape == (2, SIDE, SIDE) and np.isfinite(heat).all() and 0 <= heat.min() <= heat.max() <= 1
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_a_transformer_has_no_map() -> None:
    made = network("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="no feature map"):
        explain(made, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.tensor([0]))


def test_the_overlay_keeps_the_picture_where_nothing_speaks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[2, 3] = 1
    mixed = overlay(pixels, heat)
    assert mixed.shape == (8, 8, 3) and mixed.dtype == np.uint8
    grey = np.abs(mixed[heat == 0].astype(int) - 0.9 * pixels[heat == 0].mean(axis=1, keepdims=True))
    assert grey.max() <= 1 and mixed[2, 3].tolist() != mixed[2, 4].tolist()
    assert overlay(pixels[:, :, :1], heat).shape == (8, 8, 3)
