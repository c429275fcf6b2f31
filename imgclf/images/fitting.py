"""From a picture of any size and shape to the square that a network sees, in the channels that it takes."""

import math

import numpy as np
from PIL import Image

from imgclf.preprocess import Preprocess

__all__ = ["fit"]

_RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


def fit(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [S, S, C] of uint8 [H, W, 3], [H, W, 1] or [H, W]: to grey (ITU-R 601) or RGB, then to `preprocess.size`.

    Resizing is Pillow's, antialiased, as timm and torchvision do; "crop" is timm's evaluation transform. A picture that
    fits already is returned as it is.
    """
    channels, size = preprocess.channels, preprocess.size
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    same_channels = (1 if pixels.ndim == 2 else 3) == channels
    height, width = pixels.shape[:2]
    fits = (height, width) == (size, size) and (preprocess.resize != "crop" or preprocess.crop_pct == 1)
    if fits and same_channels:
        return pixels.reshape(size, size, channels)
    image = Image.fromarray(pixels)
    if not same_channels:
        image = image.convert("L" if channels == 1 else "RGB")
    if not fits:
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
    # "crop": torchvision's Resize(floor(size / crop_pct)) of the shorter side, then CenterCrop(size). The far ends of a
    # very long picture, which no filter reaches from the crop, go first: 1 x 50,000 would grow to 256 x 12,800,000.
    short, least, most = math.floor(size / preprocess.crop_pct), min(width, height), max(width, height)
    spare = most // 2 - 4 * least - 8
    if spare > 0 and short * short * most > 2**24 * least:
        x, y = (spare, 0) if width > height else (0, spare)
        image = image.crop((x, y, width - x, height - y))
    scaled = (int(short * image.width / least), int(short * image.height / least))
    left, top = (round((side - size) / 2.0) for side in scaled)
    return image.resize(scaled, resample).crop((left, top, left + size, top + size))
