"""Signs with a pictogram for each of 15 sports, drawn once each and then coloured."""

from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from imgclf.demo.pictograms import FIGURE, PICTOGRAMS, Stroke
from imgclf.demo.scenes import RGB, Pixels

__all__ = ["SPORTS_CLASSES", "sport_sign"]

SPORTS_CLASSES = tuple(PICTOGRAMS)
_SIDE, _FINE = (
    200,
    3,
)  # pixels of a sign, and how much larger it is drawn before shrinking, because PIL's edges are hard


def sport_sign(sport: str, figure: RGB, plate: RGB) -> Pixels:
    """A rounded plate with a figure and its gear, RGBA [200, 200, 4] with colours multiplied by alpha."""
    shape, body, gear = _masters(sport)
    return _over(_over(_tint(shape, plate), _tint(body, figure)), gear)


def _tint(mask: Pixels, paint: RGB) -> Pixels:
    return np.asarray(cv2.merge([*(cv2.convertScaleAbs(mask, alpha=level / 255) for level in paint), mask]))


def _over(under: Pixels, layer: Pixels) -> Pixels:
    rest = cv2.bitwise_not(cv2.merge([layer[..., 3]] * 4))
    return np.asarray(cv2.add(cv2.multiply(under, rest, scale=1 / 255), layer))


@cache
def _masters(sport: str) -> tuple[Pixels, Pixels, Pixels]:
    """The plate's and the figure's coverage [200, 200] and the gear [200, 200, 4], its colours multiplied by alpha."""
    side = _SIDE * _FINE
    plate, body, gear = Image.new("L", (side, side)), Image.new("L", (side, side)), Image.new("RGBA", (side, side))
    ImageDraw.Draw(plate).rounded_rectangle((3, 3, side - 4, side - 4), radius=side // 8, fill=255)
    on_body, on_gear = ImageDraw.Draw(body), ImageDraw.Draw(gear)
    for stroke in PICTOGRAMS[sport]:
        if stroke[1] == FIGURE:
            _draw(on_body, stroke, 255)
        else:
            _draw(on_gear, stroke, (*stroke[1], 255))
    small = [layer.resize((_SIDE, _SIDE), Image.Resampling.BOX) for layer in (plate, body, gear.convert("RGBa"))]
    shape, figure = np.asarray(small[0]), np.asarray(small[1])
    return shape, figure, np.frombuffer(small[2].tobytes(), np.uint8).reshape(_SIDE, _SIDE, 4)


def _draw(draw: ImageDraw.ImageDraw, stroke: Stroke, ink: int | tuple[int, int, int, int]) -> None:
    kind, _, width, numbers = stroke
    unit = _SIDE * _FINE / 116  # the grid's 100 units and a margin of 8 on each side
    points = [((x + 8) * unit, (y + 8) * unit) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    if kind == "area":
        draw.polygon(points, ink)
    elif kind == "disc":
        draw.circle(points[0], width * unit, ink)
    elif kind == "ring":
        draw.circle(points[0], width * unit, outline=ink, width=round(3 * unit))
    else:
        draw.line(points, ink, round(width * unit))
        for point in points:
            draw.circle(point, width * unit / 2, ink)
