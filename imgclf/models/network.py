"""The network: a backbone and a replaceable head, which part of it is trained, and how many parameters it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from imgclf.config import HeadConfig, ModelConfig
from imgclf.errors import ConfigError
from imgclf.models.backbone import Backbone, build_backbone
from imgclf.models.small_cnn import BN_EPSILON, glorot

__all__ = ["Head", "LayerRow", "Network", "build_network", "count_parameters", "layer_table", "to_channels_last"]

Freeze = str | int | Sequence[str]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class Head(nn.Module):
    """Dense layers and pooling over features of `shape` (F, h, w) or (F,): [B, F, h, w] or [B, F] -> [B, K].

    Hidden layers after which the map is pooled (`pool_at="after"`) are 1x1 convolutions on the map: Keras's Dense on a
    map. Each hidden layer is followed by its activation and BatchNorm, if any; dropout precedes the last layer.
    `l2` weighs the sum of squared kernel values in the loss. Raises `ConfigError`.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        if any(units < 1 for units in config.hidden):
            raise ConfigError(f"model.head.hidden={config.hidden}: expected whole numbers of units above 0")
        is_map = len(shape) == 3
        self.pool_at, self.pool = config.pool_at, _pool(config.pool, is_map)
        on_map = is_map and config.pool_at == "after"
        area = shape[1] * shape[2] if is_map and config.pool == "flatten" else 1
        width = shape[0] if on_map else shape[0] * area
        batch_norm = nn.BatchNorm2d if on_map else nn.BatchNorm1d
        layers: list[nn.Module] = []
        for units in config.hidden:
            layers.append(nn.Conv2d(width, units, 1) if on_map else nn.Linear(width, units))
            layers.append(ACTIVATIONS[config.activation]())
            if config.batch_norm:
                layers.append(batch_norm(units, eps=BN_EPSILON, momentum=config.bn_momentum))
            width = units
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(width * area if on_map else width, num_classes)
        self.l2 = _l2_per_layer(config.l2, len(config.hidden))
        self.apply(glorot)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, h, w] or [B, F] -> logits [B, K]."""
        first, second = (self.pool, self.hidden) if self.pool_at == "before" else (self.hidden, self.pool)
        return self.output(self.dropout(second(first(features))))  # [B, H], or [B, H * h * w] after a map -> [B, K]

    def penalty(self) -> Tensor:
        """L2 term of the loss: a scalar."""
        dense = [layer for layer in [*self.hidden, self.output] if isinstance(layer, (nn.Linear, nn.Conv2d))]
        terms = [weight * layer.weight.square().sum() for weight, layer in zip(self.l2, dense, strict=True) if weight]
        return torch.stack(terms).sum() if terms else self.output.weight.new_zeros(())


class Network(nn.Module):
    """`head(backbone(images))`: normalised images [B, C, S, S] -> logits [B, K].

    A module whose parameters are all frozen stays in eval mode, so that its BatchNorm learns no statistics.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, K]."""
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> "Network":
        """Set training mode for all modules but the frozen ones."""
        super().train(mode)
        if mode:
            _eval_frozen(self.backbone)
        return self

    def freeze(self, freeze: Freeze) -> None:
        """Freeze part of the backbone, and unfreeze the rest.

        `freeze`: "all", "none", a number n (all but the last n modules that own parameters), or a list of globs for
        parameter names (`["network.blocks.[0-3].*"]`). Raises `ConfigError` for anything else.
        """
        frozen = _frozen_names(self.backbone, freeze)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.train(self.training)


def build_network(model: ModelConfig, num_classes: int, in_chans: int, size: int) -> Network:
    """Return the network that `model` describes, for images of side `size`, with random weights; raises `ConfigError`."""
    backbone = build_backbone(model.backbone, in_chans, size, model.backbone_kwargs)
    network = Network(backbone, Head(backbone.shape, num_classes, model.head))
    network.freeze(model.freeze)
    to_channels_last(network)
    return network


def to_channels_last(module: nn.Module) -> None:
    """Lay the kernels of a network's 2D convolutions out as [F, H, W, C], twice as fast on a CPU; others stay as they are.

    `module.to(memory_format=torch.channels_last)` refuses networks that have kernels of 3D convolutions too.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) as Keras counts them: BatchNorm's running statistics are parameters, never trainable."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    statistics = sum(b.numel() for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var")))
    return trainable, sum(p.numel() for p in module.parameters()) + statistics


@dataclass(frozen=True)
class LayerRow:
    """A row of the network's table: a layer or stage, the shape of its output for one image, and its parameters."""

    name: str
    kind: str
    output: tuple[int, ...]
    trainable: int
    frozen: int


@torch.no_grad()  # no inference mode: what a layer keeps of this pass would then break its training
def layer_table(network: Network, channels: int, size: int) -> list[LayerRow]:
    """Return the parts of the network that have parameters, in order, for images [C, S, S]; the network stays as it is."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep_shape(name: str, output: object) -> None:
        shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

    parts = [*_stages("", network.backbone.network), *_stages("head.", network.head)]
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, output, name=name: keep_shape(name, output))
        for name, part in parts
    ]
    modes = [(module, module.training) for module in network.modules()]
    parameter = next(network.parameters())
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):  # a layer may draw numbers in eval mode too
            network.eval()(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    rows = []
    if own := dict(network.backbone.network.named_parameters(recurse=False)):  # the class token and positions of a ViT
        trainable = sum(parameter.numel() for parameter in own.values() if parameter.requires_grad)
        frozen = sum(parameter.numel() for parameter in own.values()) - trainable
        rows.append(LayerRow(", ".join(own), "Parameter", (), trainable, frozen))
    for name, part in parts:
        trainable, total = count_parameters(part)
        rows.append(LayerRow(name, _kind(part), shapes.get(name, ()), trainable, total - trainable))
    return rows


def _stages(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children that have parameters; one sequence among them that is most of the network gives its own children."""

    def owners(parent: nn.Module) -> list[tuple[str, nn.Module]]:
        return [(name, child) for name, child in parent.named_children() if count_parameters(child)[1]]

    children = owners(module)
    sequences = [name for name, child in children if isinstance(child, nn.Sequential) and len(owners(child)) > 1]
    most = 0.8 * count_parameters(module)[1]
    parts = []
    for name, child in children:
        if name in sequences and (len(sequences) == 1 or count_parameters(child)[1] > most):
            parts += [(f"{prefix}{name}.{inner}", stage) for inner, stage in owners(child)]
        else:
            parts.append((f"{prefix}{name}", child))
    return parts


def _kind(part: nn.Module) -> str:
    """Return the type of a part; "3 x InvertedResidual" of a stage of equal blocks."""
    kinds = [type(child).__name__ for child in part.children()]
    if not isinstance(part, nn.Sequential) or len(set(kinds)) != 1:
        return type(part).__name__
    return kinds[0] if len(kinds) == 1 else f"{len(kinds)} x {kinds[0]}"


def _frozen_names(backbone: Backbone, freeze: Freeze | None) -> set[str]:
    """Return the names of the parameters that `freeze` means."""
    names = [name for name, _ in backbone.named_parameters()]
    if freeze in ("none", None):
        return set()
    if freeze == "all":
        return set(names)
    if isinstance(freeze, int) and not isinstance(freeze, bool) and freeze >= 0:
        modules = [(name, m) for name, m in backbone.named_modules() if any(True for _ in m.parameters(recurse=False))]
        trained = modules[max(0, len(modules) - freeze) :]
        return set(names) - {f"{name}.{key}" for name, module in trained for key, _ in module.named_parameters()}
    if isinstance(freeze, (list, tuple)) and all(isinstance(glob, str) for glob in freeze):
        if unmatched := [glob for glob in freeze if not any(fnmatch(name, glob) for name in names)]:
            raise ConfigError(f"model.freeze: {unmatched[0]!r} matches no parameter; names look like {names[0]}")
        return {name for name in names if any(fnmatch(name, glob) for glob in freeze)}
    raise ConfigError(f"model.freeze={freeze!r}: expected none, all, a number of modules to train, or a list of globs")


def _eval_frozen(module: nn.Module) -> tuple[bool, bool]:
    """Put every module into eval mode whose parameters are all frozen; return (has parameters, has trainable ones)."""
    of_parts = [_eval_frozen(child) for child in module.children()]
    own = list(module.parameters(recurse=False))
    has_parameters = bool(own) or any(has for has, _ in of_parts)
    trainable = any(p.requires_grad for p in own) or any(trained for _, trained in of_parts)
    if has_parameters and not trainable:
        module.eval()
    return has_parameters, trainable


def _pool(pool: str, is_map: bool) -> nn.Module:
    if not is_map:
        return nn.Identity()  # the backbone has pooled
    layers = {"avg": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1), "flatten": nn.Identity()}
    return nn.Sequential(layers[pool], nn.Flatten())


def _l2_per_layer(l2: object, hidden: int) -> tuple[float, ...]:
    """Return one weight per dense layer: a single number is that of each hidden layer."""
    if isinstance(l2, (int, float)):
        return (float(l2),) * hidden + (0.0,)
    if not isinstance(l2, (list, tuple)) or len(l2) != hidden + 1 or not all(isinstance(x, (int, float)) for x in l2):
        raise ConfigError(
            f"model.head.l2={l2!r}: expected one number, or one for each of the {hidden + 1} dense layers"
        )
    return tuple(float(value) for value in l2)
