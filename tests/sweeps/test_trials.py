"""Sweeps: trials in processes of their own, killed for real; the same command again; the leaderboard."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from imgclf.cli.compose import trial_folder
from imgclf.errors import DataError
from imgclf.files.run_folder import TrialRecord, find_trials, read_record, write_record
from imgclf.report.page import sweep_page
from imgclf.sweep import main
from imgclf.sweeps.leaderboard import facts, importance, read_sweep

from support.browser import browse, needs_browser  # isort: skip
from support.fabricate import TINY, composed  # isort: skip
from support.browser import NASTY, Tags

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def command(colours: Path, folder: Path, *overrides: str) -> list[str]:
    given = {text.partition("=")[0] for text in overrides}
    settings = [text for text in TINY if text.partition("=")[0] not in given]
    return [sys.executable, "-m", "imgclf.train", "-m", *settings, f"data_dir='{colours}'",
            f"hydra.sweep.dir={folder}", *overrides]  # fmt: skip


def sweep(colours: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(colours, folder, *overrides), capture_output=True, text=True, timeout=300, cwd=folder.parent
    )


def states(folder: Path) -> dict[str, str]:
    """{swept values: state}."""
    return {path.name: record.state for path, record in find_trials(folder)}


@pytest.fixture(scope="module")
def swept(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two learning rates by two seeds; with one of the rates the loss becomes infinite."""
    folder = tmp_path_factory.mktemp("sweep") / "it"
    return folder, sweep(colours, folder, "optimizer.lr=0.01,1e38", "seed=0,1", "optimizer.name=sgd")


def test_the_others_go_on_when_trials_fail(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = swept
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    trials = find_trials(folder)
    assert sorted(record.state for _, record in trials) == ["failed", "failed", "finished", "finished"]
    for path, record in trials:
        assert (record.state == "failed") == (
            "optimizer.lr=1e+38" in record.overrides or "optimizer.lr=1e38" in record.overrides
        )
        if record.state == "failed":
            assert record.error and "finite" in record.error
            assert f"imgclf: trial {path.name} failed: " in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("imgclf: ") and "2 of" in done.stderr.splitlines()[-1]
    first = done.stdout.index("failed") if "failed" in done.stdout else -1
    assert first > done.stdout.index("validation"), "the table comes last, the failures beneath it"


def test_a_leaderboard_ends_the_sweep(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = swept
    board = read_sweep(folder)
    assert board.keys == ["optimizer.lr", "seed"] and len(board.standings) == 1
    best = board.standings[0]
    values = [json.loads((entry.folder / "metrics.json").read_text())["val"]["accuracy"] for entry in best.entries]
    assert len(values) == 2 and best.value == pytest.approx(sum(values) / 2)
    assert "(2 seeds)" in best.validation and best.validation in done.stdout
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "1", "", ""] and {row["seed"] for row in rows} == {"0", "1"}
    assert {row["state"] for row in rows[2:]} == {"failed"} and all(row["error"] for row in rows[2:])
    assert Tags((folder / "sweep.html").read_text()).loads == []


def test_seeds_differ_and_each_is_set_in_its_trial(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = swept
    losses = {json.loads((entry.folder / "history.json").read_text())[0]["train_loss"]
              for standing in read_sweep(folder).standings for entry in standing.entries}  # fmt: skip
    assert len(losses) == 2


def test_the_same_again_does_only_what_is_missing(
    swept: tuple[Path, subprocess.CompletedProcess[str]], colours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(swept[0], folder)
    before = {path.name: (path / "history.csv").stat().st_mtime_ns for path, record in find_trials(folder)
              if record.state == "finished"}  # fmt: skip
    done = sweep(colours, folder, "optimizer.lr=0.02,0.01", "seed=1,0", "optimizer.name=sgd")
    assert done.stdout.count("finished already") == 2, done.stdout + done.stderr
    after = {path.name: (path / "history.csv").stat().st_mtime_ns for path, record in find_trials(folder)
             if record.state == "finished"}  # fmt: skip
    assert len(after) == 4 and before.items() <= after.items()
    assert done.returncode == 2, "the two that failed lie there still"


def children(pid: int) -> list[int]:
    """The processes that `pid` started, and those that they did."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, grown = {pid}, True
    while grown:
        below = {child for child, parent in parents.items() if parent in found}
        grown = not below <= found
        found |= below
    return sorted(found - {pid})


def trial_process(pid: int) -> int | None:
    """The one that leads a session of its own."""
    for child in children(pid):
        try:
            if os.getsid(child) == child:
                return child
        except ProcessLookupError:
            continue
    return None


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait for something true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
        with (folder.parent / "err.txt").open("w") as err, (folder.parent / "out.txt").open("w") as out:
            running.append(subprocess.Popen(words, stdout=out, stderr=err, text=True, cwd=folder.parent,
                                            start_new_session=True))  # fmt: skip
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@LINUX
def test_killed_trials_and_killed_sweeps_lose_nothing(
    colours: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "sweep"
    words = command(colours, folder, "seed=0,1", "trainer.max_epochs=80", "callbacks=none")
    process = started(words, folder)
    saved = until(lambda: sorted(folder.glob("*/checkpoints/last.ckpt")))
    victim = trial_process(process.pid)
    assert victim
    os.kill(victim, signal.SIGKILL)
    first = saved[0].parents[1]
    second = until(lambda: [path for path in folder.glob("*/checkpoints/last.ckpt") if path.parents[1] != first])[0]
    record = read_record(first)
    assert record and record.state == "failed" and "SIGKILL" in (record.error or "")
    assert f"trial {first.name} failed: its process was killed by SIGKILL" in (tmp_path / "err.txt").read_text()

    family = children(process.pid)
    trial = trial_process(process.pid)
    assert trial
    process.kill()
    process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 30)  # none is left behind
    assert second.is_file() and states(folder) == {first.name: "failed", second.parents[1].name: "running"}

    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on from") == 2 and set(states(folder).values()) == {"finished"}
    for path in states(folder):
        assert len(json.loads((folder / path / "history.json").read_text())) == 80


@LINUX
def test_ctrl_c_ends_the_sweep_and_saves_the_trial(
    colours: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "sweep"
    process = started(command(colours, folder, "seed=0,1", "trainer.max_epochs=2000", "callbacks=none"), folder)
    until(lambda: sorted(folder.glob("*/checkpoints/last.ckpt")))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list(states(folder).values()) == ["interrupted"]
    last = (tmp_path / "err.txt").read_text().strip().splitlines()[-1]
    assert last.startswith("imgclf: interrupted by SIGINT; the same command") and str(folder) in last


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="needs the extra joblib")
def test_trials_at_once_share_features_and_cores(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS")
    folder = tmp_path / "sweep"
    done = sweep(
        colours, folder, "hydra/launcher=cores", "hydra.launcher.n_jobs=2", "optimizer.lr=0.01,0.02", "model.freeze=all"
    )
    assert done.returncode == 0, done.stderr
    environments = [json.loads((folder / name / "environment.json").read_text()) for name in states(folder)]
    # Each picture went through the frozen part in one of the two, and in one only.
    assert sum(environment["forwards"]["pictures"] for environment in environments) == 36 + 12 + 15
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert {environment["torch_threads"] for environment in environments} == {max(1, cores // 2)}
    for name in states(folder):
        assert "best epoch" in (folder / name / "log.txt").read_text()
    assert "best epoch" not in done.stdout and "validation" in done.stdout
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2, "no second sweep folder"


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_submitit_launcher"), reason="needs the extra submitit")
def test_submitit_runs_trials_and_knows_of_failures(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = sweep(colours, folder, "hydra/launcher=local", "loss.label_smoothing=0.1,7")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert sorted(states(folder).values()) == ["failed", "finished"]
    assert "validation" in done.stdout and "1 of" in done.stderr.splitlines()[-1]


@pytest.mark.exhaustive
@pytest.mark.skipif(not find_spec("ray"), reason="needs the extra ray")
def test_ray_runs_trials(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = sweep(colours, folder, "hydra/launcher=ray_local", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert list(states(folder).values()) == ["finished"] * 2


@pytest.mark.skipif(not find_spec("optuna"), reason="needs the extra optuna")
def test_optuna_remembers_and_goes_on(colours: Path, tmp_path: Path) -> None:
    import sqlite3

    folder = tmp_path / "sweep"
    params = "{optimizer.lr: 'tag(log, interval(0.001, 0.1))', loss.label_smoothing: 'choice(0.0, 7.0)'}"
    space = ("hparams_search=frozen", f"hydra.sweeper.params={params}", "seed=3")
    done = sweep(colours, folder, *space, "trials=3")
    found = list(states(folder).values())
    assert len(found) == 3 and set(found) == {"failed", "finished"}, done.stderr
    assert done.returncode == 2 and f"{found.count('failed')} of" in done.stderr.splitlines()[-1]

    again = sweep(colours, folder, *space, "trials=4")
    assert len(states(folder)) == 4, again.stderr
    with sqlite3.connect(folder / "optuna.db") as database:
        told = dict(database.execute("select state, count(*) from trials group by state").fetchall())
    assert told.get("COMPLETE", 0) + told.get("FAIL", 0) == 4
    values = {record.value for _, record in find_trials(folder) if record.value is not None}
    with sqlite3.connect(folder / "optuna.db") as database:
        assert {row[0] for row in database.execute("select value from trial_values")} == values


def test_what_falls_behind_is_pruned(run_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Five trials had 90 % in every epoch: one that doesn't learn stops at the third, one that does goes on."""
    from imgclf.report.tables import history_csv

    settings = composed(*TINY)
    dataset = {**settings["dataset"]}
    for number in range(5):
        path = tmp_path / f"other{number}"
        write_record(path, TrialRecord([f"seed={number}"], {"dataset": dataset}, "finished", 0.9))
        row = {
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_loss": 0.1,
            "val_accuracy": 0.9,
            "lr": 0.1,
            "seconds": 1.0,
        }
        history_csv(path / "history.csv", [{"epoch": epoch, **row} for epoch in range(5)])
    epochs = {}
    for name, rate, data in (
        ("hopeless", "1e-9", dataset),
        ("good", "0.01", dataset),
        ("elsewhere", "1e-9", {"name": "cards"}),
    ):
        folder = tmp_path / name
        write_record(folder, TrialRecord([], {"dataset": data}))
        run_tiny("callbacks=pruning", f"optimizer.lr={rate}", "trainer.max_epochs=5", folder=folder)
        epochs[name] = len(json.loads((folder / "history.json").read_text()))
    assert epochs == {"hopeless": 3, "good": 5, "elsewhere": 5}
    assert (tmp_path / "hopeless" / "pruned.txt").read_text().startswith("pruned after epoch 3: val_accuracy 0.")
    write_record(tmp_path / "hopeless", TrialRecord(["optimizer.lr=1e-9"], {"dataset": dataset}, "finished", 0.3))
    assert {entry.folder.name: entry.state for entry in read_sweep(tmp_path).entries}["hopeless"] == "pruned"


def test_names_of_trials_are_readable_and_distinct(tmp_path: Path) -> None:
    name = trial_folder("dataset=cards,model.backbone_kwargs.layers=[4,pool],optimizer.lr=1e-3")
    assert name.startswith("dataset-cards_layers-_4_pool__lr-1e-3-")
    assert trial_folder("a=1,b.c=2", constant="a").startswith("c-2-")
    assert (
        trial_folder("a=1,b.c=2", constant="a")[-10:] == trial_folder("a=1,b.c=2")[-10:] != trial_folder("b.c=2")[-10:]
    )
    assert trial_folder("optimizer.lr=1e-3") != trial_folder("optimizer.lr=1e-4")
    assert trial_folder("a=x/y") != trial_folder("a=x_y") and "/" not in trial_folder("data_dir=/a/b,a=../c")
    assert len(trial_folder(",".join(f"key{i}=value" for i in range(100)))) <= 101
    assert trial_folder("").startswith("trial-")
    (tmp_path / trial_folder("a=1,b.c=2")).mkdir()
    assert trial_folder("a=1,b.c=2", str(tmp_path), "a") == trial_folder("a=1,b.c=2"), "the folder that it has already"


def fabricate(folder: Path, choices: dict[str, str], state: str = "finished", value: float = 0.5, **more: Any) -> None:
    """A trial without its training: its record and metrics, of 100 validation pictures."""
    path = folder / trial_folder(",".join(f"{key}={text}" for key, text in choices.items()))
    settings = {"dataset": {"name": choices.get("dataset", "cards")}, "checkpoint": {"monitor": "val_accuracy"}}
    record = TrialRecord([f"{key}={text}" for key, text in choices.items()], settings, state, value, **more)
    write_record(path, record)
    counts = {"correct": round(100 * value), "count": 100, "accuracy": value, "loss": 1.0 - value, "macro_f1": value}
    if state == "finished":
        size = round(1000 * float(choices.get("dataset.fraction", 1)))
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
    assert [(standing.entries[0].dataset, standing.value) for standing in board.standings] == [
        ("cards", 0.8), ("cards", 0.7), ("sports", 0.9), ("sports", 0.2)]  # fmt: skip


def test_what_is_damaged_is_told_and_the_rest_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(tmp_path, {"seed": "0"})
    fabricate(tmp_path, {"seed": "1"}, "failed", error="killed")
    fabricate(tmp_path, {"seed": "2"}, "running")
    fabricate(tmp_path, {"seed": "3"})
    damaged = tmp_path / trial_folder("seed=3") / "metrics.json"
    damaged.write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "trial.json").write_text("[]")
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "50 of 100" in told and "failed, 0 epochs: " in told and ": killed" in told and "running, 0 epochs" in told
    assert len(read_sweep(tmp_path).standings) == 1


def test_a_folder_without_trials_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="holds no trials"):
        read_sweep(tmp_path)
    assert main([str(tmp_path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_importance_is_the_explained_share_without_chance() -> None:
    values = [0.1, 0.1, 0.9, 0.9]
    assert importance(["a", "a", "b", "b"], values) == 1.0
    assert importance(["a", "b", "a", "b"], values) == 0.0
    assert importance(["a", "b", "c", "d"], values) is None, "each level once explains everything, and nothing"
    assert importance(["a", "a", "b", "b"], [0.5] * 4) is None
    # epsilon squared = (SSB - (k - 1) MSW) / SST = (0.25 - 0.01) / 0.27, by hand
    assert importance(["a", "a", "b", "b"], [0.0, 0.1, 0.5, 0.6]) == pytest.approx((0.25 - 0.005) / 0.26)
    many = [str(10**-k) for k in range(8)]
    assert importance(many, [0, 0, 0, 0, 1, 1, 1, 1]) == 1.0, "numbers count by their quarter"


def test_accuracy_against_the_size_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
  out.pointed = document.querySelector(".says").textContent;
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
def test_a_browser_opens_and_points_at_a_sweep(tmp_path: Path, width: int) -> None:
    for number in range(12):
        choices = {
            "optimizer.lr": str(10.0 ** -(number % 4)),
            "model": NASTY if number % 2 else "vgg16",
            "seed": str(number),
        }
        fabricate(tmp_path / "sweep", choices, value=0.5 + number / 30)
    fabricate(tmp_path / "sweep", {"optimizer.lr": "7", "model": NASTY}, "failed", error=NASTY)
    told, console = browse(sweep_page(facts(read_sweep(tmp_path / "sweep"))), SCRIPT, tmp_path, width)
    assert told["says"] == [] and console == "" and told["wide"] <= 0
    assert told["lines"] == 12 and told["rows"] == 13 and told["images"] == 0 and told["title"].startswith("Sweep")
    assert told["pointed"].startswith("86.7 %: ") and "optimizer.lr=0.001" in told["pointed"]
    assert told["ranks"] in ([1, 2, 3, 4], [4, 3, 2, 1])
    assert {"Leaderboard", "Which choices went with what", "What mattered", "All trials"} <= set(told["heads"])
