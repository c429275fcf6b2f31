"""Runs compared: McNemar's test against the binomial test, the settings that differ, and the files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest

from imgclf.compare import main
from imgclf.sweeps.comparison import mcnemar


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
    lines = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    assert lines[0].startswith("run,validation,test,epochs") and len(lines) == 3
    assert lines[1].split(",")[0] in str(tiny_run)  # the best by validation first
    assert "on the same 15 test images" in out and "McNemar" in out
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_other_test_images_are_not_tested_against_each_other(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    path = other / "predictions_test.csv"
    path.write_text(path.read_text().replace("/test/", "/elsewhere/"))
    assert main([str(tiny_run), str(other)]) == 0
    assert "McNemar" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", '{"val": {"accuracy": 1}}', "[]"])
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"imgclf: {tmp_path}: ") and error.count("\n") == 1
