"""Pictures of a report: training curves and the confusion matrix, as PNG.

`*_figure` draws, `plot_*` writes. matplotlib's object-oriented interface only: no pyplot, no backend, no global
state, so that a notebook or a GUI that imports this keeps its own. Colours are safe for colour-blind readers.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from imgclf.report.tables import correct_phrase
from imgclf.storage import write_atomically

__all__ = [
    "BLUE", "ORANGE", "confusion_figure", "curves_figure", "families", "plot_confusion", "plot_curves",
    "plot_runs", "runs_figure", "shown_name", "write_figure",
]  # fmt: skip

_DPI = 120
BLUE, ORANGE = "#0072B2", "#D55E00"  # of the Okabe-Ito palette, https://jfly.uni-koeln.de/color/
_SEVEN = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of the same
_DASHES = ("-", "--", ":", "-.")
_LABEL_POINTS, _SMALLEST_POINTS = 9.0, 5.0  # font sizes; below 5 points (8 pixels) digits can't be told apart
_DIGIT_EM = 0.64  # width of a DejaVu Sans digit, in font sizes
_LONGEST_NAME = 40  # characters of a class name that are shown
_MOST_COUNTS = 2000  # a text takes some 2 ms, and a full matrix of 100 classes has 10,000 that nobody reads
_LARGEST_INCHES = 36.0  # side of the matrix: 4,320 pixels


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write `curves_figure` to `path`."""
    write_figure(lambda: curves_figure(rows), path)


def plot_confusion(matrix: NDArray[np.integer[Any]], classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Write `confusion_figure` to `path`."""
    write_figure(lambda: confusion_figure(matrix, classes), path)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and accuracy over the epochs, for train and validation, and mark the best epoch.

    `rows` are those of a history; what is missing, None or not finite is left out. The best epoch is the first with the
    highest val_accuracy, else with the lowest val_loss; without validation none is marked. ValueError for no rows.
    """
    if not rows:
        raise ValueError("no epochs to draw: the history is empty")
    epochs = np.array([row["epoch"] for row in rows], dtype=np.int64) + 1  # files count from 0, people from 1
    figure = Figure(figsize=(11, 4.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    best = _best_row(rows)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        size = 6 if len(epochs) <= 30 else 0  # markers show single epochs; 200 of them would hide the line
        for split, label, colour, style in (("train", "train", BLUE, "s-"), ("val", "validation", ORANGE, "o-")):
            values = _column(rows, f"{split}_{name}")
            known = np.isfinite(values)  # validation may run every n-th epoch: the line goes on to the next value
            if known.any():
                axes.plot(
                    epochs[known], values[known], style, color=colour, label=label, markersize=size, markeredgewidth=0
                )
        _dress(axes, epochs, name)
        if best is not None:
            _mark(axes, int(epochs[best]), float(_column(rows, f"val_{name}")[best]), percent=name == "accuracy")
        if axes.lines:
            axes.legend(loc="best", framealpha=0.9)
    return figure


def plot_runs(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], path: str | os.PathLike[str]) -> None:
    """Write `runs_figure` to `path`."""
    write_figure(lambda: runs_figure(runs), path)


def runs_figure(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Draw the validation loss and accuracy of several runs, (name, rows of a history) each, over the epochs.

    Told apart by colour and by dashes; ValueError for no runs.
    """
    if not runs:
        raise ValueError("no runs to draw")
    figure = Figure(figsize=(11, 4.4 + 0.2 * len(runs)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    both = figure.subplots(1, 2)
    for axes, name in zip(both, ("loss", "accuracy"), strict=True):
        for number, (label, rows) in enumerate(runs):
            epochs = np.array([row["epoch"] for row in rows], dtype=np.int64) + 1
            values = _column(rows, f"val_{name}")
            known = np.isfinite(values)
            colour, dash = _SEVEN[number % len(_SEVEN)], _DASHES[number // len(_SEVEN) % len(_DASHES)]
            axes.plot(epochs[known], values[known], color=colour, linestyle=dash, label=_escaped(label), marker="o",
                      markersize=4 if len(epochs) <= 30 else 0)  # fmt: skip
        longest = max((row["epoch"] for _, rows in runs for row in rows), default=0)
        _dress(axes, np.array([1, longest + 1]), name)
        axes.set_title(f"Validation {name}")
    figure.legend(
        *both[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 if len(runs) > 3 else len(runs)
    )
    return figure


def _escaped(name: str) -> str:
    """A run's name as a legend shows it: matplotlib takes "$" for a formula, and hides what begins with "_"."""
    name = shown_name(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    values = np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows])
    return np.where(np.isfinite(values), values, np.nan)  # an infinite loss would stretch the axis without end


def _best_row(rows: Sequence[Mapping[str, Any]]) -> int | None:
    accuracy, loss = _column(rows, "val_accuracy"), _column(rows, "val_loss")
    if np.isfinite(accuracy).any():
        return int(np.nanargmax(accuracy))
    return int(np.nanargmin(loss)) if np.isfinite(loss).any() else None


def _dress(axes: Axes, epochs: NDArray[np.int64], name: str) -> None:
    axes.set_title(name.capitalize())
    axes.set_xlabel("epoch")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    pad = max(0.5, 0.02 * float(epochs[-1] - epochs[0]))
    axes.set_xlim(float(epochs.min()) - pad, float(epochs.max()) + pad)
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))


def _mark(axes: Axes, epoch: int, value: float, *, percent: bool) -> None:
    """Mark the best epoch by a line, and its value by a ring; the legend says both."""
    if math.isnan(value):
        axes.axvline(epoch, color="0.35", linestyle=":", label=f"best epoch {epoch}", zorder=1)
        return
    shown = f"{100 * value:.1f} %" if percent else f"{value:.4g}"
    axes.axvline(epoch, color="0.35", linestyle=":", zorder=1)
    ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": ":"}
    axes.plot([epoch], [value], marker="o", color="0.35", label=f"best epoch {epoch}: {shown}", **ring)


def confusion_figure(matrix: NDArray[np.integer[Any]], classes: Sequence[str]) -> Figure:
    """Draw a matrix [K, K] of counts (rows true, columns predicted), coloured by the share of the row.

    Hits are blue, mistakes orange, zeros blank; of more than 2000 counts the largest are written. A cell grows with the
    digits it must hold, and the picture with cells and names, up to a size; past it (some 250 classes) every n-th name
    and no count is shown: they would be specks. ValueError for a matrix that isn't [K, K].
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    num_classes = len(classes)
    if matrix.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(f"a matrix {matrix.shape} for {num_classes} classes: expected [K, K] with K >= 1")
    digits_em = _DIGIT_EM * max(len(str(matrix.max())), 2)
    cell = max(0.22, min(1.0, 6.5 / num_classes), 1.1 * digits_em * 6 / 72)  # inches; 6 points a digit at least
    cell = min(cell, _LARGEST_INCHES / num_classes)
    points = min(12.0, 0.9 * 72 * cell / digits_em, 0.55 * 72 * cell)

    figure = Figure(figsize=(1, 1), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    scale = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # [K, K]
    on_diagonal = np.eye(num_classes, dtype=bool)
    for cells, colours in ((on_diagonal, _colours("Blues")), (~on_diagonal, _colours("Oranges"))):
        axes.imshow(np.ma.masked_where(~cells | (matrix == 0), shares), cmap=colours, vmin=0, vmax=1)
    side = cell * num_classes
    _name_axes(axes, [shown_name(name) for name in classes], cell)
    _title_axes(axes, int(np.trace(matrix)), int(matrix.sum()), 13 + side / 3)
    _draw_scale(scale)
    _place(figure, axes, scale, side)
    if points >= _SMALLEST_POINTS:
        _count_cells(axes, matrix, shares, points)
    return figure


def _count_cells(axes: Axes, matrix: NDArray[np.integer[Any]], shares: NDArray[np.float64], points: float) -> None:
    """Write the counts, and rule the cells."""
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
    share = f", {100 * correct / count:.1f} %" if count else ""
    axes.set_title(correct_phrase(correct, count) + share, fontsize=points)
    axes.set_xlabel("Predicted", fontsize=0.9 * points)
    axes.set_ylabel("True", fontsize=0.9 * points)


def _colours(name: str) -> Colormap:
    """Take a sequential map without its palest part, so that a single mistake still differs from a blank cell."""
    return LinearSegmentedColormap.from_list(f"imgclf {name}", colormaps[name](np.linspace(0.18, 0.95, 256)))


def shown_name(name: str) -> str:
    """Give a class name in one line of bounded length; its middle goes, for beginnings and ends tell names apart."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(name.split()))
    half = _LONGEST_NAME // 2
    return line if len(line) <= _LONGEST_NAME else f"{line[:half]}…{line[1 - half :]}"


def _name_axes(axes: Axes, names: Sequence[str], cell: float) -> None:
    """Label both axes; names that don't fit side by side stand upright."""
    points = min(_LABEL_POINTS + (2 if cell > 0.5 else 0), 0.62 * 72 * max(cell, 0.2))
    step = max(1, math.ceil(1.5 * points / 72 / cell))  # a line of text is about 1.2 font sizes high
    positions, names = range(0, len(names), step), names[::step]
    # "$" in a class name is no formula; older fonts first, those of other scripts where DejaVu has no glyph.
    style: dict[str, Any] = {"parse_math": False, "fontsize": points, "fontfamily": families()}
    axes.set_yticks(positions, names, **style)
    widest = max(label.get_window_extent().width for label in axes.get_yticklabels()) / _DPI
    axes.set_xticks(positions, names, rotation=0 if widest < 0.9 * cell else 90, **style)
    axes.tick_params(length=2, pad=2)


def families() -> list[str]:
    """List the fonts to look for a glyph in: matplotlib's own, then the usual ones for Chinese, Japanese and Korean."""
    usual = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei", "SimHei")
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in usual if name in installed)]


def _draw_scale(scale: Axes) -> None:
    """Draw the two colour scales side by side: a cell's share of its row."""
    shares = np.linspace(0, 1, 256)[:, None]  # [256, 1]
    for column, name in enumerate(("Blues", "Oranges")):
        extent = (column, column + 1, 0, 1)
        scale.imshow(shares, cmap=_colours(name), extent=extent, origin="lower", aspect="auto", vmin=0, vmax=1)
    scale.set_xlim(0, 2)
    scale.set_ylim(0, 1)
    scale.set_xticks([0.5, 1.5], ["right", "wrong"], rotation=90, fontsize=9)
    scale.yaxis.tick_right()
    scale.yaxis.set_label_position("right")
    scale.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    scale.set_ylabel("share of the true class", fontsize=9)
    scale.tick_params(labelsize=9, length=2, pad=2)


def _place(figure: Figure, axes: Axes, scale: Axes, side: float) -> None:
    """Give the matrix its side in inches, and the figure the size that matrix, labels, title and scale need."""
    gap, bar, bar_height = 0.2, 0.34, min(side, 3.0)  # inches

    def lay(width: float, height: float, left: float, bottom: float) -> None:
        figure.set_size_inches(width, height)
        axes.set_position((left / width, bottom / height, side / width, side / height))
        top = bottom + side - bar_height
        scale.set_position(((left + side + gap) / width, top / height, bar / width, bar_height / height))

    # Labels have the same extent around the axes wherever these stand, so: lay out, measure, lay out to measure.
    lay(side + 2, side + 2, 1, 1)
    boxes = [box for part in (axes, scale) if (box := part.get_tightbbox()) is not None]
    left, bottom = (1 - min(box.x0 for box in boxes) / _DPI), (1 - min(box.y0 for box in boxes) / _DPI)
    right, top = (max(box.x1 for box in boxes) / _DPI - 1), (max(box.y1 for box in boxes) / _DPI - 1)
    margin = 0.1
    lay(left + right + 2 * margin, bottom + top + 2 * margin, left + margin, bottom + margin)


def write_figure(draw: Callable[[], Figure], path: str | os.PathLike[str]) -> None:
    """Render whole, then write: a failed drawing leaves no half a picture."""
    buffer = io.BytesIO()
    with _glyphs_may_lack():
        figure = draw()
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    write_atomically(path, buffer.getvalue())


@contextmanager
def _glyphs_may_lack() -> Iterator[None]:
    """Silence the one warning no user can act on: a class name's script has no font here, and shows as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        yield
