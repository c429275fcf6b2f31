"""EXIF's orientation: what a picture says of it, and how the picture is turned upright."""

import numpy as np
from PIL import Image

from imgclf.images.pillow import quiet

__all__ = ["orientation_of", "turn"]


def orientation_of(image: Image.Image) -> int:
    """1 to 8; 1 where the picture says nothing, or what it says can't be read."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    with quiet():
        try:
            value = image.getexif().get(274)
        except Exception:  # a damaged note about the camera doesn't damage the picture
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture upright, for EXIF's orientation; 5 to 8 swap the sides."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
