"""imgclf's networks, as a PyTorch user writes them. `model` is the `model` group of an imgclf experiment."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

__all__ = ["Classifier", "count_parameters", "trainable"]

# Parts that only timm's own classifier uses: the experiments put their head on the map before them.
UNUSED = {"tf_mobilenetv3_small_100": "conv_head", "vgg16": "pre_logits"}


class Classifier(nn.Module):
    """Normalised images [B, 3, S, S] -> logits [B, K], with random weights; frozen modules stay in eval mode."""

    def __init__(self, model: Mapping[str, Any], classes: int, size: int) -> None:
        super().__init__()
        if model["backbone"] == "small_cnn":
            self.backbone = small_cnn(**model["backbone_kwargs"])
        else:
            self.backbone = TimmMap(model["backbone"])
        with torch.no_grad():
            shape = self.backbone.eval()(torch.zeros(1, 3, size, size)).shape[1:]
        self.head = head(shape, classes, **model["head"])
        owners = [
            module for module in self.backbone.modules() if next(module.parameters(recurse=False), None) is not None
        ]
        count = {"all": len(owners), "none": 0}.get(model["freeze"])
        self.frozen = owners[: len(owners) - model["freeze"] if count is None else count]
        for module in self.frozen:
            module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, K]."""
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, except in frozen modules: BatchNorm must not learn statistics there."""
        super().train(mode)
        for module in getattr(self, "frozen", []):
            module.eval()
        return self


class TimmMap(nn.Module):
    """A timm network up to its last map: [B, 3, S, S] -> [B, F, h, w]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm.create_model(name, pretrained=False, num_classes=0)
        if name in UNUSED:
            setattr(self.network, UNUSED[name], nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, F, h, w]."""
        return self.network.forward_features(images)


def small_cnn(layers: list[Any], padding: str, batch_norm: bool, **_: Any) -> nn.Sequential:
    """Return 3x3 convolutions, each with ReLU and perhaps BatchNorm, and 2x2 max-pools."""
    modules: list[nn.Module] = []
    channels = 3
    for width in layers:
        if width == "pool":
            modules.append(nn.MaxPool2d(2))
            continue
        modules += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU()]
        if batch_norm:
            modules.append(nn.BatchNorm2d(width, eps=1e-3, momentum=0.01))
        channels = width
    return nn.Sequential(*modules)


def head(
    shape: Any, classes: int, hidden: list[int], pool: str, dropout: float, batch_norm: bool, **_: Any
) -> nn.Sequential:
    """Return pooling or flattening, then dense layers."""
    flat = pool == "flatten"
    modules: list[nn.Module] = [nn.Identity() if flat else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width = shape.numel() if flat else shape[0]
    for units in hidden:
        modules += [nn.Linear(width, units), nn.ReLU()]
        if batch_norm:
            modules.append(nn.BatchNorm1d(units, eps=1e-3, momentum=0.01))
        width = units
    return nn.Sequential(*modules, nn.Dropout(dropout), nn.Linear(width, classes))


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters for the optimizer."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return (trainable, total), BatchNorm's statistics included, as Keras counts."""
    statistics = [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    parts = [*network.parameters(), *statistics]
    return sum(p.numel() for p in trainable(network)), sum(p.numel() for p in parts)
