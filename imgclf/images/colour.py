"""From a picture of any mode to RGB pixels of 8 bits: transparency laid over `BACKGROUND`, wide numbers scaled.

The rules stand in `imgclf.images.decode`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from PIL import Image

from imgclf.errors import ImageError
from imgclf.images.pillow import quiet, tiles

__all__ = ["BACKGROUND", "NUMERIC", "stored_pixels"]

BACKGROUND = (255, 255, 255)  # RGB under transparent pixels
NUMERIC = ("I", "F")  # first letters of the modes that hold more than 8 bits
_SMALL = 2**20  # pixels that need no special care
_BAND = 2**18  # pixels converted at a time, so that intermediate copies stay small


def stored_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture as it is stored, not turned; converted in bands, so that copies stay small."""
    key, frame = _transparent_colour(image), tiles(image)[0][1] if image.format == "GIF" and tiles(image) else None
    with quiet() if image.format == "TIFF" else nullcontext():
        image.load()
    scale = _scale(image) if image.mode.startswith(NUMERIC) else None
    if image.mode == "RGB" and key is None and image.width * image.height <= _SMALL:
        pixels = np.array(image)  # the same as below, sooner
    else:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for rows, band in _bands(image):
            pixels[rows] = _rgb(band, key, scale)
    if frame and "transparency" not in image.info:  # what a smaller first frame leaves bare
        left, top, right, bottom = frame
        pixels[:top] = pixels[bottom:] = pixels[:, :left] = pixels[:, right:] = BACKGROUND
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    step = max(1, _BAND // image.width)
    if step >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _rgb(band: Image.Image, key: Any, scale: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    """uint8 [h, W, 3] or [h, W, 1]; pixels of the colour `key` become `BACKGROUND`."""
    if band.mode == "La":
        band = band.convert("LA")  # Pillow drops the alpha on the straight way
    blended = band.mode in ("RGBA", "RGBa", "LA", "PA")
    if band.mode == "P" and band.palette:
        blended = "transparency" in band.info or band.palette.mode == "RGBA"
    if blended:
        colour = band if band.mode == "RGBA" else band.convert("RGBA")
        if colour.getchannel("A").getextrema() == (255, 255):
            return np.asarray(colour.convert("RGB"))
        canvas = Image.new("RGB", band.size, BACKGROUND)
        canvas.paste(colour, None, colour)
        return np.asarray(canvas)
    values = np.asarray(
        band.convert("L") if band.mode == "1" else band if scale or band.mode == "RGB" else band.convert("RGB")
    )
    if values.ndim == 2:
        rgb = (scale(values) if scale else values)[:, :, None]
        return rgb if key is None else np.where((values == key)[:, :, None], np.array(BACKGROUND, np.uint8), rgb)
    return (
        values
        if key is None
        else np.where((values == key).all(2, keepdims=True), np.array(BACKGROUND, np.uint8), values)
    )


def _transparent_colour(image: Image.Image) -> Any:
    """The one transparent value or colour as Pillow will show it, or None; to be asked before the picture is loaded.

    Pillow widens grey of 2 and 4 bits to 8 and narrows colour of 16 bits, but leaves the transparent value as stored.
    """
    colour = image.info.get("transparency")
    if colour is None or image.mode not in ("1", "L", "RGB", "I", "I;16"):
        return None
    raw = tiles(image)[0][3] if tiles(image) else ""
    if image.mode == "RGB":
        return np.array([value >> 8 if raw == "RGB;16B" else value & 255 for value in colour], np.uint8)
    if image.mode == "L":
        return {"L;2": (colour & 3) * 85, "L;4": (colour & 15) * 17}.get(str(raw), colour & 255)
    return colour


def _scale(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """The map from the numbers of mode I;16, I or F to uint8, by the rules of `imgclf.images.decode`."""
    tags = getattr(image, "tag_v2", {})
    bits, kind = (value[0] if isinstance(value, tuple) else value for value in (tags.get(258, 16), tags.get(339, 1)))
    unsigned = image.mode == "I" and 258 in tags and kind == 1  # Pillow reads uint32 as int32
    low, high = 0.0, 2.0**bits - 1  # 12 bits in a TIFF
    if not image.mode.startswith("I;16"):
        arrays = (np.asarray(band) for _, band in _bands(image))
        limits = [(a.min(), a.max()) for a in (a.view(np.uint32) if unsigned else a for a in arrays)]
        least, most = float(min(low for low, _ in limits)), float(max(high for _, high in limits))
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ImageError("holds NaN or infinite values: replace them and save it again")
        known = (1, 255) if image.mode == "F" else (255, 65535)
        low, high = next(((0.0, float(top)) for top in known if least >= 0 and most <= top), (least, most))
    factor = 255 / (high - low) if high > low else 0.0

    def to_uint8(values: np.ndarray) -> np.ndarray:
        values = values.view(np.uint32) if unsigned else values
        grey = np.rint((values.astype(np.float64) - low) * factor).astype(np.uint8)
        return 255 - grey if tags.get(262) == 0 else grey  # TIFF's WhiteIsZero, which Pillow forgets beyond 8 bits

    return to_uint8
