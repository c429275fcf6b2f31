"""Random changes that keep the label: one composed warp, then colour; a function of (seed, epoch, index) alone.

The vocabulary and the ranges are those of Keras's `ImageDataGenerator`, which the reference systems used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imgclf.errors import ConfigError

__all__ = ["Augment"]

# OpenCV's threads don't survive a fork: a worker process would wait for them for ever. Pictures this small need none.
cv2.setNumThreads(0)

Pixels = npt.NDArray[np.uint8]
_BORDERS = {"nearest": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}


@dataclass(frozen=True)
class Augment:
    """How far each change may go; every default is "not at all".

    `rotation_degrees` and `shear_degrees`: angle from -x to x. `shift`: fraction of the side, each axis. `zoom`: factor
    from 1 - x to 1 + x, each axis by itself. `horizontal_flip`, `vertical_flip`: with probability 1/2. `brightness`,
    `contrast`, `saturation`: factor from 1 - x to 1 + x. `fill`: what shows beyond the border (nearest, reflect, black).
    """

    rotation_degrees: float = 0.0
    shift: float = 0.0
    shear_degrees: float = 0.0
    zoom: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    fill: str = "nearest"

    def __post_init__(self) -> None:
        if self.fill not in _BORDERS:
            raise ConfigError(f"dataset.augment.fill={self.fill!r}: expected one of {', '.join(_BORDERS)}")
        for field in fields(self):
            value = getattr(self, field.name)
            limit = 1 if field.name in ("zoom", "brightness", "contrast", "saturation") else float("inf")
            if field.name != "fill" and not (isinstance(value, (int, float)) and 0 <= value <= limit):
                raise ConfigError(f"dataset.augment.{field.name}={value!r}: expected a number of at least 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Augment":
        """From a YAML mapping; raises `ConfigError` that names an unknown key and the known ones."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise ConfigError(f"dataset.augment={values!r}: expected null, or a mapping of {', '.join(known)}")
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"dataset.augment has no {', '.join(unknown)}: it knows {', '.join(known)}")
        return cls(**values)

    def __call__(self, pixels: Pixels, seed: int, epoch: int, index: int) -> Pixels:
        """A changed copy of `pixels` uint8 [S, S, C]; the same arguments give the same bytes in any process."""
        generator = np.random.default_rng([seed, epoch, index])
        # Every number is drawn whether it is used or not, so that one switch doesn't change the other changes.
        rotation, shear, *shifts = generator.uniform(-1, 1, 4)
        zooms = 1 + self.zoom * generator.uniform(-1, 1, 2)
        flips = np.where(generator.random(2) < 0.5, -1.0, 1.0)
        colours = generator.uniform(-1, 1, 3)
        matrix = self._matrix(np.deg2rad(self.rotation_degrees * rotation), np.deg2rad(self.shear_degrees * shear),
                              zooms, flips)  # fmt: skip
        side = pixels.shape[0]
        centre = (side - 1) / 2
        offset = centre - matrix @ [centre, centre] + side * self.shift * np.asarray(shifts)
        warped: Any = pixels
        if not (np.allclose(matrix, np.eye(2)) and np.allclose(offset, 0)):
            warped = cv2.warpAffine(  # the matrix maps output to input: one resampling for all geometry
                pixels, np.column_stack([matrix, offset]), (side, side),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=_BORDERS[self.fill],
            ).reshape(pixels.shape)  # fmt: skip
        return self._recolour(warped, colours)

    def _matrix(self, rotation: float, shear: float, zooms: npt.NDArray[np.float64],
                flips: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:  # fmt: skip
        """Output to input coordinates (x, y), about the centre: rotation, then shear, zoom and flip; float [2, 2]."""
        rotate = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
        shears = np.array([[1, -np.sin(shear)], [0, np.cos(shear)]])
        wanted = np.array([self.horizontal_flip, self.vertical_flip])
        return rotate @ shears @ np.diag(zooms) @ np.diag(np.where(wanted, flips, 1.0))

    def _recolour(self, pixels: Pixels, draws: npt.NDArray[np.float64]) -> Pixels:
        if not (self.brightness or self.contrast or self.saturation):
            return np.ascontiguousarray(pixels)
        brightness, contrast, saturation = 1 + np.array([self.brightness, self.contrast, self.saturation]) * draws
        values = pixels.astype(np.float32) * brightness
        values = (values - values.mean()) * contrast + values.mean()
        grey = values.mean(axis=2, keepdims=True)
        return np.clip(np.rint((values - grey) * saturation + grey), 0, 255).astype(np.uint8)
