"""The confusion matrix as PNG: `confusion_figure` draws, `plot_confusion` writes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from imgclf.evaluation.classification import format_accuracy
from imgclf.figures.plots import DPI, font_families, new_figure, short_name, write_figure

__all__ = ["confusion_figure", "plot_confusion"]

_LABEL_POINTS, _SMALLEST_POINTS = 9.0, 5.0  # font sizes; digits below 5 points (8 pixels) can't be read
_DIGIT_EM = 0.64  # width of a DejaVu Sans digit, in font sizes
_MOST_COUNTS = 2000  # a text takes some 2 ms, and a full matrix of 100 classes has 10,000 unreadable ones
_LARGEST_INCHES = 36.0  # side of the matrix: 4,320 pixels


def plot_confusion(matrix: NDArray[np.integer[Any]], classes: Sequence[str], path: Path) -> None:
    """Write `confusion_figure` to `path`."""
    write_figure(lambda: confusion_figure(matrix, classes), path)


def confusion_figure(matrix: NDArray[np.integer[Any]], classes: Sequence[str]) -> Figure:
    """Draw a matrix [K, K] of counts (rows true, columns predicted), coloured by the share of the row.

    The diagonal is blue, the rest orange, zeros blank; of more than 2000 counts the largest are written. A cell grows
    with the digits that it holds, and the figure with cells and names, up to a limit; beyond it (some 250 classes) it
    shows every n-th name and no counts. ValueError for a matrix that isn't [K, K].
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    num_classes = len(classes)
    if matrix.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(f"a matrix {matrix.shape} for {num_classes} classes: expected [K, K] with K >= 1")
    digits_em = _DIGIT_EM * max(len(str(matrix.max())), 2)
    cell = max(0.22, min(1.0, 6.5 / num_classes), 1.1 * digits_em * 6 / 72)  # inches; 6 points a digit at least
    cell = min(cell, _LARGEST_INCHES / num_classes)
    points = min(12.0, 0.9 * 72 * cell / digits_em, 0.55 * 72 * cell)

    figure = new_figure(1, 1, constrained=False)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    scale = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # [K, K]
    on_diagonal = np.eye(num_classes, dtype=bool)
    for cells, colours in ((on_diagonal, _colours("Blues")), (~on_diagonal, _colours("Oranges"))):
        axes.imshow(np.ma.masked_where(~cells | (matrix == 0), shares), cmap=colours, vmin=0, vmax=1)
    side = cell * num_classes
    _name_axes(axes, [short_name(name) for name in classes], cell)
    _title_axes(axes, int(np.trace(matrix)), int(matrix.sum()), 13 + side / 3)
    _draw_scale(scale)
    _place(figure, axes, scale, side)
    if points >= _SMALLEST_POINTS:
        _count_cells(axes, matrix, shares, points)
    return figure


def _count_cells(axes: Axes, matrix: NDArray[np.integer[Any]], shares: NDArray[np.float64], points: float) -> None:
    """Write the counts, and draw the lines between cells."""
    edges = np.arange(len(matrix) + 1) - 0.5
    axes.vlines(edges, -0.5, len(matrix) - 0.5, color="0.85", linewidth=0.5)
    axes.hlines(edges, -0.5, len(matrix) - 0.5, color="0.85", linewidth=0.5)
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": points, "parse_math": False}
    largest = np.argsort(-matrix, axis=None, kind="stable")[:_MOST_COUNTS]
    for row, column in zip(*np.unravel_index(largest, matrix.shape), strict=True):
        if count := int(matrix[row, column]):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(float(column), float(row), str(count), color=colour, **style)


def _title_axes(axes: Axes, correct: int, count: int, points: float) -> None:
    axes.set_title(format_accuracy(correct, count), fontsize=points)
    axes.set_xlabel("Predicted", fontsize=0.9 * points)
    axes.set_ylabel("True", fontsize=0.9 * points)


def _colours(name: str) -> Colormap:
    """Return a sequential map without its palest part, so that a single error still differs from a blank cell."""
    return LinearSegmentedColormap.from_list(f"imgclf {name}", colormaps[name](np.linspace(0.18, 0.95, 256)))


def _name_axes(axes: Axes, names: Sequence[str], cell: float) -> None:
    """Label both axes; names that don't fit side by side are rotated."""
    points = min(_LABEL_POINTS + (2 if cell > 0.5 else 0), 0.62 * 72 * max(cell, 0.2))
    step = max(1, math.ceil(1.5 * points / 72 / cell))  # a line of text is about 1.2 font sizes high
    positions, names = range(0, len(names), step), names[::step]
    # "$" in a class name is no formula; other fonts serve the scripts that DejaVu lacks.
    style: dict[str, Any] = {"parse_math": False, "fontsize": points, "fontfamily": font_families()}
    axes.set_yticks(positions, names, **style)
    widest = max(label.get_window_extent().width for label in axes.get_yticklabels()) / DPI
    axes.set_xticks(positions, names, rotation=0 if widest < 0.9 * cell else 90, **style)
    axes.tick_params(length=2, pad=2)


def _draw_scale(scale: Axes) -> None:
    """Draw the two colour scales side by side: a cell's share of its row."""
    shares = np.linspace(0, 1, 256)[:, None]  # [256, 1]
    for column, name in enumerate(("Blues", "Oranges")):
        extent = (column, column + 1, 0, 1)
        scale.imshow(shares, cmap=_colours(name), extent=extent, origin="lower", aspect="auto", vmin=0, vmax=1)
    scale.set_xlim(0, 2)
    scale.set_ylim(0, 1)
    scale.set_xticks([0.5, 1.5], ["correct", "wrong"], rotation=90, fontsize=9)
    scale.yaxis.tick_right()
    scale.yaxis.set_label_position("right")
    scale.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    scale.set_ylabel("share of the true class", fontsize=9)
    scale.tick_params(labelsize=9, length=2, pad=2)


def _place(figure: Figure, axes: Axes, scale: Axes, side: float) -> None:
    """Give the matrix a `side` in inches, and the figure the size that matrix, labels, title and scale need."""
    gap, bar, bar_height = 0.2, 0.34, min(side, 3.0)  # inches

    def lay(width: float, height: float, left: float, bottom: float) -> None:
        figure.set_size_inches(width, height)
        axes.set_position((left / width, bottom / height, side / width, side / height))
        top = bottom + side - bar_height
        scale.set_position(((left + side + gap) / width, top / height, bar / width, bar_height / height))

    # Labels extend as far from the axes in any layout, so lay out, measure, lay out with these measures.
    lay(side + 2, side + 2, 1, 1)
    boxes = [box for part in (axes, scale) if (box := part.get_tightbbox()) is not None]
    left, bottom = (1 - min(box.x0 for box in boxes) / DPI), (1 - min(box.y0 for box in boxes) / DPI)
    right, top = (max(box.x1 for box in boxes) / DPI - 1), (max(box.y1 for box in boxes) / DPI - 1)
    margin = 0.1
    lay(left + right + 2 * margin, bottom + top + 2 * margin, left + margin, bottom + margin)
