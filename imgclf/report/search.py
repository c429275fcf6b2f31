"""What a search for a learning rate or a batch size found, as PNG: `*_figure` draws, `plot_*` writes."""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from imgclf.report.figures import BLUE, ORANGE, new_figure, write_figure

__all__ = ["batch_size_figure", "plot_batch_sizes", "plot_rates", "rates_figure"]


def plot_rates(rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float,
               path: str | os.PathLike[str]) -> None:  # fmt: skip
    """Write `rates_figure` to `path`."""
    write_figure(lambda: rates_figure(rates, losses, smooth, chosen), path)


def rates_figure(rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float) -> Figure:
    """Draw the loss of each step, and smoothed, over its learning rate, and mark the one that is `chosen`."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.75", linewidth=1, label="of each batch")
    axes.plot(rates, smooth, color=BLUE, linewidth=2, label="smoothed")
    axes.axvline(chosen, color=ORANGE, linestyle="--", label=f"suggested: {chosen:.2g}")
    axes.set_xscale("log")
    low, high = min(smooth), max(smooth[0], *smooth[: len(smooth) // 2])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))  # the blow-up at the end would hide the rest
    axes.set_title("Loss while the learning rate grows")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="best", framealpha=0.9)
    return figure


def plot_batch_sizes(sizes: Sequence[int], speeds: Sequence[float], gigabytes: Sequence[float], chosen: int,
                     path: str | os.PathLike[str]) -> None:  # fmt: skip
    """Write `batch_size_figure` to `path`."""
    write_figure(lambda: batch_size_figure(sizes, speeds, gigabytes, chosen), path)


def batch_size_figure(sizes: Sequence[int], speeds: Sequence[float], gigabytes: Sequence[float], chosen: int) -> Figure:
    """Draw pictures a second and memory over the batch size, and mark the one that is `chosen`."""
    figure = new_figure(10, 4)
    for axes, values, title in zip(
        figure.subplots(1, 2), (speeds, gigabytes), ("Pictures a second", "Memory, GB"), strict=True
    ):
        axes.plot(sizes, values, "o-", color=BLUE)
        axes.axvline(chosen, color=ORANGE, linestyle="--", label=f"suggested: {chosen}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(0, 1.08 * max(values))
        axes.set_title(title)
        axes.set_xlabel("batch size")
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.legend(loc="best", framealpha=0.9)
    return figure
