"""What the demo pictures share: cluttered backgrounds, a perspective view of a flat thing, lighting and encoding."""

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Pixels", "backgrounds", "colour", "crop", "lights", "paste", "relight", "view", "write_image"]

Pixels = NDArray[np.uint8]  # RGB [H, W, 3], RGBA [H, W, 4] or grey [H, W]
RGB = tuple[int, int, int]


def colour(rng: np.random.Generator, saturation: tuple[int, int], value: tuple[int, int]) -> RGB:
    """One RGB colour of any hue; saturation and value lie in the stated ranges of 0-255."""
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], np.uint8)
    red, green, blue = (int(level) for level in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])
    return red, green, blue


def backgrounds(rng: np.random.Generator, count: int, side: int, things: int = 9) -> list[Pixels]:
    """Table tops [side, side, 3]: felt, wood and checked cloth of any colour, with about `things` things lying about."""
    return [_clutter(_surface(rng, side, kind), rng, things) for kind in [*("felt", "wood", "cloth") * count][:count]]


def _surface(rng: np.random.Generator, side: int, kind: str) -> Pixels:
    grain = (side // 2, side // 24) if kind == "wood" else (side // 3, side // 3)  # height and width before stretching
    noise = rng.normal(0, 10 if kind == "wood" else 4, grain).astype(np.float32)
    texture = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    if kind == "cloth":
        wave = np.sign(np.sin(np.arange(side) * (2 * math.pi / rng.uniform(side / 16, side / 6)))).astype(np.float32)
        texture += 12 * (wave[None, :] + wave[:, None])
    base = np.array(colour(rng, (25, 150), (70, 210)), np.float32)
    return np.clip(base + texture[..., None], 0, 255).astype(np.uint8)


def _clutter(image: Pixels, rng: np.random.Generator, things: int) -> Pixels:
    side = len(image)
    for kind in rng.integers(0, 4, things):
        x, y, size = int(rng.integers(side)), int(rng.integers(side)), int(rng.integers(side // 20, side // 7))
        paint = colour(rng, (60, 190), (70, 235))
        dark = (paint[0] // 2, paint[1] // 2, paint[2] // 2)
        angle = float(rng.uniform(0, 180))
        if kind == 0:  # a coin
            cv2.circle(image, (x + 1, y + 2), size // 2, dark, -1, cv2.LINE_AA)
            cv2.circle(image, (x, y), size // 2, paint, -1, cv2.LINE_AA)
            cv2.circle(image, (x, y), max(size // 2 - 3, 2), dark, 1, cv2.LINE_AA)
        elif kind == 1:  # a pencil
            end = (int(x + 4 * size * math.cos(math.radians(angle))), int(y + 4 * size * math.sin(math.radians(angle))))
            cv2.line(image, (x + 1, y + 3), (end[0] + 1, end[1] + 3), dark, 7, cv2.LINE_AA)
            cv2.line(image, (x, y), end, paint, 6, cv2.LINE_AA)
        elif kind == 2:  # a book
            corners = cv2.boxPoints(((x, y), (2.4 * size, 1.7 * size), angle)).astype(np.int32)
            cv2.fillPoly(image, [corners + 3], dark, cv2.LINE_AA)
            cv2.fillPoly(image, [corners], paint, cv2.LINE_AA)
        else:  # a pebble
            for offset, shade in ((2, dark), (0, paint)):
                cv2.ellipse(
                    image, (x, y + offset), (size // 2 + 3, size // 3 + 2), angle, 0, 360, shade, -1, cv2.LINE_AA
                )
    return image


def crop(background: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """A random piece [side, side, 3] of a background, mirrored at random and with its colour channels in any order."""
    top, left = (int(value) for value in rng.integers(0, len(background) - side + 1, 2))
    piece = cv2.flip(background[top : top + side, left : left + side], int(rng.integers(-1, 2)))
    channels = cv2.split(piece)
    return np.asarray(cv2.merge([channels[index] for index in rng.permutation(3)]))


def lights(rng: np.random.Generator, count: int, side: int) -> list[Pixels]:
    """Lamps: maps [side, side, 3] of brightness to multiply a picture by, 160 standing for 1; warm, cold, from a side."""
    steps = np.linspace(-1, 1, side, dtype=np.float32)
    maps = []
    for _ in range(count):
        angle, slope, level = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3), rng.uniform(0.75, 1.15)
        plane = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle)
        vignette = 1 - rng.uniform(0, 0.2) * (steps[None, :] ** 2 + steps[:, None] ** 2) / 2
        cast = 1 + rng.uniform(-0.1, 0.1) * np.array((1, 0, -1), np.float32)
        brightness = (level * (1 + slope * plane) * vignette)[..., None] * cast
        maps.append(np.clip(160 * brightness, 0, 255).astype(np.uint8))
    return maps


def view(
    layer: Pixels,
    side: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    turn: float,
    tilt: float,
    shift: float,
) -> NDArray[np.float64]:
    """A random homography [3, 3] from a flat layer into a picture of `side` pixels.

    `scale` is the layer's height in picture sides, `turn` the greatest rotation in degrees, `tilt` how far a corner strays
    and `shift` how far the centre does, both in picture sides.
    """
    height, width = layer.shape[:2]
    half, angle = side * rng.uniform(*scale) / 2, math.radians(rng.uniform(-turn, turn))
    corners = np.array([(-width / height, -1), (width / height, -1), (width / height, 1), (-width / height, 1)]) * half
    rotation = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    target = corners @ rotation + side * (0.5 + rng.uniform(-shift, shift, 2) + rng.uniform(-tilt, tilt, (4, 2)))
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(source, target.astype(np.float32)))


def paste(image: Pixels, layer: Pixels, matrix: NDArray[np.float64], light: Pixels) -> Pixels:
    """`image` with the RGBA `layer` seen through `matrix` above a soft shadow, all under `light`; [H, W, 3].

    The layer's colours are already multiplied by its alpha, so that its edges stay clean under interpolation.
    """
    size = (image.shape[1], image.shape[0])
    seen = cv2.warpPerspective(layer, matrix, size, flags=cv2.INTER_LINEAR)
    alpha = seen[..., 3]
    shadow = cv2.blur(cv2.copyMakeBorder(alpha[:-6, :-4], 6, 0, 4, 0, cv2.BORDER_REPLICATE), (11, 11))
    clear = cv2.min(cv2.bitwise_not(alpha), cv2.convertScaleAbs(shadow, alpha=-0.5, beta=255))
    behind = cv2.multiply(image, cv2.cvtColor(clear, cv2.COLOR_GRAY2RGB), scale=1 / 255)
    return relight(np.asarray(cv2.add(behind, cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB)), np.uint8), light)


def relight(image: Pixels, light: Pixels) -> Pixels:
    """`image` under one of `lights` of its size."""
    return np.asarray(cv2.multiply(image, light, scale=1 / 160))


def write_image(path: Path, image: Pixels, grey: bool = False) -> None:
    """`image` (RGB, or RGBA with alpha as it comes) as a small JPEG or PNG, by the name's ending; the folder must exist."""
    code = cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]  # the quickest
    setting = png if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 85]
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(image, code), setting)[1].tobytes())
