"""Preprocessing of images for a network: a property of its weights, which travels with them."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from imgclf.errors import ConfigError

__all__ = ["Preprocess"]

RESIZES = ("squash", "crop", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """Side length in pixels, normalisation in units of 1 (0 = black, 1 = white), and how an image becomes a square.

    `mean` and `std` hold one number a channel: three for RGB, one for grey. `resize` is "squash" (both sides to `size`),
    "crop" (the shorter side to `size / crop_pct`, then the centre) or "letterbox" (the longer side to `size`, the rest
    filled with `mean`). `bits`: 2**bits - 1 is white in 16-bit grey images; 12 where a microscope's 12 bits lie in 16-bit
    files. Raises `ConfigError` for values outside these.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    resize: str = "squash"
    bits: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if not (isinstance(self.size, int) and 1 <= self.size <= 4096):
            raise ConfigError(f"image_size={self.size!r}: expected a whole number of pixels from 1 to 4096")
        if self.resize not in RESIZES:
            raise ConfigError(f"resize={self.resize!r}: expected one of {', '.join(RESIZES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation={self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            raise ConfigError(f"mean={self.mean} std={self.std}: expected one or three numbers each, std above 0")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct={self.crop_pct}: expected a number above 0, up to 1")
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 16):
            raise ConfigError(f"bits={self.bits!r}: expected a whole number from 1 to 16")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)

    @classmethod
    def of(cls, backbone: str, **changes: Any) -> "Preprocess":
        """Return the preprocessing that timm's default weights of `backbone` were trained with; builds no network.

        Raises `ConfigError` when timm knows no weights of that name.
        """
        import timm  # here, because timm loads torch

        config = timm.get_pretrained_cfg(backbone)
        if config is None:
            raise ConfigError(f"model.backbone={backbone!r}: timm knows no weights of that name")
        return cls.from_config(dict(vars(config)), **changes)

    @classmethod
    def from_config(cls, config: dict[str, Any], **changes: Any) -> "Preprocess":
        """Return the preprocessing of a timm `pretrained_cfg` dictionary, such as the JSON next to a weights file holds."""
        height = config.get("input_size", (3, 224, 224))[1]
        known = {"size": height, "mean": tuple(config["mean"]), "std": tuple(config["std"])}
        known["crop_pct"] = config.get("crop_pct") or 0.875
        known["interpolation"] = config.get("interpolation") or "bicubic"
        return cls(**{**known, **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """Return the preprocessing of a `to_dict` dictionary; raises `ConfigError` for unknown keys or wrong values."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"preprocessing {values!r} can't be read: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as a checkpoint or a JSON file holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def with_channels(self, channels: int) -> "Preprocess":
        """Return the same for grey (1) or RGB (3) input: grey values are the means over the channels."""
        if channels not in (1, 3):
            raise ConfigError(f"model.in_chans={channels!r}: expected 1 (grey) or 3 (RGB)")
        if channels == self.channels:
            return self
        if channels == 1:
            return replace(self, mean=(sum(self.mean) / 3,), std=(sum(self.std) / 3,))
        return replace(self, mean=self.mean * 3, std=self.std * 3)
