"""The replaceable part of a network: features to logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imgclf.config import HeadConfig
from imgclf.errors import ConfigError
from imgclf.models.small_cnn import BN_EPSILON, glorot

__all__ = ["Head"]

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

    Hidden layers behind which the map is pooled (`pool_at="after"`) are 1x1 convolutions on the map: Keras's Dense on a
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
        return self.output(self.dropout(second(first(features))))  # [B, H], or [B, H * h * w] behind a map -> [B, K]

    def penalty(self) -> Tensor:
        """L2 term of the loss: a scalar."""
        dense = [layer for layer in [*self.hidden, self.output] if isinstance(layer, (nn.Linear, nn.Conv2d))]
        terms = [weight * layer.weight.square().sum() for weight, layer in zip(self.l2, dense, strict=True) if weight]
        return torch.stack(terms).sum() if terms else self.output.weight.new_zeros(())


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
