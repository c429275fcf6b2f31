"""Runs compared: McNemar's test against the binomial test, the settings that differ, and the files."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from scipy.stats import binomtest
from support.fabricate import COLOURS, TINY, composed, draw_image
from support.run_files import read_rows

from imgclf.compare import main
from imgclf.files import run_folder
from imgclf.models.checkpoint import update_metadata
from imgclf.predict import main as predict
from imgclf.sweeps.comparison import mcnemar, read_run
from imgclf.training.run import train


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (10, 2), (3, 17), (200, 250)])
def test_mcnemar_agrees_with_the_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_compare_prints_and_writes_how_runs_differ(
    run_tiny: Callable[..., Path], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = run_tiny("trainer.max_epochs=1", "optimizer.lr=1e-5")
    assert main([str(worse), str(tiny_run), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "optimizer.lr" in out and "trainer.max_epochs" in out and "data_dir" not in out
    metrics = [json.loads((run / "metrics.json").read_text())["val"]["accuracy"] for run in (tiny_run, worse)]
    assert metrics[0] > metrics[1]
    rows = read_rows(tmp_path / "out" / "compare.csv")
    assert list(rows[0])[:5] == ["data", "run", "validation", "test", "epochs"] and len(rows) == 2
    assert rows[0]["run"] in str(tiny_run)  # the best by validation first
    assert rows[0]["data"] == "folders, 15 test images" and " of 12, " in rows[0]["validation"]
    assert "on the same 15 test images" in out and "McNemar" in out
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def copied(run: Path, folder: Path, tested: str = "", **changes: dict[str, object]) -> Path:
    """Copy what is compared of a run, with other test images and settings by group; return the new folder."""
    folder.mkdir(parents=True)
    for name in ("metrics.json", "history.csv", "config.yaml", "predictions_test.csv"):
        shutil.copy(run / name, folder)
    path = folder / "predictions_test.csv"
    path.write_text(path.read_text().replace("/00", f"/{tested}00"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for group, values in changes.items():
        (settings if group == "top" else settings[group]).update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the test images differ"),
        ({"dataset": {"name": "birds"}}, "dataset.name differs: "),
        ({"dataset": {"split_seed": 3}}, "dataset.split_seed differs"),
    ],
)
def test_runs_on_other_data_have_a_table_of_their_own(
    changes: dict[str, dict[str, object]],
    reason: str,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = copied(tiny_run, tmp_path / "other", "elsewhere", **changes)
    assert main([str(tiny_run), str(other)]) == 2
    out, err = capsys.readouterr()
    assert "McNemar" not in out and out.count("15 test images") == 2
    assert err.startswith(f"imgclf: these runs can't be compared: {reason}") and err.count("\n") == 1
    third = copied(other, tmp_path / "third", optimizer={"lr": 0.5})
    assert main([str(tiny_run), str(other), str(third), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out.count("McNemar") == 1 and out.count("15 test images") == 3 and err == ""
    assert f"runs in different tables can't be compared: {reason}" in out
    assert len(read_rows(tmp_path / "out" / "compare.csv")) == 3


def test_runs_on_data_that_moved_are_compared_unless_the_files_are_others(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = copied(tiny_run, tmp_path / "moved", top={"data_dir": "/mnt/elsewhere"})
    predictions = (moved / "predictions_test.csv").read_text()
    data = yaml.safe_load((tiny_run / "config.yaml").read_text())["data_dir"]
    assert data in predictions
    (moved / "predictions_test.csv").write_text(predictions.replace(data, "/mnt/elsewhere"))
    shutil.copytree(tiny_run / "checkpoints", moved / "checkpoints")
    assert main([str(tiny_run), str(moved)]) == 0
    assert "on the same 15 test images" in capsys.readouterr().out
    update_metadata(moved / "checkpoints" / "best.ckpt", fingerprint={"test": {"red": [5, "0123"]}})
    assert main([str(tiny_run), str(moved)]) == 2
    assert capsys.readouterr().err == "imgclf: these runs can't be compared: the test images differ\n"
    elsewhere = copied(moved, tmp_path / "birds", dataset={"name": "birds"})
    assert main([str(tiny_run), str(elsewhere)]) == 2
    assert "dataset.name differs" in capsys.readouterr().err


def test_a_run_without_a_test_is_compared_by_its_validation_in_the_same_table(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untested = copied(tiny_run, tmp_path / "untested", optimizer={"lr": 0.5})
    (untested / "predictions_test.csv").unlink()
    metrics = json.loads((untested / "metrics.json").read_text())
    del metrics["test"]
    (untested / "metrics.json").write_text(json.dumps(metrics))
    other = copied(tiny_run, tmp_path / "other", "elsewhere")
    assert main([str(untested), str(tiny_run)]) == 0
    out = capsys.readouterr().out
    assert out.count("15 test images") == 1 and "McNemar" not in out and "optimizer.lr" in out
    assert "untested was not tested: it is compared by its validation alone\n" in out
    assert main([str(untested), str(tiny_run), str(other)]) == 0
    assert "runs in different tables can't be compared: the test images differ" in capsys.readouterr().out


def test_table_has_only_the_settings_that_matter_in_80_columns(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = {"task_name": "x", "tags": ["y"], "cache": "off", "data_dir": "/z", "report": None, "engine": "eager"}
    other = copied(
        tiny_run,
        tmp_path / ("a_folder_with_a_long_name" * 3),
        top={**runtime, "seed": 7},
        dataset={"num_workers": 5, "augment": {"rotation_degrees": 3.0, "zoom": 0.1}},
        trainer={"accelerator": "gpu", "devices": 2},
        callbacks={"early_stopping": None},
        model={
            "backbone_kwargs": {"layers": list(range(40))},
            "weights": f"/models/{'deep/' * 20}weights.pth",
            "name": "mine",
        },
        checkpoint={"every_minutes": 1.0},
        logger={"name": "csv"},
    )
    assert main([str(tiny_run), str(other)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "│┃┏└┡"]
    assert max(map(len, table)) <= 80
    shown = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in table if line.startswith("│")}
    keys = {key for key in shown if "." in key or key == "seed"}
    assert {key for key in keys if not key.startswith("model.back")} == {
        "callbacks.early_stopping",
        "dataset.augment",
        "model.weights",
        "seed",
    }
    assert sorted(cell.strip() for cell in shown["callbacks.early_stopping"]) == ["-", "on"]
    assert "…/weights.pth" in "".join(shown["model.weights"]) and "…" in "".join(shown["model.backbone_kwargs.layers"])


def test_checkpoints_evaluations_and_latest_are_compared_with_runs(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "LATEST", tmp_path / "outputs" / "latest")
    run_folder.mark_latest(copied(tiny_run, tmp_path / "newest"))
    evaluation = copied(tiny_run, tmp_path / "evaluation")
    (evaluation / "config.yaml").unlink()
    assert main([str(tiny_run / "checkpoints" / "best.ckpt"), "latest", str(evaluation), str(tmp_path / "newest")]) == 0
    out = capsys.readouterr().out
    assert out.count("folders, 15 test images") == 1 and out.count("McNemar") == 3 and "newest" in out
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith(f"imgclf: {tmp_path / 'nothing'}: no such file or folder; expected a run")


@pytest.mark.parametrize("content", [None, "{", '{"val": {"accuracy": 1}}', "[]"])
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"imgclf: {tmp_path}: ") and error.count("\n") == 1


@pytest.mark.trust(
    "classes called true, file or predicted, in predictions, their comparison and predict --csv", "a wrong column read"
)
def test_classes_named_like_columns_keep_every_column_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 6), ("valid", 2), ("test", 4)):
        for name, colour in zip(("file", "predicted", "true"), COLOURS.values(), strict=True):
            for number in range(count):
                draw_image(tmp_path / "data" / split / name / f"{number}.png", colour, number)
    runs = []
    for seed in (0, 1):
        settings = composed(*TINY, f"data_dir='{tmp_path / 'data'}'", f"seed={seed}", "trainer.max_epochs=3")
        train(settings, tmp_path / f"run{seed}", [])
        runs.append(read_run(tmp_path / f"run{seed}", f"run{seed}"))
    for run in runs:
        assert [true for true, _ in run.predictions.values()] == ["file"] * 4 + ["predicted"] * 4 + ["true"] * 4
        correct = sum(true == predicted for true, predicted in run.predictions.values())
        assert correct == run.metrics["test"]["correct"] and len(run.predictions) == 12
    rows = read_rows(runs[0].folder / "predictions_test.csv")
    assert list(rows[0]) == ["file", "true", "predicted", "p(file)", "p(predicted)", "p(true)"]
    assert main([str(run.folder) for run in runs]) == 0
    assert "on the same 12 test images" in capsys.readouterr().out
    checkpoint = str(runs[0].folder / "checkpoints" / "best.ckpt")
    assert predict([checkpoint, str(tmp_path / "data" / "test"), "--csv"]) == 0
    printed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["predicted"] for row in printed] == [row["predicted"] for row in rows]
    assert list(printed[0]) == ["file", "predicted", "p(file)", "p(predicted)", "p(true)"]
