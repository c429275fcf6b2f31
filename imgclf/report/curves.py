"""Training curves of one run and of several, and accuracy against the size of the data, as PNG.

`*_figure` draws, `plot_*` writes.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from imgclf.report.figures import BLUE, ORANGE, new_figure, shown_name, style_of, write_figure

__all__ = ["curves_figure", "plot_curves", "plot_runs", "plot_sizes", "runs_figure", "sizes_figure"]


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write `curves_figure` to `path`."""
    write_figure(lambda: curves_figure(rows), path)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and accuracy over the epochs, for train and validation, and mark the best epoch.

    `rows` are those of a history; what is missing, None or not finite is left out. The best epoch is the first with the
    highest val_accuracy, else with the lowest val_loss; without validation none is marked. ValueError for no rows.
    """
    if not rows:
        raise ValueError("no epochs to draw: the history is empty")
    epochs = np.array([row["epoch"] for row in rows], dtype=np.int64) + 1  # files count from 0, people from 1
    figure = new_figure(11, 4.2)
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
    figure = new_figure(11, 4.4 + 0.2 * len(runs))
    both = figure.subplots(1, 2)
    for axes, name in zip(both, ("loss", "accuracy"), strict=True):
        for number, (label, rows) in enumerate(runs):
            epochs = np.array([row["epoch"] for row in rows], dtype=np.int64) + 1
            values = _column(rows, f"val_{name}")
            known = np.isfinite(values)
            colour, dash = style_of(number)
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


def plot_sizes(series: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write `sizes_figure` to `path`."""
    write_figure(lambda: sizes_figure(series), path)


def sizes_figure(series: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy against the number of training pictures, for each of `series` (see `Leaderboard.sizes`): validation with
    its spread as a line, test as crosses. ValueError for none.
    """
    if not series:
        raise ValueError("no sizes to draw")
    figure = new_figure(7, 4.2 + 0.2 * len(series))
    axes = figure.subplots()
    for number, one in enumerate(series):
        counts, found, spread, tested = (np.array([math.nan if value is None else value for value in column])
                                         for column in zip(*one["points"], strict=True))  # fmt: skip
        colour, dash = style_of(number)
        axes.errorbar(counts, found, np.nan_to_num(spread), color=colour, linestyle=dash, marker="o", capsize=3,
                      label=f"{_escaped(one['name'])}: validation" if one["name"] else "validation")  # fmt: skip
        if np.isfinite(tested).any():
            axes.plot(counts, tested, "x", color=colour, markersize=8, label="its test" if one["name"] else "test")
    every = sorted({point[0] for one in series for point in one["points"]})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
    axes.set_xlabel("training pictures")
    axes.set_title("Accuracy and the size of the data")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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
