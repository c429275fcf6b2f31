"""Images side by side as PNG, each titled with its prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imgclf.figures.plots import BLUE, DPI, ORANGE, font_families, new_figure, short_name, write_figure

__all__ = ["Tile", "choose_columns", "class_rows_figure", "grid_figure", "plot_grid"]

_TILE, _LINE = 1.75, 0.185  # inches: a tile's side, and the height of a line of its title
_POINTS = 9.5
_LONGEST_NAME = 40  # characters of a class name; a title wider than its tile has fewer


@dataclass(frozen=True, eq=False)
class Tile:
    """An `image` uint8 [H, W, 1 or 3] with the `predicted` class and its `probability` (of 0 to 1), or with a class alone.

    `true` is the true class, None where it is unknown; `heat` uint8 [H, W, 3] is a saliency map to show next to the
    image, or None. `note` stands below the prediction.
    """

    image: NDArray[np.uint8]
    predicted: str
    probability: float | None = None
    true: str | None = None
    heat: NDArray[np.uint8] | None = None
    note: str = ""


def plot_grid(tiles: Sequence[Tile], path: Path) -> None:
    """Write `grid_figure` to `path` as PNG."""
    write_figure(lambda: grid_figure(tiles), path)


def grid_figure(tiles: Sequence[Tile]) -> Figure:
    """Draw the tiles in rows, the last as full as the others where that is possible; ValueError for no tiles.

    Where the true class is known, a correct prediction is blue with a tick, a wrong one orange with a cross, and the
    true class stands below it.
    """
    if not tiles:
        raise ValueError("no images to show")
    wide = 2 if any(tile.heat is not None for tile in tiles) else 1
    columns = choose_columns(len(tiles), math.sqrt(len(tiles) * 1.6 / wide))
    rows = math.ceil(len(tiles) / columns)
    lines = max(_title(tile)[0].count("\n") + 1 for tile in tiles)
    width, height = _TILE * wide + 0.15, _TILE + lines * _LINE + 0.15  # of a tile with its title, inches
    figure = new_figure(columns * width + 0.1, rows * height + 0.1, constrained=False)
    total_width, total_height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": _POINTS, "va": "bottom", "linespacing": 1.15, "fontfamily": font_families()}
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = 0.1 + column * width, total_height - 0.1 - row * height  # inches
        image = _side_by_side(tile)
        shape = image.shape[1] / image.shape[0]
        inner_width = min(_TILE * wide, _TILE * shape)
        inner_height = inner_width / shape
        x, y = left / total_width, (top - lines * _LINE - inner_height) / total_height
        axes = figure.add_axes((x, y, inner_width / total_width, inner_height / total_height))
        axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 80 else "antialiased")
        axes.set_axis_off()
        text, colour = _title(tile)
        above = y + (inner_height + 0.04) / total_height
        title = figure.text(x, above, text, color=colour, parse_math=False, **style)
        room = _LONGEST_NAME
        while title.get_window_extent().width > _TILE * wide * DPI and room > 4:  # letters differ in width
            room -= 1
            title.set_text(_title(tile, room)[0])
    return figure


def choose_columns(count: int, wanted: float) -> int:
    """Return a number of columns near `wanted` that leaves few empty places in the last of the rows of `count` tiles.

    10 tiles are 5 x 2 rather than 4 + 4 + 2. A place empty of n columns costs as much as a table exp(2 / n) times too wide.
    """

    def cost(columns: int) -> float:
        return abs(math.log(columns / wanted)) + 2 * (-count % columns) / columns

    return min(range(1, count + 1), key=cost)


def _title(tile: Tile, room: int = _LONGEST_NAME) -> tuple[str, str]:
    """Return the title of a tile, with `room` characters for a name, and its colour."""
    percent = "" if tile.probability is None else f" {100 * tile.probability:.0f} %"
    correct = tile.true == tile.predicted
    mark, colour = ("", "black") if tile.true is None else ("✓ ", BLUE) if correct else ("✗ ", ORANGE)
    lines = [f"{mark}{_cut(tile.predicted, room)}{percent}"]
    if tile.true is not None and not correct:
        lines.append(f"true: {_cut(tile.true, room)}")
    return "\n".join([*lines, tile.note] if tile.note else lines), colour


def _cut(name: str, room: int) -> str:
    name = short_name(name)
    return name if len(name) <= room else f"{name[: room - 1]}…"


def class_rows_figure(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]) -> Figure:
    """Draw a row for each (name, images uint8 [S, S, 1 or 3] of one size); many rows stand in two or three columns.

    ValueError for no images.
    """
    most = max((len(images) for _, images in rows), default=0)
    if not most:
        raise ValueError("no images to show")
    columns = 1 + (len(rows) > 12) + (len(rows) > 60)
    in_column = math.ceil(len(rows) / columns)
    side = (0.95, 0.7, 0.5)[columns - 1]  # inches, of an image
    longest = max(len(short_name(name)) for name, _ in rows)
    label = min(0.3 + 0.075 * longest, 2.2)  # inches, of the widest name
    width, height = label + most * (side + 0.04) + 0.15, side + 0.06
    figure = new_figure(columns * width, in_column * height + 0.1, constrained=False)
    total_width, total_height = figure.get_size_inches()
    style: dict[str, Any] = {"fontsize": _POINTS, "ha": "right", "va": "center", "fontfamily": font_families()}
    for number, (name, images) in enumerate(rows):
        column, row = divmod(number, in_column)
        bottom = total_height - 0.05 - (row + 1) * height + 0.03
        middle = (bottom + side / 2) / total_height
        figure.text((column * width + label - 0.08) / total_width, middle, _cut(name, 28), parse_math=False, **style)
        for place, image in enumerate(images):
            left = column * width + label + place * (side + 0.04)
            box = left / total_width, bottom / total_height, side / total_width, side / total_height
            axes = figure.add_axes(box)
            axes.imshow(_rgb(image), interpolation="nearest" if len(image) < 80 else "antialiased")
            axes.set_axis_off()
    return figure


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _side_by_side(tile: Tile) -> NDArray[np.uint8]:
    image = _rgb(tile.image)
    if tile.heat is None:
        return image
    gap = np.full((image.shape[0], max(1, image.shape[1] // 24), 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, tile.heat], axis=1)
