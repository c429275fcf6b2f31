"""The small convolutional networks of the reference systems: one network with parameters, registered with timm.

Layers are initialised as Keras does (Glorot-uniform kernels, zero biases) and BatchNorm has Keras's momentum and epsilon,
because the reference figures were got with them (Keras 3.15, `keras.layers.Conv2D`, `BatchNormalization`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from imgclf.errors import ConfigError

__all__ = ["BN_EPSILON", "BN_MOMENTUM", "SmallCNN", "glorot"]

BN_MOMENTUM, BN_EPSILON = 0.01, 1e-3  # Keras's defaults; it says momentum 0.99 for what torch calls 0.01


def glorot(module: nn.Module) -> None:
    """Initialise a convolution or dense layer as Keras does."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SmallCNN(nn.Module):
    """3x3 convolutions with ReLU and 2x2 max-pools: [B, C, S, S] -> [B, F, h, w].

    `layers` lists numbers of filters and the word "pool", in order: `[32, pool, 64, pool]`. `padding` is "same" or
    "valid"; `batch_norm` puts one behind each ReLU, whose statistics follow a batch by `bn_momentum`.
    Raises `ConfigError` for another layer or padding.
    """

    def __init__(self, layers: Sequence[int | str] = (32, "pool", 64, "pool", 128, "pool"), padding: str = "same",
                 batch_norm: bool = False, bn_momentum: float = BN_MOMENTUM, in_chans: int = 3, num_classes: int = 1000,
                 pretrained_cfg: Any = None, **unused: Any) -> None:  # fmt: skip
        super().__init__()
        if unknown := sorted(set(unused) - set(_TIMM_EXTRAS)):
            raise ConfigError(
                f"small_cnn has no {', '.join(unknown)}: it knows layers, padding, batch_norm, bn_momentum"
            )
        if padding not in ("same", "valid") or not layers or layers[0] == "pool":
            raise ConfigError(
                f"small_cnn: padding={padding!r}, layers={list(layers)}; expected same or valid, filters first"
            )
        self.features = nn.Sequential(*_modules(layers, padding, bn_momentum if batch_norm else None, in_chans))
        self.num_features = self.head_hidden_size = [int(width) for width in layers if width != "pool"][-1]
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.apply(glorot)

    def forward_features(self, images: Tensor) -> Tensor:
        """The map of the last layer: [B, C, S, S] -> [B, F, h, w]."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's own head, average pool and one dense layer: [B, F, h, w] -> [B, F] or [B, K]."""
        pooled = features.mean(dim=(2, 3))  # [B, F]
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, K]."""
        return self.forward_head(self.forward_features(images))


class _PooledConv2d(nn.Conv2d):
    """A convolution and a 2x2 max-pool behind it; a ReLU may follow, for max(relu(x)) = relu(max(x)).

    When it trains, the bias comes after the pool, where a quarter of the values is left to add it to and to sum its gradient
    over: max(x) + b = max(x + b) to the last bit, as rounding keeps order. 3-6 % of a block's step at 300 px, 13 % at 150.
    """

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, F, s, s], s half of what the convolution leaves, rounded down."""
        if self.bias is None or not (self.bias.requires_grad and torch.is_grad_enabled()):
            return functional.max_pool2d(super().forward(images), 2)
        pooled = functional.max_pool2d(self._conv_forward(images, self.weight, None), 2)
        return pooled.add_(self.bias.to(pooled.dtype).view(-1, 1, 1))


class _ReLU(nn.ReLU):
    """ReLU in place where the layer before it is being trained: what a layer must keep is kept once, not twice.

    Elsewhere what comes in may belong to somebody else, as cached features do.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, h, w] -> the same shape."""
        return functional.relu(features, inplace=features.requires_grad and not features.is_leaf)


def _modules(layers: Sequence[int | str], padding: str, bn_momentum: float | None, channels: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for position, width in enumerate(layers):
        if width == "pool":
            continue  # placed with the convolution before it
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"small_cnn: layers={list(layers)}; expected numbers of filters and the word pool")
        pooled = layers[position + 1 : position + 2] in (["pool"], ("pool",))
        if bn_momentum is not None:
            batch_norm = nn.BatchNorm2d(width, eps=BN_EPSILON, momentum=bn_momentum)
            modules += [nn.Conv2d(channels, width, 3, padding=padding), _ReLU(), batch_norm]
            modules += [nn.MaxPool2d(2)] * pooled
        elif pooled:  # three places, as when the pool was a module of its own: layers' names are in checkpoints
            modules += [_PooledConv2d(channels, width, 3, padding=padding), nn.Identity(), _ReLU()]
        else:
            modules += [nn.Conv2d(channels, width, 3, padding=padding), _ReLU()]
        channels = width
    return modules


_TIMM_EXTRAS = ("pretrained_cfg_overlay", "cache_dir", "global_pool", "drop_rate", "drop_path_rate")

default_cfgs = generate_default_cfgs({
    "small_cnn.none": {
        "input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear",
        "crop_pct": 1.0, "first_conv": "features.0", "classifier": "classifier",
    }
})  # fmt: skip


@register_model
def small_cnn(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> SmallCNN:
    """`timm.create_model("small_cnn", layers=[...])`; there are no pretrained weights.

    Raises `ConfigError` when weights are asked for.
    """
    if pretrained:
        raise ConfigError("model.pretrained=true: small_cnn has no pretrained weights; pass model.pretrained=false")
    return SmallCNN(pretrained_cfg=pretrained_cfg, **kwargs)
