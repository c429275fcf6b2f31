"""The replaceable part: features to classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imgclf.errors import ConfigError
from imgclf.models.small_cnn import BN_EPSILON, BN_MOMENTUM, glorot

__all__ = ["Head"]

POOLS = ("avg", "max", "flatten")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "tanh": nn.Tanh, "none": nn.Identity,
}  # fmt: skip


class Head(nn.Module):
    """Dense layers and a pooling over features of `shape` (F, h, w) or (F,): [B, F, h, w] -> [B, K].

    `hidden`: widths of the dense layers before the last. `pool`: avg, max or flatten; `pool_at`: "before" the hidden
    layers, or "after" them (each is then a 1x1 convolution on the map, which is Keras's Dense on a map). Behind each
    hidden layer: `activation`, BatchNorm if `batch_norm` (with `bn_momentum`); `dropout` stands before the last layer.
    `l2`: weight of the sum of squared kernel values in the loss: one number for every hidden layer, or a list with one a
    dense layer, the last included. Raises `ConfigError` for values outside these.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, *, hidden: Sequence[int] = (), pool: str = "avg",
                 pool_at: str = "before", dropout: float = 0.0, batch_norm: bool = False,
                 bn_momentum: float = BN_MOMENTUM, activation: str = "relu",
                 l2: float | Sequence[float] = 0.0) -> None:  # fmt: skip
        super().__init__()
        _check(hidden, pool, pool_at, activation)
        self.pool_at, self.pool = pool_at, _pool(pool, len(shape))
        on_map = pool_at == "after" and len(shape) == 3
        flat = pool == "flatten" and len(shape) == 3
        area = shape[1] * shape[2] if flat else 1
        width = shape[0] if on_map else shape[0] * area
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Conv2d(width, units, 1) if on_map else nn.Linear(width, units), ACTIVATIONS[activation]()]
            if batch_norm:
                layers.append(
                    (nn.BatchNorm2d if on_map else nn.BatchNorm1d)(units, eps=BN_EPSILON, momentum=bn_momentum)
                )
            width = units
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width * area if on_map else width, num_classes)
        self.l2 = _l2_of_each(l2, len(hidden))
        self.apply(glorot)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, h, w] or [B, F] -> logits [B, K]."""
        first, second = (self.pool, self.hidden) if self.pool_at == "before" else (self.hidden, self.pool)
        return self.output(self.dropout(second(first(features))))  # [B, H], or [B, H * h * w] behind a map -> [B, K]

    def penalty(self) -> Tensor:
        """The L2 term of the loss: a scalar."""
        dense = [layer for layer in [*self.hidden, self.output] if isinstance(layer, (nn.Linear, nn.Conv2d))]
        terms = [weight * layer.weight.square().sum() for weight, layer in zip(self.l2, dense, strict=True) if weight]
        return torch.stack(terms).sum() if terms else self.output.weight.new_zeros(())


def _check(hidden: Sequence[int], pool: str, pool_at: str, activation: str) -> None:
    if pool not in POOLS or pool_at not in ("before", "after"):
        raise ConfigError(
            f"model.head: pool={pool!r}, pool_at={pool_at!r}; expected {', '.join(POOLS)}; before or after"
        )
    if activation not in ACTIVATIONS:
        raise ConfigError(f"model.head.activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    if any(not isinstance(units, int) or units < 1 for units in hidden):
        raise ConfigError(f"model.head.hidden={list(hidden)}: expected whole numbers of units above 0")


def _pool(pool: str, dimensions: int) -> nn.Module:
    if dimensions == 1:
        return nn.Identity()  # the backbone has pooled
    layers = {"avg": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1), "flatten": nn.Identity()}
    return nn.Sequential(layers[pool], nn.Flatten())


def _l2_of_each(l2: float | Sequence[float], hidden: int) -> tuple[float, ...]:
    if isinstance(l2, (int, float)):
        return (float(l2),) * hidden + (0.0,)
    if len(l2) != hidden + 1:
        raise ConfigError(
            f"model.head.l2={list(l2)}: expected one number, or one for each of the {hidden + 1} dense layers"
        )
    return tuple(float(value) for value in l2)
