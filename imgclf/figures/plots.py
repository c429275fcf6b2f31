"""Plots as PNG: training curves of one run and of several, accuracy by data size, and searches before a run.

`*_figure` draws, `plot_*` writes. matplotlib's object-oriented interface only: no pyplot, no backend, no global state,
so that a notebook or a GUI that imports this keeps its own. Colours are safe for colour-blind readers.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import (
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    ScalarFormatter,
    StrMethodFormatter,
)
from numpy.typing import NDArray

from imgclf.files.atomic import write_atomically
from imgclf.names import printable

__all__ = ["plot_batch_sizes", "plot_curves", "plot_rates", "plot_runs", "plot_sizes", "write_figure"]

DPI = 120
_SHOWN_DPI = 80  # of a figure in a notebook: sharp on screens of 1.5 times the usual density
BLUE, ORANGE = "#0072B2", "#D55E00"  # of the Okabe-Ito palette, https://jfly.uni-koeln.de/color/
_PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of the same
_DASHES = ("-", "--", ":", "-.")
_LONGEST_NAME = 40  # characters of a class name that are shown

History = Sequence[Mapping[str, Any]]  # rows of a history


def new_figure(width: float, height: float, constrained: bool = True) -> Figure:
    """Return an empty white figure of `width` x `height` inches; `constrained`: its parts make room for each other."""
    layout: Literal["constrained"] | None = "constrained" if constrained else None
    figure = ShownFigure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


class ShownFigure(Figure):
    """A figure that notebooks show, once: without pyplot they show matplotlib's own as text."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the PNG and the size to show it at, as IPython asks for it."""
        width, height = self.get_size_inches() * _SHOWN_DPI
        return _png(lambda: self), {"width": round(width), "height": round(height)}


def short_name(name: str) -> str:
    """Return a name in one line of bounded length; the middle is cut, because both ends tell names apart."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(printable(name).split()))
    half = _LONGEST_NAME // 2
    return line if len(line) <= _LONGEST_NAME else f"{line[:half]}…{line[1 - half :]}"


def font_families() -> list[str]:
    """List the fonts to look for a glyph in: matplotlib's own, then the usual ones for Chinese, Japanese and Korean."""
    usual = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei", "SimHei")
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in usual if name in installed)]


def write_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Render the whole figure, then write it: a failed drawing leaves no file."""
    write_atomically(path, _png(draw))


def _png(draw: Callable[[], Figure]) -> bytes:
    buffer = io.BytesIO()
    with _glyphs_may_lack():
        figure = draw()
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()


@contextmanager
def _glyphs_may_lack() -> Iterator[None]:
    """Silence the one warning that no user can act on: no font here has a class name's script, which shows as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        yield


def plot_curves(rows: History, path: Path) -> None:
    """Write `curves_figure` to `path`."""
    write_figure(lambda: curves_figure(rows), path)


def curves_figure(rows: History) -> Figure:
    """Draw loss and accuracy over the epochs, for train and validation, and mark the best epoch.

    `rows` are those of a history; what is missing, None or not finite is left out. The best epoch is the first with the
    highest val_accuracy, else with the lowest val_loss; without validation none is marked. ValueError for no rows.
    """
    if not rows:
        raise ValueError("no epochs to draw: the history is empty")
    epochs = _epochs(rows)
    figure = new_figure(11, 4.2)
    best = _best_row(rows)
    size = 6 if len(epochs) <= 30 else 0  # markers show single epochs; 200 of them would hide the line
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, label, colour, style in (("train", "train", BLUE, "s-"), ("val", "validation", ORANGE, "o-")):
            values = _column(rows, f"{split}_{name}")
            known = np.isfinite(values)  # validation may run every n-th epoch: the line continues to the next value
            if known.any():
                marker = {"color": colour, "label": label, "markersize": size, "markeredgewidth": 0}
                axes.plot(epochs[known], values[known], style, **marker)
        _dress(axes, name.capitalize(), "epoch")
        _dress_epochs(axes, epochs, name)
        if best is not None:
            _mark(axes, int(epochs[best]), float(_column(rows, f"val_{name}")[best]), percent=name == "accuracy")
        if axes.lines:
            axes.legend(loc="best", framealpha=0.9)
    return figure


def plot_runs(runs: Sequence[tuple[str, History]], path: Path) -> None:
    """Write `runs_figure` to `path`."""
    write_figure(lambda: runs_figure(runs), path)


def runs_figure(runs: Sequence[tuple[str, History]]) -> Figure:
    """Draw the validation loss and accuracy of several runs, (name, rows of a history) each, over the epochs.

    Colours and dashes tell the runs apart; ValueError for no runs.
    """
    if not runs:
        raise ValueError("no runs to draw")
    figure = new_figure(11, 4.4 + 0.2 * len(runs))
    both = figure.subplots(1, 2)
    longest = max((row["epoch"] for _, rows in runs for row in rows), default=1)
    for axes, name in zip(both, ("loss", "accuracy"), strict=True):
        for number, (label, rows) in enumerate(runs):
            values = _column(rows, f"val_{name}")
            known = np.isfinite(values)
            style = {"marker": "o", "markersize": 4 if len(rows) <= 30 else 0, **_line_style(number)}
            axes.plot(_epochs(rows)[known], values[known], label=_legend_name(label), **style)
        _dress(axes, f"Validation {name}", "epoch")
        _dress_epochs(axes, np.array([1, longest]), name)
    _legend_below(figure, both[0])
    return figure


def plot_sizes(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write `sizes_figure` to `path`."""
    write_figure(lambda: sizes_figure(series), path)


def sizes_figure(series: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy over the number of training images for each of `series` (see `Leaderboard.sizes`).

    Validation is a line with error bars of one standard deviation, test a cross of its colour. ValueError for no series.
    """
    if not series:
        raise ValueError("no sizes to draw")
    figure = new_figure(7, 4.2 + 0.2 * len(series))
    axes = figure.subplots()
    for number, one in enumerate(series):
        columns = zip(*one["points"], strict=True)
        counts, validation, spread, test = (np.array(column, dtype=np.float64) for column in columns)  # None is NaN
        name, style = _legend_name(one["name"]), _line_style(number)
        label = name if one["name"] else "validation"
        axes.errorbar(counts, validation, np.nan_to_num(spread), marker="o", capsize=3, label=label, **style)
        if np.isfinite(test).any():
            label = "_" if "test" in axes.get_legend_handles_labels()[1] else "test"  # one entry for all crosses
            axes.plot(counts, test, "x", color=style["color"], markersize=8, label=label)
    _dress(axes, "Accuracy by number of training images", "training images")
    axes.set_xscale("log")
    _tick_only(axes, sorted({point[0] for one in series for point in one["points"]}))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _percent_axis(axes)
    _legend_below(figure, axes)
    return figure


def plot_rates(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float, path: Path
) -> None:
    """Write `rates_figure` to `path`."""
    write_figure(lambda: rates_figure(rates, losses, smooth, chosen), path)


def rates_figure(rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float) -> Figure:
    """Draw the loss of each step, and its moving average, over the learning rate, and mark the `chosen` rate."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.75", linewidth=1, label="loss per batch")
    axes.plot(rates, smooth, color=BLUE, linewidth=2, label="moving average")
    axes.axvline(chosen, color=ORANGE, linestyle="--", label=f"suggested: {chosen:.2g}")
    axes.set_xscale("log")
    low, high = min(smooth), max(smooth[0], *smooth[: len(smooth) // 2])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))  # the divergence at the end would hide the rest
    _dress(axes, "Learning-rate search", "learning rate")
    axes.set_ylabel("training loss")
    axes.legend(loc="best", framealpha=0.9)
    return figure


def plot_batch_sizes(
    sizes: Sequence[int], speeds: Sequence[float], gigabytes: Sequence[float], chosen: int, path: Path
) -> None:
    """Write `batch_size_figure` to `path`."""
    write_figure(lambda: batch_size_figure(sizes, speeds, gigabytes, chosen), path)


def batch_size_figure(sizes: Sequence[int], speeds: Sequence[float], gigabytes: Sequence[float], chosen: int) -> Figure:
    """Draw speed and memory over the batch size, and mark the `chosen` one."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for axes, values, title in ((left, speeds, "Images per second"), (right, gigabytes, "Memory in GB")):
        axes.plot(sizes, values, "o-", color=BLUE)
        axes.axvline(chosen, color=ORANGE, linestyle="--", label=f"suggested: {chosen}")
        axes.set_xscale("log", base=2)
        _tick_only(axes, sizes)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(0, 1.08 * max(values))
        _dress(axes, title, "batch size")
        axes.legend(loc="best", framealpha=0.9)
    return figure


def _epochs(rows: History) -> NDArray[np.int64]:
    return np.array([row["epoch"] for row in rows], dtype=np.int64)


def _column(rows: History, key: str) -> NDArray[np.float64]:
    values = np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows])
    return np.where(np.isfinite(values), values, np.nan)  # an infinite loss would stretch the axis without end


def _best_row(rows: History) -> int | None:
    accuracy, loss = _column(rows, "val_accuracy"), _column(rows, "val_loss")
    if np.isfinite(accuracy).any():
        return int(np.nanargmax(accuracy))
    return int(np.nanargmin(loss)) if np.isfinite(loss).any() else None


def _legend_name(name: str) -> str:
    """Return a name as a legend shows it: matplotlib takes "$" for a formula, and hides what begins with "_"."""
    name = short_name(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of `axes` below the figure, in as many columns as its width holds."""
    handles, labels = axes.get_legend_handles_labels()
    width = 0.6 + 0.09 * max(map(len, labels), default=0)  # inches, of an entry
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of the line `number`; the first 28 differ."""
    dashes = _DASHES[number // len(_PALETTE) % len(_DASHES)]
    return {"color": _PALETTE[number % len(_PALETTE)], "linestyle": dashes}


def _dress(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _dress_epochs(axes: Axes, epochs: NDArray[np.int64], name: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    pad = max(0.5, 0.02 * float(epochs[-1] - epochs[0]))
    axes.set_xlim(float(epochs.min()) - pad, float(epochs.max()) + pad)
    if name == "accuracy":
        _percent_axis(axes)


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))


def _tick_only(axes: Axes, values: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())


def _mark(axes: Axes, epoch: int, value: float, *, percent: bool) -> None:
    """Mark the best epoch by a line, and its value by a ring, and name both in the legend."""
    if math.isnan(value):
        axes.axvline(epoch, color="0.35", linestyle=":", label=f"best epoch {epoch}", zorder=1)
        return
    shown = f"{100 * value:.1f} %" if percent else f"{value:.4g}"
    axes.axvline(epoch, color="0.35", linestyle=":", zorder=1)
    ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": ":"}
    axes.plot([epoch], [value], marker="o", color="0.35", label=f"best epoch {epoch}: {shown}", **ring)
