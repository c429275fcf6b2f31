"""Image decoding to uint8 RGB, and resizing to the square that a network takes."""

import PIL

from imgclf.images.decode import as_pixels, decode, describe, read_image, read_start
from imgclf.images.pixels import fit

__all__ = ["as_pixels", "decode", "describe", "fit", "read_image", "read_start"]

# Part of every cache key: raise the number whenever decoding changes any pixel, so that caches are made again.
__version__ = f"1, Pillow {PIL.__version__}"
