"""Augmentation: one composed warp, then colour; a function of (seed, epoch, index) alone.

The vocabulary and the ranges are those of Keras's `ImageDataGenerator`, which the reference systems used.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imgclf.config import AugmentConfig

__all__ = ["Augment"]

# OpenCV's threads don't survive a fork: a worker would wait for them for ever. Images this small need none.
cv2.setNumThreads(0)

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
_BORDERS = {"nearest": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}


@dataclass(frozen=True)
class Augment(AugmentConfig):
    """Random changes of an image, as far as the settings allow; those of `AugmentConfig`."""

    def __call__(self, pixels: Pixels, seed: int, epoch: int, index: int) -> Pixels:
        """Return a changed copy of `pixels` uint8 [S, S, C]; the same arguments give the same bytes in any process."""
        generator = np.random.default_rng([seed, epoch, index])
        # Every number is drawn whether it is used or not, so that one switch doesn't change the other changes.
        rotation, shear, *shifts = generator.uniform(-1, 1, 4)
        zooms = 1 + self.zoom * generator.uniform(-1, 1, 2)
        flips = np.where(generator.random(2) < 0.5, -1.0, 1.0)
        colours = generator.uniform(-1, 1, 3)
        angles = np.deg2rad(self.rotation_degrees * rotation), np.deg2rad(self.shear_degrees * shear)
        matrix = self._matrix(*angles, zooms, flips)
        side = pixels.shape[0]
        centre = (side - 1) / 2
        offset = centre - matrix @ [centre, centre] + side * self.shift * np.asarray(shifts)
        warped: Any = pixels
        if not (np.allclose(matrix, np.eye(2)) and np.allclose(offset, 0)):
            # The matrix maps output to input: one resampling for all geometry.
            flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, _BORDERS[self.fill]
            warp = np.column_stack([matrix, offset])
            warped = cv2.warpAffine(pixels, warp, (side, side), flags=flags, borderMode=border).reshape(pixels.shape)
        return self._recolour(warped, colours)

    def _matrix(self, rotation: float, shear: float, zooms: Floats, flips: Floats) -> Floats:
        """Map output to input coordinates (x, y), about the centre: rotation, then shear, zoom and flip; float [2, 2]."""
        rotate = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
        shears = np.array([[1, -np.sin(shear)], [0, np.cos(shear)]])
        wanted = np.array([self.horizontal_flip, self.vertical_flip])
        return rotate @ shears @ np.diag(zooms) @ np.diag(np.where(wanted, flips, 1.0))

    def _recolour(self, pixels: Pixels, draws: Floats) -> Pixels:
        if not (self.brightness or self.contrast or self.saturation):
            return np.ascontiguousarray(pixels)
        brightness, contrast, saturation = 1 + np.array([self.brightness, self.contrast, self.saturation]) * draws
        values = pixels.astype(np.float32) * brightness
        values = (values - values.mean()) * contrast + values.mean()
        grey = values.mean(axis=2, keepdims=True)
        return np.clip(np.rint((values - grey) * saturation + grey), 0, 255).astype(np.uint8)
