"""The small convolutional networks of the reference systems: one network with parameters, registered with timm.

Layers are initialised as Keras does (Glorot-uniform kernels, zero biases), and BatchNorm has Keras's momentum and epsilon,
because the reference figures were measured with them (Keras 3.15, `keras.layers.Conv2D`, `BatchNormalization`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from imgclf.errors import ConfigError

__all__ = ["BN_EPSILON", "SmallCNN", "glorot"]

BN_MOMENTUM, BN_EPSILON = 0.01, 1e-3  # Keras's defaults; its momentum of 0.99 is torch's 0.01
_TIMM_EXTRAS = {"pretrained_cfg_overlay", "cache_dir", "global_pool", "drop_rate", "drop_path_rate"}


def glorot(module: nn.Module) -> None:
    """Initialise a convolution or dense layer as Keras does."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SmallCNN(nn.Module):
    """3x3 convolutions with ReLU and 2x2 max-pools: [B, C, S, S] -> [B, F, h, w].

    `layers` lists numbers of filters and the word "pool", in order: `[32, pool, 64, pool]`. `padding` is "same" or
    "valid"; `batch_norm` adds one after each ReLU, with momentum `bn_momentum`.
    Raises `ConfigError` for another layer or padding.
    """

    def __init__(
        self,
        layers: Sequence[int | str] = (32, "pool", 64, "pool", 128, "pool"),
        padding: str = "same",
        batch_norm: bool = False,
        bn_momentum: float = BN_MOMENTUM,
        in_chans: int = 3,
        num_classes: int = 1000,
        pretrained_cfg: Any = None,
        **unused: object,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(unused) - _TIMM_EXTRAS):
            raise ConfigError(
                f"small_cnn has no {', '.join(unknown)}: expected layers, padding, batch_norm, bn_momentum"
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
        """Feature map of the last layer: [B, C, S, S] -> [B, F, h, w]."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's own head, average pool and one dense layer: [B, F, h, w] -> [B, F] or [B, K]."""
        pooled = features.mean(dim=(2, 3))  # [B, F]
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, K]."""
        return self.forward_head(self.forward_features(images))


class _ConvReLU(nn.Conv2d):
    """A 3x3 convolution, a 2x2 max-pool where `pool`, and ReLU, computed in the order that costs least.

    The pool comes first, for max(relu(x)) = relu(max(x)); ReLU works in place on what this module has made. In training
    the bias follows the pool, where a quarter of the values is left to add it to and to sum its gradient over:
    max(x) + b = max(x + b) to the last bit, as rounding keeps order. A training step of rps_cnn (32 images of 300 px, one
    thread) takes 374 ms; with Conv2d, ReLU and MaxPool2d 477 ms; with the bias in the convolution 405 ms.
    """

    def __init__(self, channels: int, filters: int, padding: str, pool: bool) -> None:
        super().__init__(channels, filters, 3, padding=padding)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, F, s, s]; with a pool s is half of what the convolution leaves, rounded down."""
        if not self.pool:
            return functional.relu_(super().forward(images))
        if self.bias is None or not (self.bias.requires_grad and torch.is_grad_enabled()):
            return functional.relu_(functional.max_pool2d(super().forward(images), 2))
        pooled = functional.max_pool2d(self._conv_forward(images, self.weight, None), 2)
        return functional.relu_(pooled.add_(self.bias.to(pooled.dtype).view(-1, 1, 1)))


def _modules(layers: Sequence[int | str], padding: str, bn_momentum: float | None, channels: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for position, width in enumerate(layers):
        if width == "pool":
            continue  # part of the convolution before it
        if not isinstance(width, int) or width < 1:
            raise ConfigError(f"small_cnn: layers={list(layers)}; expected numbers of filters and the word pool")
        pool = list(layers[position + 1 : position + 2]) == ["pool"]
        if bn_momentum is None:
            modules.append(_ConvReLU(channels, width, padding, pool))
        else:  # BatchNorm lies between ReLU and pool
            batch_norm = nn.BatchNorm2d(width, eps=BN_EPSILON, momentum=bn_momentum)
            modules += [_ConvReLU(channels, width, padding, False), batch_norm, *([nn.MaxPool2d(2)] if pool else [])]
        channels = width
    return modules


default_cfgs = generate_default_cfgs(
    {
        "small_cnn.none": {
            "input_size": (3, 64, 64),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "features.0",
            "classifier": "classifier",
        }
    }
)


@register_model
def small_cnn(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> SmallCNN:
    """Return `timm.create_model("small_cnn", layers=[...])`; raises `ConfigError` for pretrained weights: none exist."""
    if pretrained:
        raise ConfigError("model.pretrained=true: small_cnn has no pretrained weights; pass model.pretrained=false")
    return SmallCNN(pretrained_cfg=pretrained_cfg, **kwargs)
