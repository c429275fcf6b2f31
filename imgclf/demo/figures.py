"""Flat figures in three inks: hands that sign a letter or play rock-paper-scissors, and signs for 15 sports."""

import math
import re
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from imgclf.demo.scenes import RGB, Pixels

__all__ = ["GESTURES", "SIGNS", "SPORTS", "paint"]

# A name; how far index to little finger are up, in ninths; the thumb; degrees between fingers and of a turn to the left
_HANDS = """
    A 0000 side 3 0, B 9999 palm 3 0, C 5555 out 7 0, D 9222 touch 3 0, E 3333 palm 3 0, F 0999 touch 9 0,
    G 9000 side 3 80, H 9900 over 3 80, I 0009 over 3 0, J 0009 over 3 -60, K 9900 between 14 0, L 9000 out 3 0,
    M 3330 palm 3 0, N 3300 palm 3 0, O 4444 touch 3 0, P 9900 between 14 150, Q 9000 side 3 160, R 9900 over -20 0,
    S 0000 over 3 0, T 3000 between 3 0, U 9900 over 1 0, V 9900 over 20 0, W 9990 over 14 0, X 4000 over 3 0,
    Y 0009 out 10 0, Z 9000 over 3 40, del 5555 side 3 100, space 9999 out 6 -75,
    paper 9999 out 12 0, rock 0000 over 3 0, scissors 9900 over 20 0
"""
_POSES = {name: pose for name, *pose in (hand.split() for hand in _HANDS.split(","))}
_THUMBS = {"side": (24, 44), "out": (4, 52), "palm": (60, 68), "over": (58, 58), "touch": (38, 42), "between": (46, 36)}
GESTURES = ("paper", "rock", "scissors")
SIGNS = tuple(name for name in _POSES if name not in GESTURES)

# Strokes on a grid of 100 x 100, rows counting downwards: a letter for the kind, the width, then x and y by turns.
# L is a line (of one point: a disc), A an area, R a ring whose radius is the width; small letters: in the accent's ink.
_STROKES = {
    "archery": "R40 50 50 R26 50 50 l24 50 50 l4 50 50 96 8",
    "baseball": "L6 12 88 40 60 L13 44 56 80 20 l22 28 30",
    "basketball": "l80 50 50 L4 10 50 90 50 L4 50 10 50 90 L4 24 20 36 50 24 80 L4 76 20 64 50 76 80",
    "bowling": "l40 30 72 L16 74 50 74 86 L18 74 20 L9 74 20 74 50 L8 26 66 L8 36 64",
    "boxing": "l44 40 32 58 36 l20 24 50 40 52 L2 34 34 38 46 A0 40 62 72 62 72 92 40 92 l5 42 72 70 72",
    "cheerleading": "l28 18 20 l28 82 20 L20 50 26 L7 22 24 50 50 78 24 L8 42 96 50 50 58 96 a0 50 50 72 74 28 74",
    "fencing": "L4 10 10 84 84 L4 90 10 16 84 l8 62 82 82 62 l8 18 62 38 82",
    "football": "a0 4 50 26 26 50 20 74 26 96 50 74 74 50 80 26 74 L4 30 50 70 50 L4 40 42 40 58 L4 50 42 50 58 L4 60 42 60 58",
    "golf": "L5 40 92 40 8 a0 42 8 82 22 42 38 L16 72 86",
    "hockey": "L8 70 6 34 84 8 84 l24 74 82",
    "rowing": "A0 6 56 94 56 78 74 22 74 l6 20 20 80 90 l14 72 80 82 92",
    "swimming": "L28 70 34 L10 56 44 20 50 L8 50 44 40 20 60 12 l6 4 68 20 62 36 68 52 62 68 68 84 62 96 68",
    "tennis": "R28 62 34 L8 42 56 16 90 L2 62 10 62 58 L2 38 34 86 34 l20 84 84",
    "volleyball": "l3 4 40 96 40 l3 4 56 96 56 l3 4 72 96 72 L6 4 30 4 96 L6 96 30 96 96 L36 50 20",
    "wheelchair basketball": "R28 44 66 L7 26 14 32 50 64 50 76 84 88 84 l30 74 24",
}
SPORTS = tuple(_STROKES)
_Stroke = tuple[str, int, float, NDArray[np.float64]]  # kind, ink, width, points [N, 2]


def paint(name: str, inks: tuple[RGB, RGB, RGB]) -> Pixels:
    """Return a figure, RGBA [200, 200, 4], with colours multiplied by alpha.

    The inks of a hand are skin, outline and sleeve; those of a sport's sign are plate, figure and accent.
    """
    levels = np.vstack([np.array(inks).T / 255, np.ones(3)])
    return np.asarray(cv2.transform(_coverage(name), levels), np.uint8)


@cache
def _coverage(name: str) -> Pixels:
    """Return how much of every pixel each ink covers, 255 for all of it: [200, 200, inks]."""
    image, unit = np.zeros((200, 200, 3), np.uint8), 200 / 116  # the grid and a margin of 8 units on each side
    for kind, ink, width, points in _sport(name) if name in SPORTS else _hand(name):
        level = [255 * (channel == ink) for channel in range(3)]
        at = ((points + 8) * unit * 16).round().astype(np.int32)  # in sixteenths of a pixel: a shift of 4 bits
        if kind == "A":
            cv2.fillPoly(image, [at], level, cv2.LINE_AA, 4)
        elif kind == "R":
            cv2.circle(image, at[0].tolist(), round(width * unit * 16), level, 9, cv2.LINE_AA, 4)
        else:
            cv2.polylines(image, [at], len(at) == 1, level, round(width * unit), cv2.LINE_AA, 4)
    return image


def _sport(name: str) -> list[_Stroke]:
    plate = np.array([(0, 0), (100, 0), (100, 100), (0, 100), (0, 0)], float)
    strokes: list[_Stroke] = [("A", 0, 0, plate), ("L", 0, 14, plate)]
    for kind, width, numbers in re.findall(r"([A-Za-z])(\d+)([ \d]+)", _STROKES[name]):
        points = np.array(numbers.split(), float).reshape(-1, 2)
        strokes.append((kind.upper(), 1 + kind.islower(), float(width), points))
    return strokes


def _hand(name: str) -> list[_Stroke]:
    """Return the palm side of a right hand: sleeve, palm, four fingers and the thumb, each with its outline."""
    fingers, thumb, *degrees = _POSES[name]
    spread, turn = (math.radians(float(angle)) for angle in degrees)
    ends = [(50.0, 86.0, 50.0, 88.0), (50.0, 60.0, 50.0, 66.0)]
    for finger, (up, longest) in enumerate(zip(fingers, (42, 47, 44, 35), strict=True)):
        x, angle = 33 + 11.5 * finger, spread * (finger - 1.5)
        reach = longest * int(up) / 9 or -8  # a folded finger points down
        ends.append((x, 50, x + reach * math.sin(angle), 50 - reach * math.cos(angle)))
    ends.append((30, 72, *_THUMBS[thumb]))
    rotation = np.array([(math.cos(turn), -math.sin(turn)), (math.sin(turn), math.cos(turn))])
    lines = (np.array(ends).reshape(-1, 2, 2) - 50) @ rotation + 50
    strokes: list[_Stroke] = []
    for ink, width, line in zip((2, 0, 0, 0, 0, 0, 0), (28, 38, 9, 9, 9, 9, 10), lines, strict=True):
        strokes += [("L", 1, width + 3, line), ("L", ink, width, line)]
    return strokes
