"""Image decoding to uint8 RGB, and resizing to the square that a network takes."""

import PIL

from imgclf.images.decode import as_pixels, decode, describe, peak, read_image, read_start
from imgclf.images.pixels import fit
from imgclf.images.suffixes import IMAGE_SUFFIXES, SUFFIXES, unused_reason

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES",
    "as_pixels",
    "decode",
    "describe",
    "fit",
    "peak",
    "read_image",
    "read_start",
    "unused_reason",
]

# Part of every cache key: raise the number whenever decoding changes any pixel, so that caches are made again.
__version__ = f"2, Pillow {PIL.__version__}"
