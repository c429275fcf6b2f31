"""The report's numbers against scikit-learn and by hand; the pictures by the extents of what they show."""

import csv
import io
import json
import math
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from rich.console import Console
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score

from imgclf.errors import DataError, RunError
from imgclf.report import confusion, curves, tables

ODD_NAMES = ["a, b", 'say "hi"', "手語 ✋", "two\r\nlines", "lone\rreturn", "[red]", "$x^"]


def _random(num_samples, num_classes, seed=0, missing=()):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_samples, num_classes))
    targets = generator.choice([k for k in range(num_classes) if k not in missing], size=num_samples)
    logits[np.arange(num_samples), targets] += 1
    logits[:, list(missing)] = -20  # neither a target nor predicted
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), targets.astype(np.int64)


def _read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


# Metrics


@pytest.mark.parametrize(("num_classes", "missing"), [(3, ()), (7, (2,)), (24, ()), (53, (0, 52))])
def test_split_metrics_agree_with_scikit_learn(num_classes, missing):
    probabilities, targets = _random(400, num_classes, missing=missing)
    predictions = probabilities.argmax(axis=1)
    metrics = tables.split_metrics(probabilities, targets, 0.25)
    assert list(metrics) == ["accuracy", "loss", "top5", "macro_f1", "correct", "count"]
    assert metrics["accuracy"] == pytest.approx((predictions == targets).mean())
    assert metrics["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    if num_classes > 5:  # scikit-learn warns where k >= K
        labels = np.arange(num_classes)
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(targets, probabilities, k=5, labels=labels))
    assert (metrics["loss"], metrics["correct"], metrics["count"]) == (0.25, (predictions == targets).sum(), 400)
    assert {type(value) for value in metrics.values()} == {int, float}


def test_split_metrics_by_hand():
    # Predicted 0, 0, 1, 1: class 0 has tp 1, fp 1, fn 1 (F1 1/2), class 1 the same; class 2 occurs nowhere.
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.6, 0]], dtype=np.float32)
    metrics = tables.split_metrics(probabilities, np.array([0, 1, 0, 1]), 1.5)
    assert metrics == {"accuracy": 0.5, "loss": 1.5, "top5": 1.0, "macro_f1": 0.5, "correct": 2, "count": 4}


def test_two_classes_and_one_sample():
    metrics = tables.split_metrics(np.array([[0.9, 0.1]]), np.array([1]), 2.0)
    assert metrics == {"accuracy": 0.0, "loss": 2.0, "top5": 1.0, "macro_f1": 0.0, "correct": 0, "count": 1}


def test_equal_probabilities_rank_by_class():
    uniform = np.full((8, 8), 1 / 8, dtype=np.float32)
    metrics = tables.split_metrics(uniform, np.arange(8), 2.0)
    assert (metrics["correct"], metrics["top5"]) == (1, 5 / 8)


def test_what_cannot_be_measured_is_an_error():
    with pytest.raises(ValueError, match="N and K >= 1"):
        tables.split_metrics(np.zeros((0, 3)), np.zeros(0, dtype=np.int64), 0.0)
    with pytest.raises(ValueError, match=r"expected \[N, K\]"):
        tables.split_metrics(np.ones((2, 3)), np.zeros(3, dtype=np.int64), 0.0)
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        tables.split_metrics(np.ones((2, 3)), np.array([0, -1]), 0.0)
    with pytest.raises(RunError, match="1 of 2 samples aren't finite"):
        tables.split_metrics(np.array([[np.nan, np.nan], [0.5, 0.5]]), np.array([0, 0]), math.nan)


def test_confusion_matrix_agrees_with_scikit_learn():
    probabilities, targets = _random(300, 9, missing=(4,))
    predictions = probabilities.argmax(axis=1)
    matrix = tables.confusion_matrix(predictions, targets, 9)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, sklearn_confusion_matrix(targets, predictions, labels=range(9)))
    np.testing.assert_array_equal(tables.confusion_matrix(np.array([1]), np.array([0]), 2), [[0, 1], [0, 0]])
    empty = np.zeros(0, dtype=np.int64)
    np.testing.assert_array_equal(tables.confusion_matrix(empty, empty, 2), np.zeros((2, 2)))


def test_per_class_agrees_with_scikit_learn():
    probabilities, targets = _random(300, 9, missing=(4,))
    predictions = probabilities.argmax(axis=1)
    rows = tables.per_class(tables.confusion_matrix(predictions, targets, 9))
    expected = precision_recall_fscore_support(targets, predictions, labels=range(9), zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column.tolist())


def test_per_class_csv_ends_with_the_averages(tmp_path):
    probabilities, targets = _random(300, 7, missing=(4,))
    predictions = probabilities.argmax(axis=1)
    tables.per_class_csv(tmp_path / "a.csv", ODD_NAMES, tables.confusion_matrix(predictions, targets, 7))
    header, *rows = _read_csv(tmp_path / "a.csv")
    assert header == ["class", "precision", "recall", "f1", "support"]
    assert [row[0] for row in rows] == [*ODD_NAMES, "macro avg", "weighted avg"]
    assert rows[4] == ["lone\rreturn", "0.000000", "0.000000", "0.000000", "0"]
    for row, average in ((rows[-2], "macro"), (rows[-1], "weighted")):
        expected = precision_recall_fscore_support(targets, predictions, average=average)[:3]
        assert [float(cell) for cell in row[1:4]] == pytest.approx(expected, abs=1e-6)
        assert row[4] == "300"
    assert float(rows[-2][3]) == pytest.approx(tables.split_metrics(probabilities, targets, 0)["macro_f1"], abs=1e-6)


def test_per_class_table_shows_names_as_they_are():
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.per_class_table(["[red]", "rock"], np.array([[3, 1], [0, 4]])))
    text = console.file.getvalue()
    assert "[red]" in text and "0.750" in text and "weighted avg" in text


def test_metrics_json_is_strict(tmp_path):
    metrics = tables.split_metrics(np.array([[0.9, 0.1]]), np.array([0]), math.nan)
    tables.metrics_json(tmp_path / "m.json", {"test": metrics, "val": {**metrics, "loss": np.float32(0.5)}})
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    loaded = json.loads(text, parse_constant=pytest.fail)
    assert loaded["test"] == {**metrics, "loss": None} and loaded["val"]["loss"] == 0.5


def test_correct_phrase():
    assert tables.correct_phrase(68, 75) == "68 of 75"


# Predictions


def test_predictions_csv_survives_odd_names(tmp_path):
    probabilities, targets = _random(5, 7)
    files = ["a.png", Path("x, y") / "b.png", 'c".png', "new\nline.png", "bytes\udcff.png"]
    tables.predictions_csv(tmp_path / "p.csv", files, targets, probabilities, ODD_NAMES)
    header, *rows = _read_csv(tmp_path / "p.csv")
    assert header == ["file", "true", "predicted", *ODD_NAMES]
    assert [row[0] for row in rows] == ["a.png", str(files[1]), 'c".png', "new\nline.png", "bytes\\udcff.png"]
    assert [row[1] for row in rows] == [ODD_NAMES[target] for target in targets]
    assert [row[2] for row in rows] == [ODD_NAMES[best] for best in probabilities.argmax(axis=1)]
    written = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_allclose(written, probabilities, rtol=1e-6)
    np.testing.assert_allclose(written.sum(axis=1), 1, atol=1e-5)
    assert (tmp_path / "p.csv").read_bytes().endswith(b"\n") and b"\r\n" in (tmp_path / "p.csv").read_bytes()


def test_predictions_csv_without_targets(tmp_path):
    probabilities, targets = _random(2, 3)
    tables.predictions_csv(tmp_path / "p.csv", ["a", "b"], None, probabilities, ["x", "y", "z"])
    assert [row[1] for row in _read_csv(tmp_path / "p.csv")] == ["true", "", ""]
    assert b"\r" not in (tmp_path / "p.csv").read_bytes()
    tables.predictions_csv(tmp_path / "none.csv", [], None, np.zeros((0, 3)), ["x", "y", "z"])
    assert _read_csv(tmp_path / "none.csv") == [["file", "true", "predicted", "x", "y", "z"]]
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        tables.predictions_csv(tmp_path / "p.csv", ["a", "b"], targets * 0 - 1, probabilities, ["x", "y", "z"])
    with pytest.raises(ValueError, match=r"\[3 files, 3 classes\]"):
        tables.predictions_csv(tmp_path / "p.csv", ["a", "b", "c"], None, probabilities, ["x", "y", "z"])


# History


def _history(num_epochs):
    epochs = np.arange(1, num_epochs + 1)
    decay = np.exp(-3 * epochs / num_epochs)
    columns = {
        "train_loss": 2 * decay,
        "train_accuracy": 1 - decay,
        "val_loss": 2.1 * decay,
        "val_accuracy": 0.9 - decay,
    }
    names = ("epoch", *columns)
    epochs = epochs - 1  # files count from 0, plots from 1
    return [dict(zip(names, row, strict=True)) for row in zip(epochs, *columns.values(), strict=True)]


def test_history_round_trip(tmp_path):
    rows = [{"epoch": 1, "train_loss": 0.1 + 0.2, "lr": np.float64(1e-7)}, {"epoch": np.int64(2), "val_loss": math.nan}]
    tables.history_csv(tmp_path / "h.csv", rows)
    lines = (tmp_path / "h.csv").read_bytes().split(b"\n")
    assert lines[0] == b"epoch,train_loss,train_accuracy,val_loss,val_accuracy,lr,seconds"
    assert lines[1:] == [b"1,0.30000000000000004,,,,1e-07,", b"2,,,nan,,,", b""]
    first, second = tables.read_history_csv(tmp_path / "h.csv")
    assert first == dict.fromkeys(tables.HISTORY_COLUMNS) | {"epoch": 1, "train_loss": 0.1 + 0.2, "lr": 1e-7}
    assert second["epoch"] == 2 and math.isnan(second["val_loss"])
    tables.history_json(tmp_path / "h.json", rows)
    loaded = json.loads((tmp_path / "h.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert loaded == [first, second | {"val_loss": None}]
    tables.history_csv(tmp_path / "empty.csv", [])
    assert tables.read_history_csv(tmp_path / "empty.csv") == []


def test_unknown_history_column_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="train_acc"):
        tables.history_csv(tmp_path / "h.csv", [{"epoch": 1, "train_acc": 0.5}])


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff\xfe", None, ",".join(tables.HISTORY_COLUMNS).encode() + b"\nx"]
)
def test_what_is_no_history_is_a_data_error(tmp_path, content):
    if content is not None:
        (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"h\.csv can't be read as a history"):
        tables.read_history_csv(tmp_path / "h.csv")


# Pictures


def _png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def _names(num_classes):
    known = ["wheelchair basketball", "queen of diamonds", "A", "space", "rock", "cheerleading"]
    return [f"{known[k % 6]} {k // 6}".removesuffix(" 0") for k in range(num_classes)]


def _inside(inner, outer, slack=0.5):
    return (
        inner.x0 >= outer.x0 - slack
        and inner.x1 <= outer.x1 + slack
        and inner.y0 >= outer.y0 - slack
        and inner.y1 <= outer.y1 + slack
    )


@pytest.mark.parametrize("num_classes", [3, 53, 100])
def test_confusion_labels_are_whole_and_apart(tmp_path, monkeypatch, num_classes):
    drawn = []
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


def test_confusion_of_odd_names_and_empty_matrices(tmp_path):
    names = [*ODD_NAMES, "bytes\udcff", "x" * 300, "مرحبا"]
    confusion.plot_confusion(np.zeros((10, 10), dtype=np.int64), names, tmp_path / "c.png")
    width, height = _png_size(tmp_path / "c.png")
    assert max(width, height) < 2000  # the long name is shortened
    assert confusion.confusion_figure(np.array([[0]]), ["only"]).axes[0].get_title() == "0 of 0"
    with pytest.raises(ValueError, match=r"expected \[K, K\]"):
        confusion.confusion_figure(np.zeros((2, 3)), ["a", "b"])


def test_confusion_draws_hits_and_mistakes_in_different_colours():
    axes = confusion.confusion_figure(np.array([[5, 5], [0, 10]]), ["a", "b"]).axes[0]
    hits, mistakes = axes.images
    red, _, blue, _ = hits.cmap(0.5)
    assert blue > red
    red, _, blue, _ = mistakes.cmap(0.5)
    assert red > blue
    np.testing.assert_array_equal(hits.get_array().filled(-1), [[0.5, -1], [-1, 1]])
    np.testing.assert_array_equal(mistakes.get_array().filled(-1), [[-1, 0.5], [-1, -1]])


@pytest.mark.parametrize("num_epochs", [1, 200])
def test_curves(tmp_path, num_epochs):
    rows = _history(num_epochs)
    curves.plot_curves(rows, tmp_path / "h.png")
    assert _png_size(tmp_path / "h.png") == (1320, 504)
    loss, accuracy = curves.curves_figure(rows).axes
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["train", "validation", f"best epoch {num_epochs}: {100 * rows[-1]['val_accuracy']:.1f} %"]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        np.testing.assert_array_equal(lines["train"], [row[f"train_{name}"] for row in rows])
        np.testing.assert_array_equal(lines["validation"], [row[f"val_{name}"] for row in rows])


def test_curves_without_validation_and_with_gaps(tmp_path):
    rows = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in _history(4)]
    loss, accuracy = curves.curves_figure(rows).axes
    assert [line.get_label() for line in loss.lines] == ["train"] and not accuracy.lines
    rows[1] |= {"val_loss": 0.5, "val_accuracy": None}
    rows[2] |= {"val_loss": math.inf, "train_loss": math.nan}
    rows[3] |= {"val_loss": 0.4}
    curves.plot_curves(rows, tmp_path / "h.png")
    labels = [line.get_label() for line in curves.curves_figure(rows).axes[0].lines]
    assert "best epoch 4: 0.4" in labels
    with pytest.raises(ValueError, match="no epochs"):
        curves.plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_drawing_leaves_pyplot_alone():
    # In a process of its own: other tests' libraries import pyplot.
    code = "import sys, imgclf.report.curves, imgclf.report.confusion; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
