"""Backbone and head as one network, what of it is trained, and how many parameters that is."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from imgclf.errors import ConfigError
from imgclf.models.backbone import Backbone, build_backbone
from imgclf.models.head import Head

__all__ = ["Network", "build_network", "count_parameters", "freeze_backbone", "owners"]

Freeze = str | int | Sequence[str]


class Network(nn.Module):
    """`head(backbone(images))`: normalised images [B, C, S, S] -> logits [B, K].

    A module whose parameters are all frozen stays in eval mode: BatchNorm that learns statistics isn't frozen.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, K]."""
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> "Network":
        """Training mode for all but what is frozen."""
        super().train(mode)
        if mode:
            _rest_frozen(self.backbone)
        return self


def build_network(model: Mapping[str, Any], num_classes: int, in_chans: int, size: int) -> Network:
    """The network that `model` (plain data: backbone, backbone_kwargs, head, freeze) describes.

    Its weights are random. Raises `ConfigError`.
    """
    backbone = build_backbone(model["backbone"], in_chans, size, model.get("backbone_kwargs"))
    network = Network(backbone, build_head(model.get("head") or {}, backbone, num_classes))
    freeze_backbone(network, model.get("freeze", "none"))
    return network.to(memory_format=torch.channels_last)


def build_head(options: Mapping[str, Any], backbone: Backbone, num_classes: int) -> Head:
    """A new head on `backbone`; raises `ConfigError` for an option that a head doesn't have."""
    try:
        return Head(backbone.shape, num_classes, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.head={dict(options)}: {error}") from None


def freeze_backbone(network: Network, freeze: Freeze) -> None:
    """Freeze "all" of the backbone, "none" of it, all but its last n modules that own parameters, or the parameters whose
    names match one of a list of globs (`["network.blocks.[0-3].*"]`). Raises `ConfigError` when that means nothing.
    """
    backbone = network.backbone
    names = [name for name, _ in backbone.named_parameters()]
    if freeze in ("none", None):
        frozen = set()
    elif freeze == "all":
        frozen = set(names)
    elif isinstance(freeze, int) and not isinstance(freeze, bool) and freeze >= 0:
        modules = owners(backbone)
        kept = modules[max(0, len(modules) - freeze) :]
        frozen = set(names) - {f"{name}.{key}" for name, module in kept for key, _ in module.named_parameters()}
    elif isinstance(freeze, Sequence) and not isinstance(freeze, str):
        if unmatched := [glob for glob in freeze if not any(fnmatch(name, glob) for name in names)]:
            raise ConfigError(f"model.freeze: {unmatched[0]!r} matches no parameter; names look like {names[0]}")
        frozen = {name for name in names if any(fnmatch(name, glob) for glob in freeze)}
    else:
        raise ConfigError(
            f"model.freeze={freeze!r}: expected none, all, a number of modules to train, or a list of globs"
        )
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name not in frozen)
    network.train(network.training)


def owners(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that own parameters themselves, in order, by name."""
    return [(name, m) for name, m in module.named_modules() if next(m.parameters(recurse=False), None) is not None]


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trainable, total) as Keras counts them: BatchNorm's running mean and variance are parameters that aren't trained."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    statistics = sum(b.numel() for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var")))
    return trainable, sum(p.numel() for p in module.parameters()) + statistics


def _rest_frozen(module: nn.Module) -> tuple[bool, bool]:
    """Put every module into eval mode whose parameters are all frozen; (has parameters, has trainable ones)."""
    of_parts = [_rest_frozen(child) for child in module.children()]
    own = list(module.parameters(recurse=False))
    some = bool(own) or any(has for has, _ in of_parts)
    learns = any(p.requires_grad for p in own) or any(trained for _, trained in of_parts)
    if some and not learns:
        module.eval()
    return some, learns
