"""The leaderboard of a sweep: trials ranked and grouped, the importance of settings, and the page in a real browser."""

import json
from pathlib import Path
from typing import Any

import pytest

from imgclf.cli.resolvers import trial_folder
from imgclf.errors import DataError
from imgclf.files.run_folder import TrialRecord, write_record
from imgclf.report.page import sweep_page
from imgclf.sweep import main
from imgclf.sweeps.leaderboard import importance, page_data, read_sweep

from support.browser import NASTY, browse, needs_browser  # isort: skip


def fabricate(
    folder: Path, overrides: dict[str, str], state: str = "finished", value: float = 0.5, **more: Any
) -> None:
    """A trial without its training: its record, and the metrics of 100 validation images."""
    path = folder / trial_folder(",".join(f"{key}={text}" for key, text in overrides.items()))
    settings = {"dataset": {"name": overrides.get("dataset", "cards")}, "checkpoint": {"monitor": "val_accuracy"}}
    record = TrialRecord([f"{key}={text}" for key, text in overrides.items()], settings, state, value, **more)
    write_record(path, record)
    counts = {"correct": round(100 * value), "count": 100, "accuracy": value, "loss": 1.0 - value, "macro_f1": value}
    if state == "finished":
        size = round(1000 * float(overrides.get("dataset.fraction", 1)))
        (path / "metrics.json").write_text(
            json.dumps({"train": {**counts, "count": size, "correct": 0}, "val": counts, "test": counts})
        )


def test_data_sets_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    for dataset, lr, value in (
        ("cards", "1e-3", 0.7),
        ("cards", "1e-2", 0.8),
        ("sports", "1e-3", 0.9),
        ("sports", "1e-2", 0.2),
    ):
        fabricate(tmp_path, {"dataset": dataset, "optimizer.lr": lr}, value=value)
    board = read_sweep(tmp_path)
    ranked = [(group.dataset, group.value) for group in board.groups]
    assert ranked == [("cards", 0.8), ("cards", 0.7), ("sports", 0.9), ("sports", 0.2)]


def test_damaged_trials_are_reported_and_the_others_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(tmp_path, {"seed": "0"})
    fabricate(tmp_path, {"seed": "1"}, "failed", error="killed")
    fabricate(tmp_path, {"seed": "2"}, "running")
    fabricate(tmp_path, {"seed": "3"})
    damaged = tmp_path / trial_folder("seed=3") / "metrics.json"
    damaged.write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "trial.json").write_text("[]")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "50 of 100" in out and "failed, 0 epochs: " in out and ": killed" in out and "running, 0 epochs" in out
    assert len(read_sweep(tmp_path).groups) == 1


def test_a_folder_without_trials_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="holds no trials"):
        read_sweep(tmp_path)
    assert main([str(tmp_path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_importance_is_the_explained_variance_beyond_chance() -> None:
    values = [0.1, 0.1, 0.9, 0.9]
    assert importance(["a", "a", "b", "b"], values) == 1.0
    assert importance(["a", "b", "a", "b"], values) == 0.0
    assert importance(["a", "b", "c", "d"], values) is None, "one trial per level explains everything and nothing"
    assert importance(["a", "a", "b", "b"], [0.5] * 4) is None
    # epsilon squared = (SSB - (k - 1) MSW) / SST = (0.25 - 0.01) / 0.27, by hand
    assert importance(["a", "a", "b", "b"], [0.0, 0.1, 0.5, 0.6]) == pytest.approx((0.25 - 0.005) / 0.26)
    many = [str(10**-k) for k in range(8)]
    assert importance(many, [0, 0, 0, 0, 1, 1, 1, 1]) == 1.0, "numbers are grouped by quartile"


def test_sizes_give_accuracy_by_number_of_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fraction, seed, value in (("0.1", "0", 0.4), ("0.1", "1", 0.6), ("1.0", "0", 0.8), ("1.0", "1", 0.9)):
        fabricate(tmp_path, {"dataset.fraction": fraction, "seed": seed}, value=value)
    (series,) = read_sweep(tmp_path).sizes
    assert [point[:2] for point in series["points"]] == [(100, pytest.approx(0.5)), (1000, pytest.approx(0.85))]
    assert series["points"][0][2] == pytest.approx(2**0.5 / 10)
    assert main([str(tmp_path)]) == 0 and (tmp_path / "data_size.png").stat().st_size > 5000


SCRIPT = """
  const lines = [...document.querySelectorAll("polyline.trial")];
  out.lines = lines.length;
  lines.at(-1).dispatchEvent(new PointerEvent("pointerenter"));
  out.pointed = document.querySelector(".readout").textContent;
  document.querySelectorAll("table.board th button")[0].click();
  out.ranks = [...document.querySelectorAll("table.board tbody tr")].map(row => +row.cells[0].textContent);
  out.images = document.images.length;
  out.title = document.title;
  out.heads = [...document.querySelectorAll("h2")].map(head => head.textContent);
  out.rows = document.querySelectorAll("table.trials tbody tr").length;
  out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
"""


@needs_browser
@pytest.mark.parametrize("width", [500, 1180])
def test_a_browser_opens_and_points_at_the_page_of_a_sweep(tmp_path: Path, width: int) -> None:
    for number in range(12):
        overrides = {
            "optimizer.lr": str(10.0 ** -(number % 4)),
            "model": NASTY if number % 2 else "vgg16",
            "seed": str(number),
        }
        fabricate(tmp_path / "sweep", overrides, value=0.5 + number / 30)
    fabricate(tmp_path / "sweep", {"optimizer.lr": "7", "model": NASTY}, "failed", error=NASTY)
    page = sweep_page(page_data(read_sweep(tmp_path / "sweep")))
    result, console = browse(page, SCRIPT, tmp_path, width)
    assert result["errors"] == [] and console == "" and result["wide"] <= 0
    assert (
        result["lines"] == 12 and result["rows"] == 13 and result["images"] == 0 and result["title"].startswith("Sweep")
    )
    assert result["pointed"].startswith("86.7 %: ") and "optimizer.lr=0.001" in result["pointed"]
    assert result["ranks"] in ([1, 2, 3, 4], [4, 3, 2, 1])
    assert {"Leaderboard", "Parallel coordinates", "Importance of settings", "All trials"} <= set(result["heads"])
