"""Two pictures: seconds against the number of pictures, and against the number of epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

__all__ = ["plot_epochs", "plot_size"]

COLOURS = {"imgclf": "#1f6fb4", "keras": "#d1662a"}
LABELS = {"imgclf": "imgclf, cold caches", "keras": "Keras"}
Points = Mapping[str, Sequence[tuple[float, float]]]


def plot_size(runs: Sequence[dict[str, Any]], path: Path) -> bool:
    """Seconds of `fit` against pictures, both axes logarithmic; False if there is nothing to draw."""
    good = [run for run in runs if "times" in run and "failed" not in run]
    points = {who: [(run["pictures"], run["fit_seconds"]) for run in good if run["who"] == who] for who in COLOURS}
    epochs = max((run["epochs"] for run in good), default=0)
    return _draw(points, path, "training pictures", f"seconds of fit, {epochs} epochs", "log")


def plot_epochs(runs: Sequence[dict[str, Any]], path: Path) -> bool:
    """Seconds of `fit` against epochs; Keras's points follow from the epochs that it ran."""
    good = [run for run in runs if "failed" not in run]
    ours = [(int(run["variant"].split()[0]), run["fit_seconds"]) for run in good if run["variant"].endswith("epochs")]
    points = {"imgclf": ours, "keras": []}
    keras = next((run for run in good if run["who"] == "keras" and run.get("times") == 1), None)
    if keras:
        measured = keras["epoch_seconds"]
        later = sorted(measured[1:] or measured)[len(measured[1:] or measured) // 2]
        points["keras"] = [(epochs, measured[0] + (epochs - 1) * later) for epochs, _ in ours]
    return _draw(points, path, "epochs", "seconds of fit", "linear")


def _draw(points: Points, path: Path, across: str, up: str, scale: str) -> bool:
    if not any(points.values()):
        return False
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    for who, values in points.items():
        if values:
            x, y = zip(*sorted(values), strict=True)
            axes.plot(x, y, marker="o", color=COLOURS[who], label=LABELS[who], linewidth=2)
            for position in zip(x, y, strict=True):
                shown = f"{position[1]:.3g}" if position[1] < 100 else f"{position[1]:,.0f}"
                axes.annotate(shown, position, textcoords="offset points", xytext=(0, 7), ha="center",
                              fontsize=8, color=COLOURS[who])  # fmt: skip
    axes.set(xscale=scale, yscale="log", xlabel=across, ylabel=up)
    ticks = sorted({x for values in points.values() for x, _ in values})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.margins(x=0.08, y=0.12)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True
