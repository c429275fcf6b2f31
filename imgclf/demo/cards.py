"""The 53 faces of a deck of cards, drawn flat: indices, pips, and a figure for the courts and the joker."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from imgclf.demo.scenes import RGB, Pixels

__all__ = ["CARD_CLASSES", "card_faces"]

_RANK_NAMES = ("ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king")
_RANKS = dict(zip(_RANK_NAMES, ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K"), strict=True))
_RED, _BLACK = (205, 24, 36), (22, 24, 30)
_SUITS = {"clubs": (14, 122, 58), "diamonds": (24, 84, 200), "hearts": _RED, "spades": _BLACK}  # a four-colour deck
CARD_CLASSES = sorted([*(f"{rank} of {suit}" for rank in _RANKS for suit in _SUITS), "joker"])

_FINE = 2  # drawn this much larger than the layer handed out, because the edges of PIL's shapes are hard
_WIDTH, _HEIGHT = 200 * _FINE, 280 * _FINE
_SKIN, _GOLD, _PAPER = (246, 212, 176), (236, 180, 40), (251, 249, 242)
_ROBES = {"clubs": (38, 128, 84), "diamonds": (62, 124, 224), "hearts": (208, 52, 88), "spades": (78, 74, 96)}
_CURTAINS = {"jack": (164, 214, 248), "queen": (252, 180, 210), "king": (255, 218, 100)}
_LEFT, _MIDDLE, _RIGHT = 0.36, 0.5, 0.64
_TWO, _THREE, _FOUR = (0.17, 0.83), (0.17, 0.5, 0.83), (0.15, 0.383, 0.617, 0.85)
# Where the pips of each rank stand: column -> rows, in card widths and heights
_PIPS: dict[str, dict[float, tuple[float, ...]]] = {
    "two": {_MIDDLE: _TWO},
    "three": {_MIDDLE: _THREE},
    "four": {_LEFT: _TWO, _RIGHT: _TWO},
    "five": {_LEFT: _TWO, _MIDDLE: (0.5,), _RIGHT: _TWO},
    "six": {_LEFT: _THREE, _RIGHT: _THREE},
    "seven": {_LEFT: _THREE, _MIDDLE: (0.335,), _RIGHT: _THREE},
    "eight": {_LEFT: _THREE, _MIDDLE: (0.335, 0.665), _RIGHT: _THREE},
    "nine": {_LEFT: _FOUR, _MIDDLE: (0.5,), _RIGHT: _FOUR},
    "ten": {_LEFT: _FOUR, _MIDDLE: (0.267, 0.733), _RIGHT: _FOUR},
}


@cache
def card_faces() -> dict[str, Pixels]:
    """Class name -> RGBA [280, 200, 4] with colours multiplied by alpha; the same for every seed."""
    return {name: _face(name) for name in CARD_CLASSES}


def _face(name: str) -> Pixels:
    rank, _, suit = name.partition(" of ")
    half = Image.new("RGB", (_WIDTH, _HEIGHT), "white")  # what the card shows twice, upright and upside down
    draw = ImageDraw.Draw(half)
    if name == "joker":
        _joker(draw)
    else:
        if rank in ("jack", "queen", "king"):
            _court(draw, rank, suit)
        _index(draw, rank, suit)
    draw.rectangle((0, _HEIGHT // 2, _WIDTH, _HEIGHT), "white")
    face = ImageChops.darker(half, half.rotate(180))
    draw = ImageDraw.Draw(face)
    columns = _PIPS.get(rank, {})
    size = (0.26 if sum(map(len, columns.values())) <= 6 else 0.21) * _WIDTH
    for column, rows in columns.items():
        for row in rows:
            _suit(draw, suit, column * _WIDTH, row * _HEIGHT, size, upside_down=row > 0.5)
    if rank == "ace":
        _suit(draw, suit, _WIDTH / 2, _HEIGHT / 2, 0.56 * _WIDTH)
    return _cut_out(ImageChops.multiply(face, Image.new("RGB", face.size, _PAPER)))


def _cut_out(face: Image.Image) -> Pixels:
    outline = Image.new("L", face.size, 0)
    shape = (2, 2, _WIDTH - 3, _HEIGHT - 3)
    ImageDraw.Draw(outline).rounded_rectangle(shape, radius=14 * _FINE, fill=255)
    ImageDraw.Draw(face).rounded_rectangle(shape, radius=14 * _FINE, outline=(170, 168, 160), width=_FINE)
    face = Image.composite(face, Image.new("RGB", face.size), outline)
    face.putalpha(outline)
    return np.asarray(face.resize((_WIDTH // _FINE, _HEIGHT // _FINE), Image.Resampling.BOX)).copy()


def _suit(draw: ImageDraw.ImageDraw, suit: str, x: float, y: float, size: float, upside_down: bool = False) -> None:
    """One pip of `size` pixels with its centre at x, y."""
    scale, ink = (-size if upside_down else size), _SUITS[suit]

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + scale * across, y + scale * down) for across, down in points], ink)

    if suit == "diamonds":
        polygon((0, -0.56), (0.4, 0), (0, 0.56), (-0.4, 0))
    elif suit == "clubs":
        for across, down in ((0, -0.24), (-0.25, 0.1), (0.25, 0.1)):
            spot = (x + scale * across, y + scale * down)
            draw.circle(spot, 0.23 * size, ink)
        polygon((-0.08, -0.1), (0.08, -0.1), (0.08, 0.1), (0.2, 0.5), (-0.2, 0.5), (-0.08, 0.1))
    else:
        turns = np.linspace(0, 2 * math.pi, 40)
        curve_x = 16 * np.sin(turns) ** 3 / 34  # https://mathworld.wolfram.com/HeartCurve.html
        curve_y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)) / 32
        if suit == "spades":
            curve_y = -curve_y - 0.1
            polygon((0, 0), (0.2, 0.5), (-0.2, 0.5))
        polygon(*zip(curve_x.tolist(), curve_y.tolist(), strict=True))


def _index(draw: ImageDraw.ImageDraw, rank: str, suit: str) -> None:
    """The rank and the suit in the upper left corner, in the large size of a bridge club's decks."""
    font = ImageFont.load_default(size=(44 if rank == "ten" else 62) * _FINE)
    draw.text((27 * _FINE, 29 * _FINE), _RANKS[rank], _SUITS[suit], font, anchor="mm", stroke_width=1.5 * _FINE)
    _suit(draw, suit, 27 * _FINE, 76 * _FINE, 42 * _FINE)


def _court(draw: ImageDraw.ImageDraw, rank: str, suit: str) -> None:
    """A bust between the frame's upper edge and the card's middle: crown and beard, crown and long hair, or beret."""

    def polygon(ink: RGB, *points: tuple[float, float]) -> None:
        draw.polygon([(x * _FINE, y * _FINE) for x, y in points], ink, outline=_BLACK, width=_FINE)

    def circle(ink: RGB, x: float, y: float, radius: float) -> None:
        draw.circle((x * _FINE, y * _FINE), radius * _FINE, ink, outline=_BLACK, width=_FINE)

    robe = _ROBES[suit]
    draw.rectangle((48 * _FINE, 16 * _FINE, 152 * _FINE, 300 * _FINE), _CURTAINS[rank], robe, 2 * _FINE)
    hair = {"king": (150, 150, 150), "queen": (150, 84, 34), "jack": (214, 160, 60)}[rank]
    if rank == "queen":
        polygon(hair, (76, 52), (124, 52), (134, 112), (66, 112))
    else:
        circle(hair, 100, 68, 28)
    polygon(robe, (50, 142), (54, 118), (84, 102), (116, 102), (146, 118), (150, 142))
    polygon(_GOLD, (88, 102), (112, 102), (108, 142), (92, 142))
    circle(_SKIN, 100, 70, 22)
    if rank == "king":
        polygon(hair, (80, 78), (120, 78), (112, 104), (100, 112), (88, 104))
        polygon(_GOLD, (72, 54), (68, 22), (84, 38), (100, 20), (116, 38), (132, 22), (128, 54))
    elif rank == "queen":
        polygon(_GOLD, (82, 50), (80, 34), (90, 42), (100, 30), (110, 42), (120, 34), (118, 50))
        circle(robe, 100, 28, 5)
    else:
        polygon(robe, (70, 54), (74, 34), (112, 28), (134, 44), (130, 54))
        polygon(_GOLD, (118, 34), (144, 18), (136, 44))
    for x in (92, 108):
        draw.circle((x * _FINE, 66 * _FINE), 2.5 * _FINE, _BLACK)
    draw.line([(94 * _FINE, 82 * _FINE), (106 * _FINE, 82 * _FINE)], _RED, 2 * _FINE)
    _suit(draw, suit, 136 * _FINE, 82 * _FINE, 24 * _FINE)


def _joker(draw: ImageDraw.ImageDraw) -> None:
    """A jester's cap with three bells above a grin, and the word down the edge."""
    font = ImageFont.load_default(size=22 * _FINE)
    for row, letter in enumerate("JOKER"):
        draw.text((18 * _FINE, (24 + 22 * row) * _FINE), letter, (110, 40, 150), font, anchor="mm", stroke_width=_FINE)
    caps = (
        ((62, 88), (46, 40), (96, 60), (90, 92)),
        ((138, 88), (154, 40), (104, 60), (110, 92)),
        ((80, 90), (100, 24), (120, 90)),
    )
    for points, ink in zip(caps, ((36, 140, 90), (70, 90, 200), (206, 50, 70)), strict=True):
        draw.polygon([(x * _FINE, y * _FINE) for x, y in points], ink, outline=_BLACK, width=_FINE)
    for x, y in ((46, 40), (154, 40), (100, 24)):
        draw.circle((x * _FINE, y * _FINE), 8 * _FINE, _GOLD, outline=_BLACK, width=_FINE)
    draw.circle((100 * _FINE, 104 * _FINE), 30 * _FINE, _SKIN, outline=_BLACK, width=_FINE)
    for x in (90, 110):
        draw.circle((x * _FINE, 98 * _FINE), 4 * _FINE, _BLACK)
    draw.chord((82 * _FINE, 94 * _FINE, 118 * _FINE, 126 * _FINE), 10, 170, _RED, outline=_BLACK, width=_FINE)
