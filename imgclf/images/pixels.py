"""Pixels of an image: any Pillow mode to uint8 RGB, upright by EXIF, fitted to the square that a network takes.

The conversion rules are listed in `imgclf.images.decode`.
"""

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgclf.errors import ImageError
from imgclf.preprocess import Preprocess

__all__ = [
    "BACKGROUND",
    "NUMERIC",
    "apply_orientation",
    "fit",
    "ignore_warnings",
    "largest_value",
    "orientation_of",
    "to_rgb",
]

# RGB under transparent pixels.
BACKGROUND = (255, 255, 255)
# First letters of the modes that hold more than 8 bits.
NUMERIC = ("I", "F")
# Pixels of an image that is converted in one step.
_SMALL = 2**20
# Pixels converted at a time above that, so that intermediate copies stay small.
_BAND = 2**18
_RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
# The warning filters belong to the whole process.
_LOCK = threading.Lock()

Pixels: TypeAlias = npt.NDArray[np.uint8]
Numbers: TypeAlias = npt.NDArray[Any]
# Transparent grey value, or transparent RGB colour.
Key: TypeAlias = int | Pixels | None
Scale: TypeAlias = Callable[[Numbers], Pixels]


def to_rgb(image: Image.Image, bits: int = 16) -> Pixels:
    """uint8 [H, W, 3] of an image as stored, not turned upright; large images are converted in bands.

    `bits`: 2**bits - 1 is white in 16-bit grey, and larger values are too.
    """
    key, frame = _transparent_key(image), _first_frame(image)
    with ignore_warnings() if image.format == "TIFF" else nullcontext():
        image.load()
    scale = _scale(image, bits) if image.mode.startswith(NUMERIC) else None
    if image.mode == "RGB" and key is None and image.width * image.height <= _SMALL:
        # The same result as below, in less time.
        pixels = np.array(image)
    else:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for rows, band in _bands(image):
            pixels[rows] = _band_to_rgb(band, key, scale)
    if frame and "transparency" not in image.info:
        left, top, right, bottom = frame
        pixels[:top] = pixels[bottom:] = pixels[:, :left] = pixels[:, right:] = BACKGROUND
    return pixels


def _tiles(image: Image.Image) -> list[Any]:
    """(codec, box, offset, arguments) of each part that Pillow has not decoded yet; none for an image in memory."""
    return getattr(image, "tile", [])


def _first_frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Box that the first frame of a GIF covers, which may be smaller than the image."""
    tiles = _tiles(image) if image.format == "GIF" else []
    return tiles[0][1] if tiles else None


def _transparent_key(image: Image.Image) -> Key:
    """The one transparent value or colour, as Pillow decodes it, or None; call it before the image is loaded.

    Pillow widens 2- and 4-bit grey to 8 bits and narrows 16-bit colour, but keeps the transparent value as stored.
    """
    colour = image.info.get("transparency")
    if colour is None or image.mode not in ("1", "L", "RGB", "I", "I;16"):
        return None
    tiles = _tiles(image)
    raw = str(tiles[0][3]) if tiles else ""
    if image.mode == "RGB":
        return np.array([value >> 8 if raw == "RGB;16B" else value & 255 for value in colour], np.uint8)
    if image.mode == "L":
        return {"L;2": (colour & 3) * 85, "L;4": (colour & 15) * 17}.get(raw, colour & 255)
    return colour


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    step = max(1, _BAND // image.width)
    if step >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _band_to_rgb(band: Image.Image, key: Key, scale: Scale | None) -> Pixels:
    """uint8 [h, W, 3] or [h, W, 1]; pixels of the colour `key` become `BACKGROUND`."""
    if band.mode == "La":
        # Pillow drops the alpha when it converts La to RGBA directly.
        band = band.convert("LA")
    has_alpha = band.mode in ("RGBA", "RGBa", "LA", "PA")
    if band.mode == "P" and band.palette:
        has_alpha = "transparency" in band.info or band.palette.mode == "RGBA"
    if has_alpha:
        return _blend(band if band.mode == "RGBA" else band.convert("RGBA"))
    if band.mode == "1":
        band = band.convert("L")
    elif not scale and band.mode != "RGB":
        band = band.convert("RGB")
    values = np.asarray(band)
    rgb = scale(values) if scale else values
    rgb = rgb[:, :, None] if rgb.ndim == 2 else rgb
    if key is None:
        return rgb
    equal = values == key
    transparent = equal[:, :, None] if equal.ndim == 2 else equal.all(2, keepdims=True)
    return np.where(transparent, np.array(BACKGROUND, np.uint8), rgb)


def _blend(image: Image.Image) -> Pixels:
    """uint8 [H, W, 3] of an RGBA image over `BACKGROUND`."""
    if image.getchannel("A").getextrema() == (255, 255):
        return np.asarray(image.convert("RGB"))
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, None, image)
    return np.asarray(canvas)


def _scale(image: Image.Image, white_bits: int) -> Scale:
    """Return the function that maps the numbers of mode I;16, I or F to uint8, by the rules of `imgclf.images.decode`."""
    bits, unsigned = _numbers_of(image)
    # A TIFF may hold 12 bits, and say so.
    low, high = 0.0, 2.0 ** (white_bits if bits == 16 else bits) - 1
    if not image.mode.startswith("I;16"):
        low, high = _range_of(image, unsigned, white_bits)
    factor, inverted = 255 / (high - low) if high > low else 0.0, getattr(image, "tag_v2", {}).get(262) == 0

    def to_uint8(values: Numbers) -> Pixels:
        values = values.view(np.uint32) if unsigned else values
        scaled = (values.astype(np.float64) - low) * factor
        grey = np.rint(np.minimum(scaled, 255, out=scaled)).astype(np.uint8)
        # TIFF's WhiteIsZero, which Pillow ignores above 8 bits.
        return 255 - grey if inverted else grey

    return to_uint8


def _numbers_of(image: Image.Image) -> tuple[int, bool]:
    """Bits of each number, and whether it is a uint32, which Pillow reads as int32; only a TIFF states them."""
    tags = getattr(image, "tag_v2", {})
    bits, kind = (value[0] if isinstance(value, tuple) else value for value in (tags.get(258, 16), tags.get(339, 1)))
    return bits, image.mode == "I" and 258 in tags and kind == 1


def _range_of(image: Image.Image, unsigned: bool, white_bits: int) -> tuple[float, float]:
    """The numbers that become 0 and 255: a customary range that holds all values, else their minimum and maximum."""
    least, most = _extremes(image, unsigned)
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ImageError("holds NaN or infinite values: replace them and save it again")
    if image.mode == "I" and white_bits < 16 and least >= 0 and most <= 65535:
        return 0.0, 2.0**white_bits - 1
    for top in (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0):
        if least >= 0 and most <= top:
            return 0.0, top
    return least, most


def _extremes(image: Image.Image, unsigned: bool) -> tuple[float, float]:
    arrays = (np.asarray(band) for _, band in _bands(image))
    limits = [(a.min(), a.max()) for a in (a.view(np.uint32) if unsigned else a for a in arrays)]
    return float(min(low for low, _ in limits)), float(max(high for _, high in limits))


def largest_value(image: Image.Image) -> int | None:
    """Largest number of a grey image whose white is 65,535; None for any other image."""
    bits, unsigned = _numbers_of(image)
    if image.mode != "I" and not (image.mode.startswith("I;16") and bits == 16):
        return None
    with ignore_warnings():
        image.load()
    least, most = _extremes(image, unsigned)
    is_small = image.mode == "I" and most <= 255
    return int(most) if least >= 0 and most <= 65535 and not is_small else None


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where the image has none, or one that can't be read."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    with ignore_warnings():
        try:
            value = image.getexif().get(274)
        except Exception:  # damaged EXIF leaves the pixels intact
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels upright by EXIF's orientation; 5 to 8 swap height and width."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def fit(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Convert uint8 [H, W, 3], [H, W, 1] or [H, W] to grey (ITU-R 601) or RGB and resize it: uint8 [S, S, C].

    Resizing is Pillow's, antialiased, as in timm and torchvision; "crop" is timm's evaluation transform. Pixels that fit
    already are returned without a copy.
    """
    channels, size = preprocess.channels, preprocess.size
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    same_channels = (1 if pixels.ndim == 2 else 3) == channels
    height, width = pixels.shape[:2]
    same_size = (height, width) == (size, size) and (preprocess.resize != "crop" or preprocess.crop_pct == 1)
    if same_size and same_channels:
        return pixels.reshape(size, size, channels)
    image = Image.fromarray(pixels)
    if not same_channels:
        image = image.convert("L" if channels == 1 else "RGB")
    if not same_size:
        image = _resize(image, preprocess)
    return np.array(image).reshape(size, size, channels)


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size, resample = preprocess.size, _RESAMPLE[preprocess.interpolation]
    width, height = image.size
    if preprocess.resize == "squash":
        return image.resize((size, size), resample)
    if preprocess.resize == "letterbox":
        scale = size / max(width, height)
        inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
        fill = tuple(min(255, max(0, round(mean * 255))) for mean in preprocess.mean)
        canvas = Image.new(image.mode, (size, size), fill if len(fill) == 3 else fill[0])
        canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return canvas
    # "crop": torchvision's Resize(floor(size / crop_pct)) of the shorter side, then CenterCrop(size). The ends of a very
    # long image, beyond the reach of any filter, are cut off first: 1 x 50,000 would grow to 256 x 12,800,000.
    short, least, most = math.floor(size / preprocess.crop_pct), min(width, height), max(width, height)
    spare = most // 2 - 4 * least - 8
    if spare > 0 and short * short * most > 2**24 * least:
        x, y = (spare, 0) if width > height else (0, spare)
        image = image.crop((x, y, width - x, height - y))
    scaled = (int(short * image.width / least), int(short * image.height / least))
    left, top = (round((side - size) / 2.0) for side in scaled)
    return image.resize(scaled, resample).crop((left, top, left + size, top + size))


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Silence Pillow's warnings: their causes are either refused by imgclf or harmless."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _renew_lock() -> None:
    """Make a lock for a forked worker, so that it never waits for a thread of its parent."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
