"""What all demo images share: cluttered tables, lamps, a perspective view of a flat layer, and encoding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["RGB", "Pixels", "Studio", "colour", "write_image"]

Pixels = NDArray[np.uint8]  # RGB [H, W, 3], RGBA [H, W, 4] or grey [H, W]
RGB = tuple[int, int, int]


@dataclass
class Studio:
    """Tables and lamps, from which every image takes its own; they are drawn at the start."""

    rng: np.random.Generator
    side: int  # pixels of an image
    tables: int  # how many
    scale: tuple[float, float]  # range of a layer's height, in image sides
    shift: float  # greatest offset of its centre, in image sides
    tilt: float  # greatest offset of its corners, in image sides
    turn: float  # greatest rotation, in degrees
    things: int = 9  # on a table
    kinds: tuple[str, ...] = ("felt", "wood", "cloth")  # of tables

    def __post_init__(self) -> None:
        kinds = [*self.kinds * self.tables][: self.tables]
        side = self.side * 3 // 2
        self._tables = [_clutter(_surface(self.rng, side, kind), self.rng, self.things) for kind in kinds]
        self._lamps = [_lamp(self.rng, self.side) for _ in range(16)]

    def photograph(self, layer: Pixels) -> Pixels:
        """Return an image [side, side, 3] of the RGBA layer, whose colours are multiplied by alpha."""
        return next(self.film(layer))

    def film(self, layer: Pixels) -> Iterator[Pixels]:
        """Yield the frames of a video without end: one table and lamp, each frame close to the one before."""
        table, lamp = (items[self.rng.integers(len(items))] for items in (self._tables, self._lamps))
        matrix = self._homography(*layer.shape[:2])
        table = self._crop(table)
        while True:
            yield np.asarray(cv2.multiply(_paste(table, layer, matrix), lamp, scale=1 / 160), np.uint8)
            table = np.roll(table, self.rng.integers(-1, 2, 2), (0, 1))  # a hand-held camera
            matrix[:2] *= self.rng.normal(1, 0.01, (2, 3))

    def _homography(self, height: int, width: int) -> NDArray[np.float64]:
        """Return a random matrix [3, 3] that maps a layer's points to the image's."""
        half, angle = (
            self.side * self.rng.uniform(*self.scale) / 2,
            math.radians(self.rng.uniform(-self.turn, self.turn)),
        )
        corners = (
            np.array([(-width / height, -1), (width / height, -1), (width / height, 1), (-width / height, 1)]) * half
        )
        rotation = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
        centre = 0.5 + self.rng.uniform(-self.shift, self.shift, 2)
        target = corners @ rotation + self.side * (centre + self.rng.uniform(-self.tilt, self.tilt, (4, 2)))
        source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        return np.asarray(cv2.getPerspectiveTransform(source, target.astype(np.float32)))

    def _crop(self, table: Pixels) -> Pixels:
        """Return a random piece of the table, mirrored at random and with its colour channels in any order."""
        top, left = self.rng.integers(0, len(table) - self.side + 1, 2)
        piece = cv2.flip(table[top : top + self.side, left : left + self.side], int(self.rng.integers(-1, 2)))
        return np.ascontiguousarray(piece[..., self.rng.permutation(3)], np.uint8)


def colour(rng: np.random.Generator, saturation: tuple[int, int], value: tuple[int, int]) -> RGB:
    """Return a random RGB colour of any hue; saturation and value lie in the given ranges of 0-255."""
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


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
    """Return the image with coins, pencils, books and pebbles, each above its shadow."""
    side = len(image)
    for kind in rng.integers(0, 4, things):
        x, y, size = int(rng.integers(side)), int(rng.integers(side)), int(rng.integers(side // 20, side // 7))
        paint = colour(rng, (60, 190), (70, 235))
        dark = (paint[0] // 2, paint[1] // 2, paint[2] // 2)
        angle = float(rng.uniform(0, 180))
        if kind == 0:
            cv2.circle(image, (x + 1, y + 2), size // 2, dark, -1, cv2.LINE_AA)
            cv2.circle(image, (x, y), size // 2, paint, -1, cv2.LINE_AA)
            cv2.circle(image, (x, y), max(size // 2 - 3, 2), dark, 1, cv2.LINE_AA)
        elif kind == 1:
            end_x, end_y = (int(at + 4 * size * f(math.radians(angle))) for at, f in ((x, math.cos), (y, math.sin)))
            cv2.line(image, (x + 1, y + 3), (end_x + 1, end_y + 3), dark, 7, cv2.LINE_AA)
            cv2.line(image, (x, y), (end_x, end_y), paint, 6, cv2.LINE_AA)
        elif kind == 2:
            corners = cv2.boxPoints(((x, y), (2.4 * size, 1.7 * size), angle)).astype(np.int32)
            cv2.fillPoly(image, [corners + 3], dark, cv2.LINE_AA)
            cv2.fillPoly(image, [corners], paint, cv2.LINE_AA)
        else:
            for down, ink in ((2, dark), (0, paint)):
                axes = (size // 2 + 3, size // 3 + 2)
                cv2.ellipse(image, (x, y + down), axes, angle, 0, 360, ink, -1, cv2.LINE_AA)
    return image


def _lamp(rng: np.random.Generator, side: int) -> Pixels:
    """Return a map [side, side, 3] of brightness to multiply an image by, 160 standing for 1; warm or cold, from a side."""
    steps = np.linspace(-1, 1, side, dtype=np.float32)
    angle, slope, level = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3), rng.uniform(0.75, 1.15)
    plane = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle)
    vignette = 1 - rng.uniform(0, 0.2) * (steps[None, :] ** 2 + steps[:, None] ** 2) / 2
    cast = 1 + rng.uniform(-0.1, 0.1) * np.array((1, 0, -1), np.float32)
    brightness = (level * (1 + slope * plane) * vignette)[..., None] * cast
    return np.clip(160 * brightness, 0, 255).astype(np.uint8)


def _paste(image: Pixels, layer: Pixels, matrix: NDArray[np.float64]) -> Pixels:
    """Return `image` with the layer seen through `matrix` above a soft shadow."""
    seen = cv2.warpPerspective(layer, matrix, image.shape[:2], flags=cv2.INTER_LINEAR)
    alpha = seen[..., 3]
    shadow = cv2.blur(cv2.copyMakeBorder(alpha[:-6, :-4], 6, 0, 4, 0, cv2.BORDER_REPLICATE), (11, 11))
    clear = cv2.min(cv2.bitwise_not(alpha), cv2.convertScaleAbs(shadow, alpha=-0.5, beta=255))
    behind = cv2.multiply(image, cv2.cvtColor(clear, cv2.COLOR_GRAY2RGB), scale=1 / 255)
    return np.asarray(cv2.add(behind, cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB)), np.uint8)


def write_image(path: Path, image: Pixels) -> None:
    """Write an RGB or grey image as a JPEG, or an RGB image as a PNG with an alpha channel; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]  # the fastest
    setting = png if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 85]
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGRA if path.suffix == ".png" else cv2.COLOR_RGB2BGR))
    path.write_bytes(cv2.imencode(path.suffix, image, setting)[1].tobytes())
