"""Pictograms of 15 sports: a figure of limbs and its gear, as strokes on a grid of 100 x 100 units."""

from imgclf.demo.scenes import RGB

__all__ = ["FIGURE", "PICTOGRAMS", "Stroke"]

_WOOD, _STEEL, _WHITE, _NIGHT = (196, 140, 78), (196, 204, 212), (250, 250, 250), (36, 38, 48)
_ORANGE, _RED, _BLUE, _YELLOW, _LIME, _PINK, _BROWN, _VIOLET = (
    (238, 122, 34), (220, 44, 48), (52, 140, 226), (248, 202, 46), (204, 232, 56), (246, 96, 168), (150, 84, 40), (112, 60, 168)
)  # fmt: skip
FIGURE: RGB = (255, 0, 255)  # stands for the colour of the sign's figure

# Every stroke: kind, colour, width, then x and y by turns on a grid of 100 x 100, rows counting downwards.
# "line" is a rounded polyline, "area" a filled polygon, "disc" a centre whose radius is the width, "ring" the same, hollow.
Stroke = tuple[str, RGB, float, tuple[float, ...]]


def _figure(head: tuple[float, float], *limbs: tuple[float, ...]) -> list[Stroke]:
    """A head, a torso (the first limb) and thinner limbs."""
    strokes: list[Stroke] = [("disc", FIGURE, 8, head), ("line", FIGURE, 13, limbs[0])]
    return strokes + [("line", FIGURE, 8.5, limb) for limb in limbs[1:]]


def _waves(*rows: float) -> list[Stroke]:
    return [
        ("line", _BLUE, 3.5, tuple(v for x in range(4, 97, 4) for v in (x, row + (2 if x % 16 < 8 else -2))))
        for row in rows
    ]


PICTOGRAMS: dict[str, list[Stroke]] = {
    "archery": [
        *_figure(
            (38, 20), (38, 36, 38, 60), (38, 60, 28, 93),
            (38, 60, 52, 93), (38, 36, 70, 36), (38, 36, 20, 44, 30, 37),
        ),
        ("line", _STEEL, 1.5, (68, 8, 32, 36, 68, 64)),
        ("line", _WOOD, 4.5, (66, 8, 76, 20, 79, 36, 76, 52, 66, 64)),
        ("line", _YELLOW, 2.5, (32, 36, 92, 36)),
        ("area", _RED, 0, (97, 36, 88, 31, 88, 41)),
    ],
    "baseball": [
        *_figure(
            (36, 24), (38, 40, 43, 62), (43, 62, 28, 76, 26, 94),
            (43, 62, 60, 76, 62, 94), (38, 40, 57, 48, 60, 36),
        ),
        ("area", _RED, 0, (28, 20, 46, 12, 54, 20)),
        ("line", _WOOD, 4, (58, 44, 64, 30)),
        ("line", _WOOD, 8, (66, 26, 76, 7)),
        ("disc", _WHITE, 6, (88, 44)),
        ("line", _RED, 1.2, (85, 40, 88, 44, 85, 48)),
    ],
    "basketball": [
        *_figure(
            (40, 30), (40, 46, 38, 64), (38, 64, 26, 76, 32, 94),
            (38, 64, 54, 74, 50, 92), (40, 44, 54, 34, 58, 20), (40, 44, 26, 56),
        ),
        ("disc", _ORANGE, 9, (62, 10)),
        ("line", _NIGHT, 1.2, (54, 10, 71, 10)),
        ("line", _NIGHT, 1.2, (62, 1, 62, 19)),
        ("line", _WHITE, 5, (95, 12, 95, 48)),
        ("line", _RED, 3.5, (74, 40, 93, 40)),
        ("line", _WHITE, 1.5, (75, 40, 79, 56, 88, 40)),
        ("line", _WHITE, 1.5, (80, 40, 88, 56, 92, 40)),
    ],
    "bowling": [
        *_figure(
            (42, 26), (40, 41, 32, 60), (32, 60, 48, 70, 44, 93),
            (32, 60, 20, 78, 6, 86), (40, 42, 52, 58, 56, 74), (40, 42, 22, 50),
        ),
        ("disc", _VIOLET, 10, (58, 84)),
        ("disc", _WHITE, 1.5, (56, 80)),
        ("disc", _WHITE, 1.5, (60, 80)),
        *(("line", _WHITE, 7, (x, 78, x, 92)) for x in (76, 85, 94)),
        *(("disc", _WHITE, 2.8, (x, 68)) for x in (76, 85, 94)),
        *(("line", _RED, 2, (x - 2, 73, x + 2, 73)) for x in (76, 85, 94)),
    ],
    "boxing": [
        ("line", _BLUE, 3, (2, 58, 98, 58)),
        ("line", _RED, 3, (2, 72, 98, 72)),
        *_figure(
            (34, 20), (36, 37, 34, 60), (34, 60, 22, 74, 20, 94),
            (34, 60, 52, 74, 52, 94), (36, 38, 54, 44, 70, 34), (36, 40, 44, 54, 54, 48),
        ),
        ("disc", _RED, 9, (76, 30)),
        ("disc", _RED, 9, (58, 46)),
    ],
    "cheerleading": [
        *_figure((50, 26), (50, 42, 50, 58), (50, 60, 34, 94), (50, 60, 66, 94), (50, 40, 26, 22), (50, 40, 74, 22)),
        ("area", _RED, 0, (44, 54, 56, 54, 70, 74, 30, 74)),
        *(("disc", _PINK, 5, (x + dx, 16 + dy)) for x in (20, 80) for dx, dy in ((-7, 0), (7, 0), (0, -7), (0, 7))),
        *(("disc", _YELLOW, 5, (x + dx, 16 + dy)) for x in (20, 80) for dx, dy in ((-5, -5), (5, 5), (5, -5), (-5, 5), (0, 0))),
    ],
    "fencing": [
        *_figure(
            (36, 26), (36, 42, 32, 62), (32, 62, 54, 68, 56, 93),
            (32, 62, 8, 92), (36, 42, 60, 46), (36, 42, 20, 36, 16, 20),
        ),
        ("line", _STEEL, 2, (60, 46, 98, 38)),
        ("disc", _YELLOW, 4, (63, 45)),
        ("area", _STEEL, 0, (38, 18, 46, 24, 44, 34, 36, 34)),
    ],
    "football": [
        ("line", _YELLOW, 4, (80, 94, 80, 58)),
        ("line", _YELLOW, 4, (66, 14, 66, 58, 94, 58, 94, 14)),
        *_figure(
            (36, 24), (35, 41, 34, 60), (34, 60, 50, 68, 46, 86),
            (34, 60, 22, 74, 8, 80), (36, 42, 20, 50, 16, 64), (36, 42, 50, 52),
        ),
        ("area", _RED, 0, (26, 24, 28, 16, 36, 13, 44, 16, 46, 23, 36, 24, 34, 32, 28, 31)),
        ("area", _BROWN, 0, (44, 54, 50, 47, 58, 45, 65, 47, 60, 55, 52, 58)),
        ("line", _WHITE, 1.5, (50, 53, 59, 50)),
    ],
    "golf": [
        *_figure((42, 24), (42, 40, 46, 60), (46, 60, 36, 94), (46, 60, 58, 94), (42, 40, 58, 32, 60, 18)),
        ("line", _STEEL, 2.5, (59, 22, 62, 12, 30, 5)),
        ("line", _NIGHT, 5, (30, 5, 24, 10)),
        ("line", _WHITE, 2.5, (84, 94, 84, 44)),
        ("area", _RED, 0, (84, 44, 99, 51, 84, 60)),
        ("disc", _WHITE, 3.5, (70, 91)),
    ],
    "hockey": [
        *_figure(
            (40, 24), (38, 40, 28, 58), (28, 58, 46, 68, 38, 88),
            (28, 58, 14, 88), (38, 42, 48, 58, 58, 56), (38, 42, 56, 44),
        ),
        ("line", _WOOD, 4, (52, 40, 74, 91, 88, 91)),
        ("line", _NIGHT, 6, (92, 92, 96, 92)),
        ("line", _STEEL, 3, (6, 94, 22, 94)),
        ("line", _STEEL, 3, (32, 94, 48, 94)),
        ("area", _BLUE, 0, (32, 22, 34, 15, 41, 13, 48, 17, 49, 22)),
    ],
    "rowing": [
        *_figure((36, 32), (38, 48, 32, 68), (32, 68, 52, 56, 64, 68), (38, 50, 58, 52)),
        ("area", _RED, 0, (4, 70, 98, 70, 84, 82, 18, 82)),
        ("line", _WOOD, 3, (50, 44, 80, 88)),
        ("line", _YELLOW, 7, (76, 82, 82, 91)),
        *_waves(87, 95),
    ],
    "swimming": [
        *_figure((70, 46), (56, 54, 22, 60), (22, 60, 6, 56), (56, 52, 46, 30, 62, 22, 80, 30)),
        ("area", _RED, 0, (62, 44, 64, 38, 71, 36, 78, 40, 79, 45)),
        *_waves(66, 78, 90),
    ],
    "tennis": [
        *_figure(
            (38, 28), (38, 44, 38, 62), (38, 62, 24, 78, 26, 94),
            (38, 62, 54, 76, 58, 94), (38, 44, 58, 34), (38, 44, 22, 52),
        ),
        ("line", _NIGHT, 4, (58, 34, 66, 26)),
        ("ring", _RED, 11, (74, 17)),
        *(("line", _WHITE, 1, (x, 9, x, 25)) for x in (70, 74, 78)),
        *(("line", _WHITE, 1, (66, y, 82, y)) for y in (13, 17, 21)),
        ("disc", _LIME, 5.5, (92, 44)),
        ("line", _WHITE, 2.5, (72, 74, 98, 74)),
        *(("line", _WHITE, 1, (x, 74, x, 94)) for x in (74, 80, 86, 92, 97)),
        *(("line", _WHITE, 1, (72, y, 98, y)) for y in (81, 88)),
    ],
    "volleyball": [
        *_figure(
            (38, 36), (38, 51, 36, 68), (36, 68, 24, 80, 28, 95),
            (36, 68, 50, 80, 44, 94), (38, 50, 28, 32, 38, 16), (38, 50, 54, 36, 54, 20),
        ),
        ("disc", _YELLOW, 10, (48, 11)),
        ("line", _BLUE, 3, (40, 6, 48, 11, 57, 8)),
        ("line", _BLUE, 3, (48, 11, 47, 20)),
        ("line", _WHITE, 3, (66, 34, 98, 34)),
        ("line", _STEEL, 3.5, (98, 30, 98, 95)),
        *(("line", _WHITE, 1, (x, 34, x, 60)) for x in (67, 73, 79, 85, 91)),
        *(("line", _WHITE, 1, (66, y, 98, y)) for y in (42, 51, 60)),
    ],
    "wheelchair basketball": [
        *_figure((42, 22), (42, 38, 42, 60), (42, 62, 62, 62, 68, 82), (42, 40, 58, 34, 64, 20), (42, 42, 54, 56)),
        ("line", _STEEL, 4, (28, 42, 30, 66, 60, 68)),
        ("ring", _STEEL, 20, (40, 75)),
        *(("line", _STEEL, 1.2, (40 - dx, 75 - dy, 40 + dx, 75 + dy)) for dx, dy in ((18, 0), (0, 18), (13, 13), (13, -13))),
        ("ring", _STEEL, 6, (70, 90)),
        ("disc", _ORANGE, 9, (68, 11)),
        ("line", _NIGHT, 1.2, (60, 11, 77, 11)),
        ("line", _NIGHT, 1.2, (68, 2, 68, 20)),
    ],
}  # fmt: skip
