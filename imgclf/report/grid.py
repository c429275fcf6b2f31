"""Pictures side by side, each titled with what a network said of it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imgclf.report.figures import BLUE, ORANGE, families, shown_name, write_figure

__all__ = ["Tile", "grid_figure", "plot_grid"]

_TILE, _LINE, _DPI = 1.75, 0.185, 120  # inches: a tile's side, and the height of a line of its title
_POINTS = 9.5
_CHARACTERS = 25  # of a title, side by side with others


@dataclass(frozen=True, eq=False)
class Tile:
    """`image` uint8 [H, W, 1 or 3]; `said` and its `probability` (of 0 to 1); `true` where it is known, else None; `heat`
    uint8 [H, W, 3], shown beside the image, where the answer is explained.
    """

    image: NDArray[np.uint8]
    said: str
    probability: float
    true: str | None = None
    heat: NDArray[np.uint8] | None = None


def plot_grid(tiles: Sequence[Tile], path: str | os.PathLike[str]) -> None:
    """Write `grid_figure` to `path` as PNG."""
    write_figure(lambda: grid_figure(tiles), path)


def grid_figure(tiles: Sequence[Tile]) -> Figure:
    """Draw the tiles in rows. Where the truth is known a hit is blue with a tick, a mistake orange with a cross and what it
    is. ValueError for no tiles.
    """
    if not tiles:
        raise ValueError("no pictures to show")
    wide = 2 if any(tile.heat is not None for tile in tiles) else 1
    columns = min(len(tiles), max(1, round(math.sqrt(len(tiles) * 1.6 / wide))))
    rows = math.ceil(len(tiles) / columns)
    lines = 2 if any(tile.true is not None and tile.true != tile.said for tile in tiles) else 1
    width, height = _TILE * wide + 0.15, _TILE + lines * _LINE + 0.15  # of a tile with its title, inches
    figure = Figure(figsize=(columns * width + 0.1, rows * height + 0.1), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total = figure.get_size_inches()
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = 0.1 + column * width, total[1] - 0.1 - row * height  # inches
        image = _side_by_side(tile)
        shape = image.shape[1] / image.shape[0]
        inner_width = min(_TILE * wide, _TILE * shape)
        inner_height = inner_width / shape
        bottom = top - lines * _LINE - _TILE + (_TILE - inner_height)
        axes = figure.add_axes((left / total[0], bottom / total[1], inner_width / total[0], inner_height / total[1]))
        axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 80 else "antialiased")
        axes.set_axis_off()
        text, colour = _title(tile)
        figure.text(left / total[0], (bottom + inner_height + 0.04) / total[1], text, color=colour, fontsize=_POINTS,
                    va="bottom", linespacing=1.15, parse_math=False, fontfamily=families())  # fmt: skip
    return figure


def _title(tile: Tile) -> tuple[str, str]:
    percent = f"{100 * tile.probability:.0f} %"
    mark, colour = ("", "black") if tile.true is None else ("✓ ", BLUE) if tile.true == tile.said else ("✗ ", ORANGE)
    room = _CHARACTERS * (2 if tile.heat is not None else 1)
    first = f"{mark}{_cut(tile.said, room - len(percent) - len(mark) - 1)} {percent}"
    return (f"{first}\nis {_cut(tile.true or '', room - 3)}" if mark == "✗ " else first), colour


def _cut(name: str, room: int) -> str:
    name = shown_name(name)
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _side_by_side(tile: Tile) -> NDArray[np.uint8]:
    image = np.repeat(tile.image, 3, axis=2) if tile.image.shape[2] == 1 else tile.image
    if tile.heat is None:
        return image
    gap = np.full((image.shape[0], max(1, image.shape[1] // 24), 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, tile.heat], axis=1)
