"""Networks: number of parameters, heads, freezing, weights, small CNNs; and the optimizers that train them."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.fabricate import composed
from timm.data import ImageNetInfo
from torch import nn

from imgclf.config import ModelConfig, OptimizerConfig
from imgclf.errors import CheckpointError, ConfigError
from imgclf.images import read_image
from imgclf.models.network import Network, build_network, count_parameters, layer_table
from imgclf.models.small_cnn import SmallCNN
from imgclf.models.weights import load_weights, read_note
from imgclf.preprocess import Preprocess
from imgclf.training.classifier import ImageClassifier
from imgclf.training.optim import build_optimizer

# preset -> classes, side, (trainable, total) of REFERENCE, checked there against Keras 3.15
REFERENCE = {
    # Keras's map of MobileNet v1 at 40 px is 1x1, timm's 2x2: the last layer has 128 * 4 inputs, not 128.
    # 150,808 + 3 * 128 * 24 = 160,024 and 3,379,672 + 9,216 = 3,388,888.
    "sign_mnist_mobilenet_initial": (24, 40, (150_808 + 3 * 128 * 24, 3_379_672 + 3 * 128 * 24)),
    "sign_mnist_mobilenet": (24, 80, (268_568, 3_497_432)),
    "asl_cnn": (29, 150, (652_333, 652_333)),
    "asl_cnn_large_batch": (29, 150, (652_333, 652_333)),
    "asl_vgg16": (29, 150, (237_597, 14_952_285)),
    "cards_mobilenetv3_initial": (53, 224, (1_007_701, 1_019_813)),
    "cards_mobilenetv3": (53, 224, (1_012_565, 1_024_677)),
    "rps_cnn": (3, 300, (5_631_267, 5_631_267)),
    "rps_cnn_dropout": (3, 300, (20_164_163, 20_164_163)),
    "rps_cnn_batchnorm": (3, 300, (20_164_867, 20_165_571)),
    "sports_mobilenetv2_frozen": (15, 224, (331_791, 2_589_775)),
    "sports_mobilenetv2_finetune": (15, 224, (743_951, 2_589_775)),
}


@pytest.mark.parametrize("preset", REFERENCE)
def test_presets_have_the_parameters_of_the_reference(preset: str) -> None:
    classes, size, expected = REFERENCE[preset]
    settings = composed(f"experiment={preset}")
    assert settings.image_size == size
    network = build_network(settings.model, classes, 3, size)
    assert count_parameters(network) == expected


def tiny(**changes: Any) -> Network:
    model = {"backbone": "mobilenetv3_small_050", "head": {}, "freeze": "none", **changes}
    return build_network(ModelConfig.from_dict(model), 5, 3, 32)


@pytest.mark.parametrize("size", [28, 40, 80, 150, 300])
@pytest.mark.parametrize("channels", [1, 3])
def test_network_takes_any_size_grey_or_rgb(size: int, channels: int) -> None:
    model = ModelConfig.from_dict({"backbone": "mobilenetv3_small_050", "head": {"pool": "flatten"}})
    network = build_network(model, 4, channels, size).eval()
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224"])
def test_transformers_and_resnets_take_a_head(name: str) -> None:
    network = build_network(ModelConfig.from_dict({"backbone": name, "head": {"hidden": [8]}}), 4, 3, 64).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
@pytest.mark.parametrize("pool_at", ["before", "after"])
def test_head_has_the_layers_of_its_settings(pool: str, pool_at: str) -> None:
    head = {
        "hidden": [6, 4],
        "pool": pool,
        "pool_at": pool_at,
        "batch_norm": True,
        "dropout": 0.5,
        "activation": "gelu",
    }
    network = tiny(head=head).eval()
    width, side = network.backbone.shape[0], network.backbone.shape[1]
    area = side**2 if pool == "flatten" else 1
    first = width * (area if pool_at == "before" else 1)
    last = 4 * (area if pool_at == "after" else 1)
    expected = (first + 1) * 6 + 12 + (6 + 1) * 4 + 8 + (last + 1) * 5
    assert count_parameters(network.head)[0] == expected
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_hidden_layer_before_the_pool_is_a_dense_layer_at_each_place() -> None:
    network = tiny(head={"hidden": [6], "pool": "avg", "pool_at": "after"}).eval()
    features = torch.randn(2, *network.backbone.shape)
    layer = network.head.hidden[0]
    flat = features.flatten(2).transpose(1, 2)  # [B, h * w, C]
    dense = torch.relu(flat @ layer.weight[:, :, 0, 0].T + layer.bias).mean(dim=1)
    assert torch.allclose(network.head.output(dense), network.head(features), atol=1e-6)


@pytest.mark.parametrize(("l2", "weights"), [(0.5, (0.5, 0.5, 0.0)), ([0.1, 0.0, 0.2], (0.1, 0.0, 0.2))])
def test_l2_term_weighs_each_dense_layer(l2: Any, weights: tuple[float, ...]) -> None:
    head = tiny(head={"hidden": [6, 4], "l2": l2}).head
    dense = [head.hidden[0], head.hidden[2], head.output]
    expected = sum(w * float((layer.weight.detach() ** 2).sum()) for w, layer in zip(weights, dense, strict=True))
    assert float(head.penalty().detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="one for each of the 3 dense layers"):
        tiny(head={"hidden": [6, 4], "l2": [0.1]})


def test_head_is_initialised_as_keras_does() -> None:
    layer = tiny(head={"hidden": [64]}).head.hidden[0]
    limit = (6 / (layer.in_features + 64)) ** 0.5  # Glorot and Bengio 2010, eq. 16
    assert float(layer.weight.detach().abs().max()) <= limit
    assert float(layer.weight.detach().abs().max()) > 0.95 * limit
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("freeze", "trainable"),
    [("none", None), ("all", 0), (2, ["blocks.5.0.conv", "blocks.5.0.bn1"]), (["*bn*", "*conv_stem*"], None)],
)
def test_freeze_selects_the_parameters_to_train(freeze: Any, trainable: Any) -> None:
    network = tiny(freeze=freeze)
    trained = {
        name.removeprefix("network.").rpartition(".")[0]
        for name, p in network.backbone.named_parameters()
        if p.requires_grad
    }
    if freeze == "all":
        assert not trained
    elif freeze == 2:
        assert sorted(trained) == sorted(trainable)
    elif freeze == "none":
        assert len(trained) > 50
    else:
        assert trained and not any("bn" in name or name == "conv_stem" for name in trained)
    assert all(p.requires_grad for p in network.head.parameters())


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    network = tiny(freeze=["network.blocks.0*", "network.bn1*", "network.conv_stem*"]).train()
    before = {name: value.clone() for name, value in network.backbone.named_buffers()}
    network(torch.randn(4, 3, 32, 32) * 9)
    changed = {name for name, value in network.backbone.named_buffers() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith(("network.bn1", "network.blocks.0"))]
    network.freeze("none")
    network.train()
    network(torch.randn(4, 3, 32, 32) * 9)
    assert not torch.equal(network.backbone.network.bn1.running_mean, before["network.bn1.running_mean"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "mobilenetv3_smal_050"}, "did you mean mobilenetv3_small_050"),
        ({"backbone": "hf-hub:someone/model"}, "timm has no network of that name"),
        ({"backbone": "local-dir:/tmp"}, "timm has no network of that name"),
        ({"backbone_kwargs": {"colour": 3}}, "colour"),
        ({"freeze": "some"}, "expected none, all, a number"),
        ({"freeze": ["nothing*"]}, "'nothing\\*' matches no parameter"),
        ({"head": {"pool": "mean"}}, "avg, max, flatten"),
        ({"head": {"activation": "sine"}}, "activation='sine'"),
        ({"head": {"widths": [3]}}, "widths"),
        ({"head": {"hidden": [0]}}, "hidden=0: expected a whole number of at least 1"),
        ({"backbone": "small_cnn", "backbone_kwargs": {"layers": ["pool"]}}, "filters first"),
        ({"backbone": "small_cnn", "backbone_kwargs": {"depth": 3}}, "has no depth"),
    ],
)
def test_invalid_model_settings_raise_config_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        tiny(**changes)
    assert "\n" not in str(raised.value)


def save_weights(folder: Path, name: str, note: dict[str, Any] | None = None) -> Path:
    path = folder / f"{name}.pth"
    torch.manual_seed(7)
    torch.save(timm.create_model(name, pretrained=False, num_classes=9).state_dict(), path)
    if note is not None:
        path.with_suffix(".json").write_text(json.dumps(note))
    return path


def test_local_weights_are_copied_and_adapted_to_grey(tmp_path: Path) -> None:
    network = tiny()
    path = save_weights(tmp_path, "mobilenetv3_small_050")
    load_weights(network.backbone, path, "mobilenetv3_small_050")
    state = torch.load(path, weights_only=True)
    assert torch.equal(network.backbone.network.conv_stem.weight, state["conv_stem.weight"])
    grey = build_network(ModelConfig(backbone="mobilenetv3_small_050"), 5, 1, 32)
    load_weights(grey.backbone, path, "mobilenetv3_small_050")
    assert torch.allclose(grey.backbone.network.conv_stem.weight, state["conv_stem.weight"].sum(dim=1, keepdim=True))


def test_weights_of_another_network_raise_checkpoint_error(tmp_path: Path) -> None:
    network = tiny()
    other = save_weights(tmp_path, "mobilenetv3_small_075")
    with pytest.raises(CheckpointError, match=r"has shape .*check the network's name"):
        load_weights(network.backbone, other, "mobilenetv3_small_050")
    resnet = save_weights(tmp_path, "resnet10t")
    with pytest.raises(CheckpointError, match=r"lacks .* tensors of mobilenetv3_small_050"):
        load_weights(network.backbone, resnet, "mobilenetv3_small_050")
    noted = save_weights(tmp_path, "mobilenetv3_small_050", {"architecture": "vgg16"})
    with pytest.raises(CheckpointError, match=r"weights of vgg16, but the network is mobilenetv3_small_050"):
        read_note(noted, "mobilenetv3_small_050")


def test_replace_head_keeps_the_backbone() -> None:
    model = {"backbone": "mobilenetv3_small_050", "head": {"hidden": [7]}}
    first = ImageClassifier(model, ["a", "b"], Preprocess(size=32).to_dict(), seed=1)
    second = first.replace_head(["x", "y", "z"], {"hidden": []})
    assert second.classes == ("x", "y", "z")
    assert second.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)
    for name, value in first.network.backbone.state_dict().items():
        assert torch.equal(value, second.network.backbone.state_dict()[name])
    assert first.replace_head(["x", "y"]).network.head.hidden[0].out_features == 7


SMALL: dict[str, dict[str, Any]] = {
    "same": {"layers": [4, "pool", 6, "pool"]},
    "valid": {"layers": [4, "pool", 6, 5, "pool"], "padding": "valid"},
    "batch_norm": {"layers": [4, "pool", 6, 5], "padding": "valid", "batch_norm": True},
}


def plain(network: SmallCNN) -> nn.Sequential:
    """Return the same layers as torch's own modules, one after another, sharing nothing."""
    modules: list[nn.Module] = []
    for module in copy.deepcopy(network.features):
        if isinstance(module, nn.Conv2d):
            conv = nn.Conv2d(module.in_channels, module.out_channels, 3, padding=module.padding)
            conv.load_state_dict(module.state_dict())
            modules += [conv, nn.ReLU(), *([nn.MaxPool2d(2)] if module.pool else [])]
        else:
            assert isinstance(module, (nn.BatchNorm2d, nn.MaxPool2d))
            modules.append(module)
    return nn.Sequential(*modules)


def small(kind: str) -> SmallCNN:
    torch.manual_seed(3)
    network = SmallCNN(**SMALL[kind], num_classes=0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("batch", "side"), [(1, 17), (3, 22), (2, 23)])
def test_small_cnn_equals_plain_layers(kind: str, batch: int, side: int) -> None:
    network = small(kind)
    reference = plain(network)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    images[:, :, :8, :8] = 0.5  # where all four values of a pool are the same, the first takes the gradient
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [net(x) for net, x in zip((network.forward_features, reference), inputs, strict=True)]
    assert outputs[0].shape == outputs[1].shape
    assert torch.allclose(*outputs, atol=1e-6)
    weight = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weight).sum().backward()
    networks = zip(inputs, (network, reference), strict=True)
    gradients = [[x.grad, *(p.grad for p in net.parameters())] for x, net in networks]
    for actual, expected in zip(*gradients, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SMALL)
def test_small_cnn_without_gradients_and_traced_equals_plain_layers(kind: str) -> None:
    network = small(kind).eval()
    reference = plain(network).eval()
    images = torch.randn(2, 3, 22, 22).to(memory_format=torch.channels_last)
    expected, before = reference(images).detach(), images.clone()
    with torch.no_grad():
        assert torch.allclose(network.forward_features(images), expected, atol=1e-6)
        trace: Any = torch.jit.trace
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.15 calls its tracer old
            traced = trace(network.features, images)
        assert torch.allclose(traced(images), expected, atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(network.forward_features(images), expected, atol=1e-6)
    assert torch.equal(images, before)  # nothing works in place on what comes in, such as cached features


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "nesterov"])
def test_fused_optimizers_take_the_same_steps_and_resume_exactly(name: str, tmp_path: Path) -> None:
    weights = []
    for options in ({}, {"fused": False}, "resumed", "reordered"):
        torch.manual_seed(5)
        network = tiny(head={"hidden": [6], "l2": 0.1})
        keywords = options if isinstance(options, dict) else {}
        settings = {"name": name, "lr": 1e-2, "weight_decay": 0.1, "options": keywords}
        optimizer = build_optimizer(network, OptimizerConfig.from_dict(settings), True)
        assert optimizer.defaults["fused"] is (options != {"fused": False})
        for step in range(4):
            if step == 2 and not isinstance(options, dict):
                torch.save(optimizer.state_dict(), tmp_path / "state.pt")
                state = torch.load(tmp_path / "state.pt", weights_only=True)
                if options == "reordered":  # as a file may bring them
                    for values in state["state"].values():
                        values.update({k: v.contiguous() for k, v in values.items() if torch.is_tensor(v)})
                optimizer = build_optimizer(network, OptimizerConfig.from_dict(settings), True)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            loss = network(images.to(memory_format=torch.channels_last)).square().sum() + network.head.penalty()
            loss.backward()
            for parameter in network.parameters():  # torch's fused update needs it
                wide = [axis for axis in range(parameter.ndim) if parameter.shape[axis] > 1]
                assert parameter.grad is not None
                assert all(parameter.grad.stride(axis) == parameter.stride(axis) for axis in wide)
                # the same for all: Adam would make a step of its own out of rounding in a gradient that is all but zero
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
                parameter.grad.copy_(noise)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    fused, plain_steps, resumed, reordered = weights
    assert torch.equal(fused, resumed)
    assert torch.equal(fused, reordered)
    assert torch.allclose(fused, plain_steps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "names", "shapes"),
    [
        (
            "mobilenetv2_035",
            ["conv_stem", "bn1", *(f"blocks.{i}" for i in range(7)), "conv_head", "bn2"],
            {"blocks.6": (112, 2, 2)},
        ),
        (
            "resnet18",
            ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"],
            {"conv1": (64, 32, 32), "layer4": (512, 2, 2)},
        ),
        ("vgg11", [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)], {"features.0": (64, 64, 64)}),
    ],
)
def test_the_parts_of_a_network_add_up_and_leave_it_unchanged(
    backbone: str, names: list[str], shapes: dict[str, tuple[int, ...]]
) -> None:
    config = ModelConfig.from_dict(
        {"backbone": backbone, "freeze": "none", "head": {"hidden": [8, 4], "batch_norm": True}}
    )
    network = build_network(config, 3, 3, 64).train()
    before = copy.deepcopy(network.state_dict())
    parts = layer_table(network, 3, 64)
    head = ["head.hidden.0", "head.hidden.2", "head.hidden.3", "head.hidden.5", "head.output"]
    assert [part.name for part in parts] == [*names, *head]
    outputs = {part.name: part.output for part in parts}
    assert outputs.items() >= {**shapes, "head.hidden.0": (8,), "head.output": (3,)}.items()
    assert (
        sum(part.trainable for part in parts),
        sum(part.trainable + part.frozen for part in parts),
    ) == count_parameters(network)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_the_parts_of_a_transformer_have_its_tokens_and_a_frozen_network_stays_frozen() -> None:
    kwargs = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    config = ModelConfig.from_dict({"backbone": "vit_tiny_patch16_224", "backbone_kwargs": kwargs, "freeze": "all"})
    network = build_network(config, 3, 3, 224).train()
    parts = layer_table(network, 3, 224)
    assert [part.name for part in parts] == [
        "cls_token, pos_embed",
        "patch_embed",
        "blocks.0",
        "blocks.1",
        "norm",
        "head.output",
    ]
    assert [part.trainable for part in parts] == [0, 0, 0, 0, 0, 24 * 3 + 3]
    assert sum(part.trainable + part.frozen for part in parts) == count_parameters(network)[1]
    assert network.training and not network.backbone.training


class _Remembers(nn.Module):
    """A layer that keeps a tensor of its first call, and draws a number in each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.rand(1)
        return self.inner(x) * (1 + self.kept)  # type: ignore[no-any-return]


def test_the_table_of_layers_leaves_nothing_behind_that_breaks_training_and_draws_no_random_number() -> None:
    config = ModelConfig.from_dict({"backbone": "resnet10t", "freeze": "none", "head": {"hidden": [4]}})
    network = build_network(config, 3, 3, 32).train()
    network.head = _Remembers(network.head)  # type: ignore[assignment]
    before = torch.random.get_rng_state()
    layer_table(network, 3, 32)
    assert torch.equal(torch.random.get_rng_state(), before)
    network(torch.rand(2, 3, 32, 32)).sum().backward()


# class -> its name in ImageNet, among the best three of most of its images
ZERO_SHOT = {"archery": "bow", "baseball": "ballplayer", "basketball": "basketball", "volleyball": "volleyball"}


@pytest.mark.parametrize(
    "file", ["mobilenetv2_100_tfslim_in1k", "tf_mobilenetv3_small_100_qat8_in1k", "mobilenetv1_100_tf_qat8_in1k_fp16"]
)
def test_real_weights_recognise_real_photographs(shared: Path, file: str) -> None:
    from safetensors.torch import load_file

    path = shared / "weights" / f"{file}.safetensors"
    name = json.loads(path.with_suffix(".json").read_text())["architecture"]
    note = read_note(path, name)
    network = build_network(ModelConfig(backbone=name, backbone_kwargs=dict(note.kwargs)), 1000, 3, 224).eval()
    load_weights(network.backbone, path, name)
    full = timm.create_model(name, pretrained=False, **note.kwargs).eval()  # timm's own head on our features
    full.load_state_dict(load_file(path))
    preprocess = Preprocess.from_config(dict(note.pretrained_cfg or {}), resize="crop")
    info, hits, total = ImageNetInfo(), 0, 0
    for sport, word in ZERO_SHOT.items():
        for path in sorted((shared / "data" / "sports" / "valid" / sport).iterdir()):
            pixels = torch.from_numpy(read_image(path, preprocess)).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                logits = full.forward_head(network.backbone((pixels - 0.5) / 0.5))[0]
            best = [info.index_to_description(int(i)).lower() for i in logits.topk(3).indices]
            hits, total = hits + any(word in name for name in best), total + 1
    assert total == 20
    assert hits >= 14
