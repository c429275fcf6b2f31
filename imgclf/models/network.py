"""Backbone and head as one network: which part is trained, and how many parameters it has."""

from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from imgclf.config import ModelConfig
from imgclf.errors import ConfigError
from imgclf.models.backbone import Backbone, build_backbone
from imgclf.models.head import Head

__all__ = ["Network", "build_network", "count_parameters"]

Freeze = str | int | Sequence[str]


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
    return network.to(memory_format=torch.channels_last)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) as Keras counts them: BatchNorm's running statistics are parameters, never trainable."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    statistics = sum(b.numel() for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var")))
    return trainable, sum(p.numel() for p in module.parameters()) + statistics


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
