"""Preprocessing of images for a network: a property of its weights, which travels with them."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from imgclf.errors import ConfigError
from imgclf.schema import check_limits, setting

__all__ = ["Preprocess"]

RESIZES = ("squash", "crop", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_MAX_SIDE = 4096 / 0.875  # pixels of the shorter side before the centre is cut out


_KINDS: dict[str, type | tuple[type, ...]] = {
    "size": int,
    "bits": int,
    "crop_pct": (int, float),
    "interpolation": str,
    "resize": str,
}


@dataclass(frozen=True)
class Preprocess:
    """Side length in pixels, normalisation in units of 1 (0 = black, 1 = white), and how an image becomes a square.

    `mean` and `std` hold one number a channel: three for RGB, one for grey. `resize` is "squash" (both sides to `size`),
    "crop" (the shorter side to `size / crop_pct`, then the centre) or "letterbox" (the longer side to `size`, the rest
    filled with `mean`). `bits`: 2**bits - 1 is white in 16-bit grey images; 12 where a microscope's 12 bits lie in 16-bit
    files. Raises `ConfigError` for values outside these.
    """

    size: int = setting(224, low=1, high=4096)
    mean: tuple[float, ...] = setting((0.5, 0.5, 0.5), low=-1000, high=1000)
    std: tuple[float, ...] = setting((0.5, 0.5, 0.5), above=0, high=1000)
    crop_pct: float = setting(0.875, low=0.1, high=1)
    interpolation: str = setting("bicubic", choices=INTERPOLATIONS)
    resize: str = setting("squash", choices=RESIZES)
    bits: int = setting(16, low=1, high=16)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if any(isinstance(value, (bool, str)) for value in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected numbers")
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        for item in fields(self):
            key, value = {"size": "image_size"}.get(item.name, item.name), getattr(self, item.name)
            kind = _KINDS.get(item.name, tuple)
            if not isinstance(value, kind) or isinstance(value, bool):
                expected = "text" if kind is str else "a whole number" if kind is int else "a number"
                raise ConfigError(f"{key}={value!r}: expected {expected}")
            check_limits(value, item, key)
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ConfigError(f"mean={self.mean} std={self.std}: expected one or three numbers each")
        if self.resize == "crop" and self.size / self.crop_pct > _MAX_SIDE:
            raise ConfigError(
                f"image_size={self.size} crop_pct={self.crop_pct}: images would be enlarged to {self.size / self.crop_pct:,.0f} "
                f"pixels before they are cropped, expected at most {_MAX_SIDE:,.0f}; pass a smaller image_size"
            )

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
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"preprocessing {str(values)[:200]} can't be read: {error}") from None

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
