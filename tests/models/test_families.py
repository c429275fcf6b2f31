"""Networks of timm's families: each trains, freezes, saves, loads and predicts, or is refused in one line."""

from typing import Any

import pytest
import torch
from support.networks import Outcome, families, try_networks
from torch import nn

from imgclf.config import ModelConfig
from imgclf.models.backbone import build_backbone, spare_strided_convolutions
from imgclf.models.network import build_network, to_channels_last

# network -> keywords that make it small, and the outcomes at 64 pixels and, if it doesn't work there, at 120
SMALL: dict[str, tuple[str, list[str]]] = {  # what once failed, each in its own way
    "fastvit_t8": (
        '{"layers": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]}',
        ["works"],
    ),  # a crash: strided 1x1 on RGB
    "eva02_tiny_patch14_224": ('{"depth": 1}', ["works"]),  # reads a module that it never calls
    "crossvit_tiny_240": ('{"depth": [[1, 1, 0]]}', ["refused", "works"]),
    "coat_tiny": ('{"serial_depths": [1, 1, 1, 1], "parallel_depth": 1}', ["works"]),  # gives a list of features
}


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """What came of the small networks."""
    return list(try_networks([f"{name}:{keywords}" for name, (keywords, _) in SMALL.items()], (64, 120), ("none", "2")))


@pytest.mark.trust(
    "a network of timm is trained, frozen, saved, loaded, or refused in a line", "a crash or a traceback"
)
@pytest.mark.parametrize("name", SMALL)
def test_network_works_or_is_refused_in_one_line(name: str, outcomes: list[Outcome]) -> None:
    tried = [outcome for outcome in outcomes if outcome.network == name]
    assert [outcome.kind for outcome in tried] == SMALL[name][1], [outcome.text for outcome in tried]


def test_size_that_a_network_cannot_take_is_refused_with_its_own(outcomes: list[Outcome]) -> None:
    refused = next(outcome for outcome in outcomes if outcome.kind == "refused")
    assert refused.text.startswith("model.backbone=crossvit_tiny_240 at image_size=64, ")
    assert refused.text.endswith("; its own image_size is 240")


@pytest.mark.exhaustive
@pytest.mark.trust("a family of timm's networks is tried", "a crash or a traceback")
def test_every_family_works_or_is_refused_in_one_line(record_property: Any) -> None:
    names = list(families().values())
    record_property("tried", len(names))
    last = {outcome.network: outcome for outcome in try_networks(names)}
    assert len(last) == len(names) > 90
    assert not [outcome for outcome in last.values() if outcome.kind not in ("works", "refused")]


@pytest.mark.parametrize("side", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("stride", [2, 3, (1, 4)])
def test_cropped_input_gives_the_same_outputs_and_gradients(side: int, stride: Any) -> None:
    torch.manual_seed(0)
    plain, cropped = nn.Conv2d(3, 5, 1, stride), nn.Conv2d(3, 5, 1, stride)
    cropped.load_state_dict(plain.state_dict())
    spare_strided_convolutions(cropped)
    images = torch.randn(2, 3, side, side)  # not in channels_last, where the plain one could end the process
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((plain, cropped), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(cropped.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)


def test_only_strided_1x1_convolutions_on_few_channels_are_cropped() -> None:
    def hooks(*arguments: Any, **options: Any) -> int:
        module = nn.Conv2d(*arguments, **options)
        spare_strided_convolutions(module)
        return len(module._forward_pre_hooks)

    assert [hooks(channels, 8, 1, 2) for channels in (1, 3, 15, 16)] == [1, 1, 1, 0]
    assert [hooks(3, 8, 1), hooks(3, 8, 3, 2), hooks(3, 9, 1, 2, groups=3), hooks(3, 8, 1, 2, padding=1)] == [0] * 4
    network = build_backbone("fastvit_t8", 3, 64, {"layers": [1, 1, 1, 1]}).network
    assert [name for name, module in network.named_modules() if module._forward_pre_hooks] == ["stem.0.conv_scale.conv"]


def test_network_with_3d_convolutions_is_built() -> None:
    network = build_network(ModelConfig(backbone="lambda_resnet26t"), 3, 3, 64)  # its lambda layers have some
    assert {5} == {parameter.ndim for parameter in network.parameters()} - {1, 2, 4}


def test_channels_last_leaves_3d_convolutions_as_they_are() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[1].weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
