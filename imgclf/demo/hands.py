"""A hand of joints and tapered bones, posed by a letter a finger, and drawn as a lit relief."""

import math
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from imgclf.demo.scenes import RGB, Pixels

__all__ = ["GESTURES", "MOVES", "NO_MOVE", "SIGNS", "SKINS", "Pose", "draw_hand"]

Floats = NDArray[np.float64]
_End = tuple[float, float, float, float]  # x, y, z and radius of one end of a bone
MOVES = 12  # numbers that say how one hand departs from its pose: see `_bones` and `draw_hand`
NO_MOVE: Floats = np.zeros(MOVES)
SKINS: tuple[RGB, ...] = (
    (255, 219, 190),
    (241, 194, 150),
    (224, 172, 125),
    (190, 130, 88),
    (141, 90, 60),
    (92, 58, 40),
)

# How far a finger's three joints bend, in degrees: up, fist, hooked, rounded, tucked, clawed
_BENDS = {
    "u": (4, 6, 4),
    "f": (85, 100, 60),
    "h": (15, 95, 55),
    "r": (50, 55, 35),
    "c": (28, 38, 25),
    "t": (72, 30, 40),
    "e": (50, 105, 55),
}
# The thumb's middle and tip, in palm widths: x to the right, y up, z to the viewer, of a right hand's open palm
_THUMBS = {
    "side": ((-0.60, -0.02, 0.12), (-0.58, 0.40, 0.20)),
    "out": ((-0.78, -0.06, 0.10), (-1.12, 0.16, 0.12)),
    "palm": ((-0.42, -0.08, 0.34), (0.04, 0.06, 0.44)),
    "over": ((-0.50, 0.06, 0.44), (-0.02, 0.20, 0.66)),
    "touch": ((-0.58, 0.04, 0.42), (-0.36, 0.42, 0.66)),
    "between": ((-0.48, 0.14, 0.34), (-0.22, 0.66, 0.50)),
}
_KNUCKLES = ((-0.36, 0.46), (-0.12, 0.52), (0.12, 0.48), (0.34, 0.38))  # index to little finger, x and y
_LENGTHS = (0.88, 0.98, 0.90, 0.70)
_BONES = (0.46, 0.31, 0.23)  # of a finger's length


@dataclass(frozen=True)
class Pose:
    """Index to little finger by letters of `_BENDS`; `spread` is degrees between fingers, `roll` turns the hand left."""

    fingers: str
    thumb: str
    spread: float = 3
    roll: float = 0


GESTURES = {"paper": Pose("uuuu", "out", 12), "rock": Pose("ffff", "over"), "scissors": Pose("uuff", "over", 20)}
SIGNS = {
    "A": Pose("ffff", "side"), "B": Pose("uuuu", "palm"), "C": Pose("cccc", "out"), "D": Pose("urrr", "touch"),
    "E": Pose("eeee", "palm"), "F": Pose("ruuu", "touch", 12), "G": Pose("ufff", "side", 3, 80),
    "H": Pose("uuff", "over", 3, 80), "I": Pose("fffu", "over"), "J": Pose("fffu", "over", 3, -60),
    "K": Pose("uuff", "between", 14), "L": Pose("ufff", "out"), "M": Pose("tttf", "palm"), "N": Pose("ttff", "palm"),
    "O": Pose("rrrr", "touch"), "P": Pose("uuff", "between", 14, 150), "Q": Pose("ufff", "side", 3, 160),
    "R": Pose("uuff", "over", -9), "S": Pose("ffff", "over"), "T": Pose("tfff", "between"), "U": Pose("uuff", "over", 1),
    "V": Pose("uuff", "over", 20), "W": Pose("uuuf", "over", 14), "X": Pose("hfff", "over"), "Y": Pose("fffu", "out", 10),
    "Z": Pose("ufff", "over", 3, 40), "del": Pose("cccc", "side", 3, 100), "space": Pose("uuuu", "out", 6, -75),
}  # fmt: skip


def _bones(pose: Pose, moves: Floats) -> Floats:
    """Every bone of the posed hand [bones, 2 ends, (x, y, z, radius)]; the moves bend, spread and turn it."""
    bones: list[tuple[_End, _End]] = [((0, -0.62, 0, 0.30), (0, -2.6, 0, 0.36))]  # the forearm
    for finger, (code, (x, y), length) in enumerate(zip(pose.fingers, _KNUCKLES, _LENGTHS, strict=True)):
        bones.append(((0.55 * x, -0.52, 0, 0.22), (x, y, 0, 0.16)))  # its share of the palm
        aside = math.radians((pose.spread + 2.5 * moves[4]) * (finger - 1.5))
        bend = 0.0
        end: _End = (x, y, 0, 0.145)
        for joint, share in enumerate(_BONES):
            bend += math.radians(_BENDS[code][joint] + 6 * moves[finger])
            start, reach = end, share * length * (0.75 if finger == 3 and code == "f" else 1)
            end = (
                start[0] + reach * math.sin(aside) * abs(math.cos(bend)),
                start[1] + reach * math.cos(aside) * math.cos(bend),
                start[2] + reach * math.sin(bend),
                start[3] - 0.016,
            )
            bones.append((start, end))
    middle, tip = _THUMBS[pose.thumb]
    thumb: list[_End] = [(-0.2, -0.45, 0.05, 0.22), (-0.42, -0.26, 0.14, 0.19), (*middle, 0.15), (*tip, 0.115)]
    bones += pairwise(thumb)
    return _turn(np.array(bones), math.radians(pose.roll + 11 * moves[5]), 0.16 * moves[6], 0.22 * moves[7])


def _turn(bones: Floats, roll: float, pitch: float, yaw: float) -> Floats:
    cos, sin = np.cos((roll, pitch, yaw)), np.sin((roll, pitch, yaw))
    around_z = np.array([(cos[0], -sin[0], 0), (sin[0], cos[0], 0), (0, 0, 1)])
    around_x = np.array([(1, 0, 0), (0, cos[1], -sin[1]), (0, sin[1], cos[1])])
    around_y = np.array([(cos[2], 0, sin[2]), (0, 1, 0), (-sin[2], 0, cos[2])])
    heart = np.array((0, 0.2, 0))  # the palm's middle, about which the hand turns
    bones[..., :3] = (bones[..., :3] - heart) @ (around_z @ around_x @ around_y).T
    return bones


def draw_hand(
    image: Pixels, pose: Pose, moves: Floats, skin: RGB, mirrored: bool = False, size: float = 0.26
) -> Pixels:
    """`image` [S, S, 3] with a posed hand before it, its palm `size` picture sides wide.

    `moves` [MOVES] is near 0 with a spread of 1: bends of the four fingers, spread, roll, pitch, yaw, size, place across
    and down, and the side that the light comes from.
    """
    side = len(image)
    bones = _bones(pose, moves) * (side * size * 1.08 ** moves[8])
    bones[..., 0] *= -1 if mirrored else 1
    bones[..., 1] *= -1  # rows count downwards
    bones[..., :2] += side * (np.array((0.5, 0.53)) + 0.045 * moves[9:11])
    height, cover = _relief(bones.astype(np.float32), side)
    across, down = (cv2.Sobel(height, cv2.CV_32F, *axis, ksize=1, scale=0.5) for axis in ((1, 0), (0, 1)))
    slope = np.sqrt(1 + down * down + across * across)
    lit = np.clip((0.9 - 0.3 * float(moves[11]) * across + 0.35 * down) / slope, 0, 1.2)
    soft = (side // 16 | 1, side // 16 | 1)
    crease = np.clip((cv2.blur(height, soft) - height) / (0.12 * side), 0, 0.5)  # hollows get less light
    aside = np.array([(1, 0, 0.03 * side), (0, 1, 0.04 * side)], np.float32)
    shadow = 0.4 * cv2.blur(cv2.warpAffine(cover, aside, (side, side)), soft)
    shade = cover * (0.34 + 0.72 * lit - crease)
    behind = cv2.multiply(image, cv2.merge([(1 - cover) * (1 - shadow)] * 3), dtype=cv2.CV_8U)
    hand = cv2.merge([cv2.convertScaleAbs(shade, alpha=level) for level in skin])
    return np.asarray(cv2.add(behind, hand))


def _relief(bones: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Height [S, S] in pixels of the surface nearest to the viewer (0 where there is none) and how much of a pixel it fills."""
    height, depth = np.full((2, side, side), -side, np.float32)  # depth: pixels inside the outline
    steps = np.arange(side, dtype=np.float32)
    reach = bones[:, :, 3:].max(axis=1) + 1
    lows = np.floor(bones[..., :2].min(axis=1) - reach).clip(0, side).astype(int).tolist()
    highs = np.ceil(bones[..., :2].max(axis=1) + reach + 1).clip(0, side).astype(int).tolist()
    for (start, end), (left, top), (right, bottom) in zip(bones.tolist(), lows, highs, strict=True):
        if left >= right or top >= bottom:
            continue
        box = (slice(top, bottom), slice(left, right))
        x, y = steps[None, box[1]] - start[0], steps[box[0], None] - start[1]
        span = [to - at for at, to in zip(start, end, strict=True)]
        length = span[0] ** 2 + span[1] ** 2 + 1e-3
        along = np.minimum(np.maximum(x * (span[0] / length) + y * (span[1] / length), 0), 1)  # 0 at start, 1 at end
        radius = start[3] + along * span[3]
        away = np.square(x - along * span[0]) + np.square(y - along * span[1])  # squared distance from the bone's axis
        inside = radius * radius - away
        surface = start[2] + along * span[2] + np.sqrt(np.maximum(inside, 0))
        np.maximum(height[box], np.where(inside > 0, surface, -side), out=height[box])
        np.maximum(
            depth[box], inside * (0.5 / start[3]), out=depth[box]
        )  # r^2 - d^2 = (r + d)(r - d), about 2 r (r - d)
    return np.where(height > -side, height, np.float32(0)), (depth + 0.5).clip(0, 1)
