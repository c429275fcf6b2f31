"""The leaderboard of a sweep: trials ranked and grouped, the importance of settings, and the page in a real browser."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from imgclf.cli.resolvers import trial_folder
from imgclf.errors import DataError
from imgclf.files import run_folder, trial_record
from imgclf.files.trial_record import TrialRecord, write_record
from imgclf.report.page import sweep_page
from imgclf.sweep import main
from imgclf.sweeps.importance import importance
from imgclf.sweeps.leaderboard import finish_sweep, read_sweep
from imgclf.sweeps.page import page_data

from support.browser import NASTY, browse, needs_browser  # isort: skip
from support.run_files import read_rows  # isort: skip


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


def test_data_sets_are_not_ranked_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main([str(tmp_path)]) == 0
    rows = [(row["rank"], row["dataset"], row["value"]) for row in read_rows(tmp_path / "sweep.csv")]
    assert rows == [("1", "cards", "0.8"), ("2", "cards", "0.7"), ("1", "sports", "0.9"), ("2", "sports", "0.2")]
    table = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in cells] for cells in table] == [
        ["1", "cards"],
        ["2", "cards"],
        ["1", "sports"],
        ["2", "sports"],
    ]
    page: Any = page_data(board)
    assert [group["rank"] for group in page["groups"]] == [trial["rank"] for trial in page["trials"]] == [1, 2, 1, 2]
    assert [winner["group"]["rank"] for winner in page["winners"]] == [1, 1]


def test_the_winner_of_a_sweep_on_one_data_set_is_the_latest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LATEST", tmp_path / "outputs" / "latest")
    for lr, value in (("1e-3", 0.7), ("1e-2", 0.8), ("1e-1", 0.2)):
        fabricate(tmp_path / "sweep", {"optimizer.lr": lr}, value=value)
    best = tmp_path / "sweep" / trial_folder("optimizer.lr=1e-2") / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    assert finish_sweep(tmp_path / "sweep") == 0
    assert run_folder.find_checkpoint("latest") == best
    (tmp_path / "outputs" / "latest").unlink()
    for state in ("interrupted", "failed"):
        fabricate(tmp_path / "sweep", {"optimizer.lr": "1e-4"}, state=state)
        finish_sweep(tmp_path / "sweep")
        assert not (tmp_path / "outputs" / "latest").exists(), f"a sweep with a trial that is {state} isn't finished"
    fabricate(tmp_path / "sweep", {"optimizer.lr": "1e-4"}, value=0.1)
    fabricate(tmp_path / "sweep", {"dataset": "sports", "optimizer.lr": "1"}, value=0.9)
    finish_sweep(tmp_path / "sweep")
    assert not (tmp_path / "outputs" / "latest").exists(), "of several winners none is the latest"


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
    assert (
        " 50.0 % (39.8-60.2) " in out
        and "failed, 0 epochs: seed=1: killed\n" in out
        and "interrupted, 0 epochs: seed=2: its process was killed; the same command resumes it\n" in out
    )
    assert "incomplete, 0 epochs: seed=3: can't be read as a run (" in out
    assert "(char 1)); the same command makes its results again\n" in out
    assert len(read_sweep(tmp_path).groups) == 1
    states = {row["seed"]: (row["rank"], row["state"]) for row in read_rows(tmp_path / "sweep.csv")}
    assert states == {"0": ("1", "finished"), "1": ("", "failed"), "2": ("", "interrupted"), "3": ("", "incomplete")}


@pytest.mark.trust(
    "a trial whose record says running, while a process trains it, and after that was killed",
    "a dead trial is shown as running, or a living one as interrupted",
)
def test_a_trial_runs_as_long_as_a_process_holds_its_lock(tmp_path: Path) -> None:
    fabricate(tmp_path, {"seed": "0"}, "running")
    (trial,) = read_sweep(tmp_path).trials
    code = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print(); sys.stdin.read()"
    words = [sys.executable, "-u", "-c", code, str(trial.folder / trial_record.TRIAL_LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"\n"
        living = [(trial.state, trial.error) for trial in read_sweep(tmp_path).trials]
        holder.kill()
    assert living == [("running", None)]
    assert [trial.state for trial in read_sweep(tmp_path).trials] == ["interrupted"]
    assert trial_record.read_record(trial.folder).state == "running", "reading changes nothing"  # type: ignore[union-attr]


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


def test_names_are_the_settings_that_differ_in_short(tmp_path: Path) -> None:
    for name, lr, seed in (("a/one.safetensors", "1e-3", "0"), ("b/two.safetensors", "1e-2", "1")):
        overrides = {"optimizer.lr": lr, "model.head.name": "x", "model.weights": name, "seed": seed, "a.lr": lr}
        fabricate(tmp_path, {**overrides, "dataset.split_seed": "3"})
    board = read_sweep(tmp_path)
    assert board.names == {"a.lr": "a.lr", "model.weights": "weights", "optimizer.lr": "optimizer.lr", "seed": "seed"}
    names = [board.describe(trial.overrides) for trial in board.trials]
    assert "a.lr=1e-3, weights=one.safetensors, optimizer.lr=1e-3, seed=0" in names
    for weights in ("a/same.pth", "b/same.pth"):
        fabricate(tmp_path / "paths", {"model.weights": weights})
    board = read_sweep(tmp_path / "paths")
    assert {board.describe(trial.overrides) for trial in board.trials} == {"weights=a/same.pth", "weights=b/same.pth"}


def test_a_table_of_two_settings_and_seeds_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        overrides = {"optimizer.lr": f"1e-{number % 2}", "model.head.hidden": "[128]" if number < 4 else "[]"}
        fabricate(
            tmp_path / "seeds", overrides | {"seed": str(number // 2 % 2)}, value=0.5 + number / 20, seconds=1234.0
        )
        fabricate(tmp_path / "single", overrides | {"model": f"resnet{number}"}, value=0.5 + number / 20, seconds=123.0)
    for name, cell in (("seeds", " 80.0 ± 7.1 % "), ("single", " 85.0 % (76.5-91.4) ")):
        main([str(tmp_path / name)])
        table = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "┏┃┡│└"]
        assert any(cell in line for line in table) and max(map(len, table)) <= (80 if name == "seeds" else 90)


def with_checkpoints(folder: Path) -> None:
    for record in folder.glob("*/trial.json"):
        (record.parent / "checkpoints").mkdir()
        (record.parent / "checkpoints" / "best.ckpt").write_bytes(b"")


def test_a_sweep_ends_in_the_lines_of_its_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for lr, seed, value in (("1e-3", "0", 0.7), ("1e-2", "0", 0.8), ("1e-2", "1", 0.9), ("1e-3", "1", 0.95)):
        fabricate(tmp_path / "rates", {"optimizer.lr": lr, "seed": seed}, value=value)
    with_checkpoints(tmp_path / "rates")
    monkeypatch.chdir(tmp_path)
    assert main(["rates"]) == 0
    winner = f"rates/{trial_folder('optimizer.lr=1e-2,seed=1')}"
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "best trial: lr=1e-2, seed=1",  # of the settings with the best mean, not the luckiest seed of others
        f"model    {winner}/checkpoints/best.ckpt",
        f"report   {(tmp_path / 'rates' / 'sweep.html').as_uri()}",
        f"predict  imgclf predict {winner} image.jpg",
    ]


def test_a_sweep_over_data_sets_names_a_winner_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dataset, lr, value in (("cards", "1e-3", 0.7), ("cards", "1e-2", 0.8), ("sports", "1e-3", 0.9)):
        fabricate(tmp_path, {"dataset": dataset, "optimizer.lr": lr}, value=value)
    with_checkpoints(tmp_path)
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert (
        "best trial on cards: dataset=cards, lr=1e-2\n" in out
        and "best trial on sports: dataset=sports, lr=1e-3\n" in out
    )
    assert out.count("\npredict  imgclf predict ") == 2
    assert out.splitlines()[-1] == f"report  {(tmp_path / 'sweep.html').as_uri()}"


def test_trials_of_the_page_are_sorted_and_linked(tmp_path: Path) -> None:
    for lr, seed, value in (("1e-3", "0", 0.7), ("1e-2", "0", 0.8), ("1e-2", "1", 0.9)):
        fabricate(tmp_path, {"optimizer.lr": lr, "seed": seed, "model": NASTY}, value=value)
    fabricate(
        tmp_path, {"optimizer.lr": "7", "seed": "0", "model": NASTY}, "failed", error="out of memory", seconds=12.0
    )
    best = next(path for path in tmp_path.iterdir() if "1e-2" in path.name and "seed-1" in path.name)
    (best / "report.html").write_text("report")
    data: Any = page_data(read_sweep(tmp_path))
    assert [(trial["rank"], trial["name"]) for trial in data["trials"]] == [
        (1, "lr=1e-2, seed=1"),
        (1, "lr=1e-2, seed=0"),
        (2, "lr=1e-3, seed=0"),
    ]
    for trial in (*data["trials"], *data["unfinished"]):
        assert (tmp_path / unquote(trial["href"])).exists() and ":" not in trial["href"]
    assert data["trials"][0]["href"].endswith("/report.html") and data["trials"][1]["href"].endswith("/")
    assert [(trial["name"], trial["error"]) for trial in data["unfinished"]] == [("lr=7, seed=0", "out of memory")]
    assert data["winners"][0]["group"]["validation"] == "85.0 ± 7.1 % (2 seeds)"


SCRIPT = """
  const width = document.documentElement.clientWidth;
  const box = element => element.getBoundingClientRect();
  const lines = [...document.querySelectorAll("polyline.trial")];
  out.lines = lines.length;
  lines.at(-1).dispatchEvent(new PointerEvent("pointerenter"));
  out.pointed = document.querySelector(".readout").textContent;
  out.names = [...document.querySelectorAll("table.trials td.name")].map(cell => cell.textContent);
  out.hrefs = [...document.querySelectorAll("table.trials td.name a, .unfinished a")].map(a => a.getAttribute("href"));
  out.heads = [...document.querySelectorAll("h2")].map(head => head.textContent);
  out.unfinished = [...document.querySelectorAll(".unfinished li")].map(item => item.textContent);
  const shown = element => box(element).width > 0;
  out.ranks = [...document.querySelectorAll("table.trials tbody tr")].map(row => shown(row.cells[0])
    ? row.cells[0].textContent : getComputedStyle(row.querySelector(".name"), "::before").content);
  const texts = [...document.querySelectorAll("h1, h2, p, pre, td, th, li, .bars span, svg text, svg, code")].filter(shown);
  out.outside = texts.filter(e => box(e).right > width + 1 || box(e).left < 0).map(e => e.outerHTML.slice(0, 90));
  out.beyond = [...document.querySelectorAll("svg text")].filter(e => box(e).left < box(e.ownerSVGElement).left
    || box(e).right > box(e.ownerSVGElement).right).map(e => e.textContent);
  out.clipped = texts.filter(e => !e.closest("svg") && e.scrollWidth > e.clientWidth + 1 && e.clientWidth
    && getComputedStyle(e).display !== "inline").map(e => e.outerHTML.slice(0, 90));
  const labels = [...document.querySelectorAll(".parallel text")].map(box);
  out.overlaps = labels.filter((a, i) => labels.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 4 && b.top < a.bottom - 4)).length;
  out.images = document.images.length;
  out.title = document.title;
  out.wide = document.documentElement.scrollWidth - width;
  out.dark = getComputedStyle(document.body).backgroundColor === "rgb(20, 24, 31)";
  const head = [...document.querySelectorAll("table.trials th button")].at(-1);
  head.click();
  out.seconds = [...document.querySelectorAll("table.trials tbody tr")].map(row => +[...row.cells].at(-1).textContent);
"""


@needs_browser
@pytest.mark.parametrize("count", [3, 24])
def test_a_browser_shows_all_of_the_page_on_a_phone_and_a_desktop(tmp_path: Path, count: int) -> None:
    for number in range(count):
        overrides = {
            "optimizer.lr": str(10.0 ** -(number % 4)),
            "model": NASTY if number % 2 else "mobilenetv3_large_100_and_a_long_name",
            "model.head.dropout": str(number % 3 / 4),
            "model.head.hidden": "[128]" if number < 12 else "[]",
            "seed": str(number % 2),
        }
        fabricate(tmp_path / "sweep", overrides, value=0.5 + number / 50, seconds=float(1000 - number))
    fabricate(tmp_path / "sweep", {"optimizer.lr": "7", "model": NASTY}, "failed", error=f"{NASTY} " * 20)
    with_checkpoints(tmp_path / "sweep")
    data: Any = page_data(read_sweep(tmp_path / "sweep"))
    for width in (390, 1280):
        for dark in (False, True):
            result, console = browse(sweep_page(data), SCRIPT, tmp_path, width, dark=dark)
            assert result["errors"] == [] and console == "" and result["wide"] <= 0 and result["dark"] is dark
            assert result["outside"] == [] and result["clipped"] == [] and result["beyond"] == []
            assert result["overlaps"] == 0
            assert result["names"] == [trial["name"] for trial in data["trials"]] and len(result["names"]) == count
            assert result["ranks"] == [
                str(trial["rank"]) if width == 1280 else f'"{trial["rank"]}. "' for trial in data["trials"]
            ]
            assert result["hrefs"] == [trial["href"] for trial in (*data["trials"], *data["unfinished"])]
            assert len(result["unfinished"]) == 1 and "failed after 0 epochs, 0 s: </script>" in result["unfinished"][0]
            assert result["lines"] == count and result["images"] == 0 and result["title"] == "Sweep: sweep"
            assert result["pointed"].startswith(f"{50 + 2 * (count - 1):.1f} %: ") and ", seed=" in result["pointed"]
            assert result["seconds"] == sorted(result["seconds"])
            expected = {"Trials", "Not finished", "Parallel coordinates"}
            assert expected | ({"Importance of settings"} if count > 3 else set()) <= set(result["heads"])
