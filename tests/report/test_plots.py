"""Plots by the extents of what they show."""

import math
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from imgclf.figures import plots
from imgclf.figures.grid import Tile, grid_figure
from imgclf.report import confusion

ODD_NAMES = ["a, b", 'say "hi"', "手語 ✋", "two\r\nlines", "lone\rreturn", "[red]", "$x^"]


def _history(num_epochs: int) -> list[dict[str, Any]]:
    epochs = np.arange(1, num_epochs + 1)
    decay = np.exp(-3 * epochs / num_epochs)
    columns = {
        "train_loss": 2 * decay,
        "train_accuracy": 1 - decay,
        "val_loss": 2.1 * decay,
        "val_accuracy": 0.9 - decay,
    }
    names = ("epoch", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(epochs, *columns.values(), strict=True)]


def _png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def _names(num_classes: int) -> list[str]:
    known = ["wheelchair basketball", "queen of diamonds", "A", "space", "rock", "cheerleading"]
    return [f"{known[k % 6]} {k // 6}".removesuffix(" 0") for k in range(num_classes)]


def _inside(inner: Bbox, outer: Bbox, slack: float = 0.5) -> bool:
    return (
        inner.x0 >= outer.x0 - slack
        and inner.x1 <= outer.x1 + slack
        and inner.y0 >= outer.y0 - slack
        and inner.y1 <= outer.y1 + slack
    )


@pytest.mark.parametrize("num_classes", [3, 53, 100])
def test_confusion_labels_are_whole_and_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int
) -> None:
    drawn: list[Any] = []
    original = confusion.confusion_figure
    monkeypatch.setattr(confusion, "confusion_figure", lambda *a: drawn.append(original(*a)) or drawn[0])
    matrix = np.eye(num_classes, dtype=np.int64) * 297 + np.eye(num_classes, k=2, dtype=np.int64) * 3
    confusion.plot_confusion(matrix, _names(num_classes), tmp_path / "c.png")
    width, height = _png_size(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size < 1_500_000 and max(width, height) < 4500

    (figure,) = drawn
    axes = figure.axes[0]
    assert abs(figure.bbox.width - width) <= 1 and abs(figure.bbox.height - height) <= 1
    for axis in (axes.xaxis, axes.yaxis):
        labels = axis.get_ticklabels()
        assert [label.get_text() for label in labels] == _names(num_classes)
        boxes = [label.get_window_extent() for label in labels]
        assert all(_inside(box, figure.bbox) and not box.overlaps(axes.bbox) for box in boxes)
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        assert not any(axis.label.get_window_extent().overlaps(box) for box in boxes)
    others = [axes.title, axes.xaxis.label, axes.yaxis.label, *figure.axes[1].findobj(Text)]
    assert all(_inside(text.get_window_extent(), figure.bbox) for text in others if text.get_text())
    total = 297 * num_classes + 3 * (num_classes - 2)
    share = 100 * 297 * num_classes / total
    assert axes.get_title() == f"{297 * num_classes} of {total}, {share:.1f} %"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted", "True")
    cell = axes.bbox.width / num_classes
    assert len(axes.texts) == 2 * num_classes - 2  # zeros are blank
    for text in axes.texts[:: max(1, num_classes // 10)]:
        assert text.get_fontsize() >= 5 and text.get_window_extent().width < cell


def test_confusion_of_odd_names_and_empty_matrices(tmp_path: Path) -> None:
    names = [*ODD_NAMES, "bytes\udcff", "x" * 300, "مرحبا"]
    confusion.plot_confusion(np.zeros((10, 10), dtype=np.int64), names, tmp_path / "c.png")
    width, height = _png_size(tmp_path / "c.png")
    assert max(width, height) < 2000  # the long name is shortened
    assert confusion.confusion_figure(np.array([[0]]), ["only"]).axes[0].get_title() == "0 of 0"
    with pytest.raises(ValueError, match=r"expected \[K, K\]"):
        confusion.confusion_figure(np.zeros((2, 3)), ["a", "b"])


def test_confusion_draws_correct_and_wrong_predictions_in_different_colours() -> None:
    axes = confusion.confusion_figure(np.array([[5, 5], [0, 10]]), ["a", "b"]).axes[0]
    hits, mistakes = axes.images
    red, _, blue, _ = hits.cmap(0.5)
    assert blue > red
    red, _, blue, _ = mistakes.cmap(0.5)
    assert red > blue
    np.testing.assert_array_equal(hits.get_array().filled(-1), [[0.5, -1], [-1, 1]])
    np.testing.assert_array_equal(mistakes.get_array().filled(-1), [[-1, 0.5], [-1, -1]])


@pytest.mark.parametrize("num_epochs", [1, 200])
def test_curves_show_the_history_and_its_best_epoch(tmp_path: Path, num_epochs: int) -> None:
    rows = _history(num_epochs)
    plots.plot_curves(rows, tmp_path / "h.png")
    assert _png_size(tmp_path / "h.png") == (1320, 504)
    loss, accuracy = plots.curves_figure(rows).axes
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["train", "validation", f"best epoch {num_epochs}: {100 * rows[-1]['val_accuracy']:.1f} %"]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        np.testing.assert_array_equal(lines["train"], [row[f"train_{name}"] for row in rows])
        np.testing.assert_array_equal(lines["validation"], [row[f"val_{name}"] for row in rows])


def test_curves_without_validation_and_with_gaps(tmp_path: Path) -> None:
    rows = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in _history(4)]
    loss, accuracy = plots.curves_figure(rows).axes
    assert [line.get_label() for line in loss.lines] == ["train"] and not accuracy.lines
    rows[1] |= {"val_loss": 0.5, "val_accuracy": None}
    rows[2] |= {"val_loss": math.inf, "train_loss": math.nan}
    rows[3] |= {"val_loss": 0.4}
    plots.plot_curves(rows, tmp_path / "h.png")
    labels = [line.get_label() for line in plots.curves_figure(rows).axes[0].lines]
    assert "best epoch 4: 0.4" in labels
    with pytest.raises(ValueError, match="no epochs"):
        plots.plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_drawing_never_imports_pyplot() -> None:
    # In a process of its own: other tests' libraries import pyplot.
    code = "import sys, imgclf.figures.plots, imgclf.report.confusion; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_grid_titles_images_with_their_predictions() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    tiles = [Tile(image, "cat", 0.9), Tile(image, "cat", 0.9, "cat"), Tile(image, "c" * 60, 0.5, "$dog")]
    titles = [text.get_text() for text in grid_figure(tiles).texts]
    assert titles[:2] == ["cat 90 %", "✓ cat 90 %"] and titles[2].endswith("… 50 %\ntrue: $dog")
    with pytest.raises(ValueError, match="no images"):
        grid_figure([])


def test_titles_of_a_grid_are_as_wide_as_their_tiles_at_most() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    names = ["W" * 30, "i" * 30, "wheelchair basketball", "tennis"]
    figure = grid_figure([Tile(image, name, 0.9, "M" * 40) for name in names])
    for text, axes, name in zip(figure.texts, figure.axes, names, strict=True):
        assert text.get_window_extent().width <= axes.get_window_extent().width + 1
        assert name in ("W" * 30,) or text.get_text().startswith(f"✗ {name[:8]}")
    assert figure.texts[1].get_text().startswith("✗ " + "i" * 8), "thin letters need less room"
    assert figure.texts[3].get_text().startswith("✗ tennis 90 %\ntrue: MMMM")


@pytest.mark.parametrize(
    ("count", "rows"),
    [(1, [1]), (2, [2]), (7, [4, 3]), (8, [4, 4]), (10, [5, 5]), (11, [4, 4, 3]), (16, [4] * 4), (24, [6] * 4)],
)
def test_a_grid_fills_its_rows(count: int, rows: list[int]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    tops = [round(axes.get_position().y0, 3) for axes in grid_figure([Tile(image, "a", 0.5)] * count).axes]
    assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == rows


def test_sizes_name_validation_and_test_of_each_series() -> None:
    points = [(100, 0.5, None, 0.4), (1000, 0.75, 0.1, None)]
    axes = plots.sizes_figure([{"name": "model=a", "points": points}, {"name": "", "points": points[:1]}]).axes[0]
    labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]  # type: ignore[union-attr]
    assert sorted(labels) == ["model=a", "test", "validation"], "one entry for the crosses of all series"
    with pytest.raises(ValueError, match="no sizes"):
        plots.sizes_figure([])
