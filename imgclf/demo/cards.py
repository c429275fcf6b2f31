"""The 53 faces of a deck of cards, drawn flat: indices, pips, and a figure for the courts and the joker."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from imgclf.demo.scenes import RGB, Pixels

__all__ = ["CARD_CLASSES", "card_face"]

_RANK_NAMES = ("ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king")
_RANKS = dict(zip(_RANK_NAMES, ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K"), strict=True))
_RED, _BLACK = (205, 24, 36), (22, 24, 30)
_SUITS = {"clubs": (14, 122, 58), "diamonds": (24, 84, 200), "hearts": _RED, "spades": _BLACK}  # a four-colour deck
CARD_CLASSES = tuple(sorted(["joker", *(f"{rank} of {suit}" for rank in _RANKS for suit in _SUITS)]))

_FINE = 2  # drawn this much larger than the face returned, because the edges of PIL's shapes are hard
_WIDTH, _HEIGHT = 200 * _FINE, 280 * _FINE
_ROBES = {"clubs": (38, 128, 84), "diamonds": (62, 124, 224), "hearts": (208, 52, 88), "spades": (78, 74, 96)}
_CURTAINS = {"jack": (164, 214, 248), "queen": (252, 180, 210), "king": (255, 218, 100)}
_HAIR = {"jack": (214, 160, 60), "queen": (150, 84, 34), "king": (150, 150, 150)}
_INKS = {"skin": (246, 212, 176), "gold": (236, 180, 40), "black": _BLACK, "red": (206, 50, 70)}
_INKS |= {"green": (36, 140, 90), "blue": (70, 90, 200)}
# Outlined shapes: an ink, then x y radius of a circle, or x and y by turns of a polygon's corners
_BUST = "robe 50 142 54 118 84 102 116 102 146 118 150 142, gold 88 102 112 102 108 142 92 142, skin 100 70 22"
_BEARD = "hair 80 78 120 78 112 104 100 112 88 104"
_CROWN = "gold 72 54 68 22 84 38 100 20 116 38 132 22 128 54"
_TIARA = "gold 82 50 80 34 90 42 100 30 110 42 120 34 118 50, robe 100 28 5"
_BERET = "robe 70 54 74 34 112 28 134 44 130 54, gold 118 34 144 18 136 44"
_EYES = "black 92 66 2.5, black 108 66 2.5"
_COURTS = {
    "jack": f"hair 100 68 28, {_BUST}, {_BERET}, {_EYES}",
    "queen": f"hair 76 52 124 52 134 112 66 112, {_BUST}, {_TIARA}, {_EYES}",
    "king": f"hair 100 68 28, {_BUST}, {_BEARD}, {_CROWN}, {_EYES}",
}
_CAP = "green 62 88 46 40 96 60 90 92, blue 138 88 154 40 104 60 110 92, red 80 90 100 24 120 90"
_JOKER = f"{_CAP}, gold 46 40 8, gold 154 40 8, gold 100 24 8, skin 100 104 30, black 90 98 4, black 110 98 4"
_TWO, _THREE, _FOUR = (0.17, 0.83), (0.17, 0.5, 0.83), (0.15, 0.383, 0.617, 0.85)
# Where the pips of two to ten stand: rows, in card heights, of the left and right column, and of the middle one
_SIDES = ((), (), _TWO, _TWO, _THREE, _THREE, _THREE, _FOUR, _FOUR)
_MIDDLES = (_TWO, _THREE, (), (0.5,), (), (0.335,), (0.335, 0.665), (0.5,), (0.267, 0.733))
_PIPS = dict(zip(_RANK_NAMES[1:10], zip(_SIDES, _MIDDLES, strict=True), strict=True))


@cache
def card_face(name: str) -> Pixels:
    """Return the face of a class, RGBA [280, 200, 4], with colours multiplied by alpha; the same for every seed."""
    rank, _, suit = name.partition(" of ")
    half = Image.new("RGB", (_WIDTH, _HEIGHT), "white")  # what the card shows twice, upright and upside down
    draw = ImageDraw.Draw(half)
    if name == "joker":
        _joker(draw)
    else:
        if rank in _COURTS:
            _court(draw, rank, suit)
        font = ImageFont.load_default(size=(44 if rank == "ten" else 62) * _FINE)
        draw.text((27 * _FINE, 29 * _FINE), _RANKS[rank], _SUITS[suit], font, anchor="mm", stroke_width=1.5 * _FINE)
        _suit(draw, suit, 27 * _FINE, 76 * _FINE, 42 * _FINE)
    draw.rectangle((0, _HEIGHT // 2, _WIDTH, _HEIGHT), "white")
    face = ImageChops.darker(half, half.rotate(180))
    draw = ImageDraw.Draw(face)
    sides, middle = _PIPS.get(rank, ((), ()))
    size = (0.26 if 2 * len(sides) + len(middle) <= 6 else 0.21) * _WIDTH
    for column, rows in ((0.36, sides), (0.5, middle), (0.64, sides)):
        for row in rows:
            _suit(draw, suit, column * _WIDTH, row * _HEIGHT, -size if row > 0.5 else size)
    if rank == "ace":
        _suit(draw, suit, _WIDTH / 2, _HEIGHT / 2, 0.56 * _WIDTH)
    return _cut_out(ImageChops.multiply(face, Image.new("RGB", face.size, (251, 249, 242))))


def _cut_out(face: Image.Image) -> Pixels:
    """Round the corners, draw the edge, and shrink the face to its final size."""
    outline = Image.new("L", face.size, 0)
    shape = (2, 2, _WIDTH - 3, _HEIGHT - 3)
    ImageDraw.Draw(outline).rounded_rectangle(shape, radius=14 * _FINE, fill=255)
    ImageDraw.Draw(face).rounded_rectangle(shape, radius=14 * _FINE, outline=(170, 168, 160), width=_FINE)
    face = Image.composite(face, Image.new("RGB", face.size), outline)
    face.putalpha(outline)
    return np.asarray(face.resize((_WIDTH // _FINE, _HEIGHT // _FINE), Image.Resampling.BOX)).copy()


def _suit(draw: ImageDraw.ImageDraw, suit: str, x: float, y: float, size: float) -> None:
    """Draw one pip of `size` pixels around x, y; a negative size turns it upside down."""

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + size * across, y + size * down) for across, down in points], _SUITS[suit])

    if suit == "diamonds":
        polygon((0, -0.56), (0.4, 0), (0, 0.56), (-0.4, 0))
    elif suit == "clubs":
        for across, down in ((0, -0.24), (-0.25, 0.1), (0.25, 0.1)):
            draw.circle((x + size * across, y + size * down), 0.23 * abs(size), _SUITS[suit])
        polygon((-0.08, -0.1), (0.08, -0.1), (0.08, 0.1), (0.2, 0.5), (-0.2, 0.5), (-0.08, 0.1))
    else:
        turns = np.linspace(0, 2 * math.pi, 40)
        curve_x = 16 * np.sin(turns) ** 3 / 34  # https://mathworld.wolfram.com/HeartCurve.html
        curve_y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)) / 32
        if suit == "spades":
            curve_y = -curve_y - 0.1
            polygon((0, 0), (0.2, 0.5), (-0.2, 0.5))
        polygon(*zip(curve_x.tolist(), curve_y.tolist(), strict=True))


def _shapes(draw: ImageDraw.ImageDraw, shapes: str, inks: dict[str, RGB]) -> None:
    for ink, *numbers in (shape.split() for shape in shapes.split(",")):
        at = [float(number) * _FINE for number in numbers]
        if len(at) == 3:
            draw.circle((at[0], at[1]), at[2], inks[ink], _BLACK, _FINE)
        else:
            draw.polygon(at, inks[ink], _BLACK, _FINE)


def _court(draw: ImageDraw.ImageDraw, rank: str, suit: str) -> None:
    """Draw a bust between the frame's upper edge and the card's middle."""
    frame = (48 * _FINE, 16 * _FINE, 152 * _FINE, 300 * _FINE)
    draw.rectangle(frame, _CURTAINS[rank], _ROBES[suit], 2 * _FINE)
    _shapes(draw, _COURTS[rank], _INKS | {"robe": _ROBES[suit], "hair": _HAIR[rank]})
    draw.line([(94 * _FINE, 82 * _FINE), (106 * _FINE, 82 * _FINE)], _RED, 2 * _FINE)
    _suit(draw, suit, 136 * _FINE, 82 * _FINE, 24 * _FINE)


def _joker(draw: ImageDraw.ImageDraw) -> None:
    """Draw a jester's cap with three bells above a grin, and the word down the edge."""
    font = ImageFont.load_default(size=22 * _FINE)
    for row, letter in enumerate("JOKER"):
        draw.text((18 * _FINE, (24 + 22 * row) * _FINE), letter, (110, 40, 150), font, anchor="mm", stroke_width=_FINE)
    _shapes(draw, _JOKER, _INKS)
    draw.chord((82 * _FINE, 94 * _FINE, 118 * _FINE, 126 * _FINE), 10, 170, _RED, outline=_BLACK, width=_FINE)
