"""Trials of a sweep in processes of their own: failing, killed for real, resumed by the same command."""

import csv
import json
import os
import pickle
import re
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

from imgclf.files.trial_record import TrialRecord, find_trials, read_record, write_record
from imgclf.signals import Interrupted
from imgclf.sweeps import read_sweep, trials

from support.browser import Tags  # isort: skip
from support.fabricate import TINY, composed  # isort: skip

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def command(colours: Path, folder: Path, *overrides: str) -> list[str]:
    given = {text.partition("=")[0] for text in overrides}
    settings = [text for text in TINY if text.partition("=")[0] not in given]
    words = [sys.executable, "-m", "imgclf.train", *settings, "-m"]
    return [*words, f"data_dir='{colours}'", f"hydra.sweep.dir={folder}", *overrides]


def sweep(colours: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(colours, folder, *overrides), capture_output=True, text=True, timeout=300, cwd=folder.parent
    )


def states(folder: Path) -> dict[str, str]:
    """{name of a trial: its state}."""
    return {path.name: record.state for path, record in find_trials(folder)}


def written_at(folder: Path) -> dict[str, int]:
    """{name of a finished trial: when its history was written}."""
    finished = [path for path, record in find_trials(folder) if record.state == "finished"]
    return {path.name: (path / "history.csv").stat().st_mtime_ns for path in finished}


@pytest.fixture(scope="module")
def swept(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two learning rates by two seeds; with one of the rates the loss becomes infinite."""
    folder = tmp_path_factory.mktemp("sweep") / "it"
    return folder, sweep(colours, folder, "optimizer.lr=0.01,1e25", "seed=0,1", "optimizer.name=sgd")


def test_failed_trials_leave_the_others_alone(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = swept
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    trials = find_trials(folder)
    assert sorted(record.state for _, record in trials) == ["failed", "failed", "finished", "finished"]
    for path, record in trials:
        assert (record.state == "failed") == (
            "optimizer.lr=1e+25" in record.overrides or "optimizer.lr=1e25" in record.overrides
        )
        if record.state == "failed":
            assert record.error and "finite" in record.error
            assert f"; see it/{path.name}/log.txt\n" in done.stderr
            assert "Error executing job" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("imgclf: ") and "2 of" in done.stderr.splitlines()[-1]
    first = done.stdout.index("failed") if "failed" in done.stdout else -1
    assert first > done.stdout.index("validation"), "the table comes last, with the failures below it"


def test_a_sweep_ends_with_its_leaderboard(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = swept
    board = read_sweep(folder)
    assert board.keys == ["optimizer.lr", "seed"] and len(board.groups) == 1
    best = board.groups[0]
    values = [json.loads((trial.folder / "metrics.json").read_text())["val"]["accuracy"] for trial in best.trials]
    assert len(values) == 2 and best.value == pytest.approx(sum(values) / 2)
    validation = best.format_accuracy("val")
    assert "(2 seeds)" in validation and best.format_short("val") in done.stdout
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "1", "", ""] and {row["seed"] for row in rows} == {"0", "1"}
    assert {row["state"] for row in rows[2:]} == {"failed"} and all(row["error"] for row in rows[2:])
    assert Tags((folder / "sweep.html").read_text()).loads == []
    (winner,) = board.winners
    lines = done.stdout.splitlines()[-4:]
    assert winner.checkpoint.is_file() and winner.value == pytest.approx(max(values))
    assert lines[0] == f"best trial: {board.describe(winner.overrides)}" and lines[1].endswith("checkpoints/best.ckpt")
    assert lines[2] == f"report   {(folder / 'sweep.html').as_uri()}" and winner.folder.name in lines[3]


def test_a_sweep_prints_a_line_for_each_trial_and_logs_the_rest(
    swept: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = swept
    records = {path.name: record for path, record in find_trials(folder)}
    trials = [line for line in done.stdout.splitlines() if line.startswith("[")]
    for number, (line, seed) in enumerate(zip(trials, (0, 1), strict=True), start=1):
        pattern = rf"\[{number}/4\] lr=0.01 seed={seed}: val_accuracy (0\.\d+|1\.0000), \d+ s, it/(.*)"
        assert (match := re.fullmatch(pattern, line)), line
        assert f"{records[match[2]].value:.4f}" == match[1]
    failed = [line for line in done.stderr.splitlines() if line.startswith("imgclf: [")]
    assert [line.partition(": failed after ")[0] for line in failed] == [
        f"imgclf: [{number}/4] lr=1e+25 seed={seed}" for number, seed in ((3, 0), (4, 1))
    ]
    assert "epoch   1/2" not in done.stdout and "best epoch" not in done.stdout
    for name, record in records.items():
        log = (folder / name / "log.txt").read_text()
        assert "run folder: " in log and ("done in" if record.value is not None else f"imgclf: {record.error}") in log


def test_each_trial_trains_with_its_own_seed(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = swept
    ranked = [trial for group in read_sweep(folder).groups for trial in group.trials]
    losses = {json.loads((trial.folder / "history.json").read_text())[0]["train_loss"] for trial in ranked}
    assert len(losses) == 2


def test_the_same_command_trains_only_missing_trials(
    swept: tuple[Path, subprocess.CompletedProcess[str]], colours: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(swept[0], folder)
    before = written_at(folder)
    done = sweep(colours, folder, "optimizer.lr=0.02,0.01", "seed=1,0", "optimizer.name=sgd", "verbose=true")
    assert done.stdout.count("finished already") == 2, done.stdout + done.stderr
    assert done.stdout.count("epoch   2/2") == 2, "verbose prints the two new trials in full"
    after = written_at(folder)
    assert len(after) == 4 and before.items() <= after.items()
    assert done.returncode == 2, "the two failed trials are still there"


def children(pid: int) -> list[int]:
    """The descendants of the process `pid`."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family, grown = {pid}, True
    while grown:
        below = {child for child, parent in parents.items() if parent in family}
        grown = not below <= family
        family |= below
    return sorted(family - {pid})


def trial_process(pid: int) -> int | None:
    """The descendant that leads a session of its own."""
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
    while not (value := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
        with (folder.parent / "err.txt").open("w") as err, (folder.parent / "out.txt").open("w") as out:
            options = {"stdout": out, "stderr": err, "text": True, "cwd": folder.parent}
            running.append(subprocess.Popen(words, start_new_session=True, **options))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@LINUX
@pytest.mark.exhaustive
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
    line = (tmp_path / "err.txt").read_text().splitlines()[0]
    assert "failed after" in line and "its process was killed by SIGKILL" in line and first.name in line

    family = children(process.pid)
    trial = trial_process(process.pid)
    assert trial
    process.kill()
    process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 30)  # no process survives
    assert second.is_file() and states(folder) == {first.name: "failed", second.parents[1].name: "running"}

    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logs = [path.read_text() for path in folder.glob("*/log.txt")]
    assert ["continues in epoch" in log for log in logs] == [True, True] and set(states(folder).values()) == {
        "finished"
    }
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


def survivors(family: list[int]) -> list[int]:
    """Those of the processes that still run."""
    return [pid for pid in family if Path(f"/proc/{pid}").exists()]


def logs_with(folder: Path, text: str) -> int:
    """How many trials have printed `text`."""
    return sum(text in path.read_text() for path in folder.glob("*/log.txt"))


@LINUX
@pytest.mark.trust(
    "Ctrl-C or SIGTERM of a sweep that trains two trials at a time, the same command after it, and SIGKILL of that",
    "a trial that trains on, isn't saved or doesn't resume, or more than one line",
)
@pytest.mark.exhaustive
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_trials_at_once_end_with_their_sweep(
    colours: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]], signum: int
) -> None:
    folder = tmp_path / "sweep"
    at_once = ("hydra/launcher=cores", "hydra.launcher.n_jobs=2")
    words = command(colours, folder, "seed=0,1,2", "trainer.max_epochs=2000", "callbacks=none", *at_once)
    process = started(words, folder)
    until(lambda: len(list(folder.glob("*/checkpoints/last.ckpt"))) == 2)
    family = children(process.pid)
    os.killpg(process.pid, signum)
    assert process.wait(timeout=60) == 128 + signum
    until(lambda: not survivors(family), 30)
    again = f"the same command, with hydra.sweep.dir={folder}, resumes the sweep"
    assert (tmp_path / "err.txt").read_text() == f"imgclf: interrupted by {signal.Signals(signum).name}; {again}\n"
    assert list(states(folder).values()) == ["interrupted"] * 2, "the third hasn't begun"

    process = started(words, folder)
    until(lambda: logs_with(folder, "continues in epoch") == 2)
    family = children(process.pid)
    process.kill()
    process.wait()
    until(lambda: not survivors(family), 30)
    assert [trial.state for trial in read_sweep(folder).trials] == ["interrupted"] * 2


@LINUX
@pytest.mark.trust(
    "Ctrl-C of a sweep while torch is loaded for its first trial",
    "a traceback, a trial that trains on, or another exit code",
)
@pytest.mark.parametrize("launcher", ["basic", "cores"])
@pytest.mark.exhaustive
def test_ctrl_c_before_the_first_trial_trains_is_one_line(
    colours: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]], launcher: str
) -> None:
    folder = tmp_path / "sweep"
    process = started(command(colours, folder, "seed=0,1", f"hydra/launcher={launcher}"), folder)
    until(lambda: list(folder.glob("*/trial.json")) and children(process.pid))
    family = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=240) == 130  # threads wait until torch is loaded
    until(lambda: not survivors(family), 240)
    again = f"the same command, with hydra.sweep.dir={folder}, resumes the sweep"
    assert (tmp_path / "err.txt").read_text() == f"imgclf: interrupted by SIGINT; {again}\n"
    assert set(states(folder).values()) == {"interrupted"}
    assert not [log for log in folder.glob("*/log.txt") if "best epoch" in log.read_text()], "trained to its end"


def test_an_interruption_is_the_same_after_the_way_from_a_worker() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        for text in ("", "interrupted; the same command resumes the sweep"):
            sent = Interrupted(number, text)
            came = pickle.loads(pickle.dumps(sent))
            assert type(came) is Interrupted and str(came) == str(sent)
            assert (came.signum, came.exit_code) == (number, 128 + number)


@pytest.mark.exhaustive
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
    # Each image went through the frozen part in exactly one of the two.
    assert sum(environment["forwards"]["images"] for environment in environments) == 36 + 12 + 15
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert {environment["torch_threads"] for environment in environments} == {max(1, cores // 2)}
    for name in states(folder):
        assert "best epoch" in (folder / name / "log.txt").read_text()
    assert "best epoch" not in done.stdout and "validation" in done.stdout
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"cache", "outputs", "sweep"}
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["latest"], "no second sweep folder"


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_submitit_launcher"), reason="needs the extra submitit")
@pytest.mark.exhaustive
def test_submitit_runs_trials_and_reports_failures(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = sweep(colours, folder, "hydra/launcher=local", "optimizer.name=sgd", "optimizer.lr=0.01,1e25")
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
@pytest.mark.exhaustive
def test_optuna_resumes_its_study(colours: Path, tmp_path: Path) -> None:
    import sqlite3

    folder = tmp_path / "sweep"
    # a decay of 1e25 makes the loss infinite
    params = "{loss.label_smoothing: 'interval(0.0, 0.5)', optimizer.weight_decay: 'choice(0.0, 1e25)'}"
    space = ("hparams_search=frozen", f"hydra.sweeper.params={params}", "seed=1")
    done = sweep(colours, folder, *space, "trials=3")
    first = list(states(folder).values())
    assert len(first) == 3 and set(first) == {"failed", "finished"}, done.stderr
    assert done.returncode == 2 and f"{first.count('failed')} of" in done.stderr.splitlines()[-1]

    again = sweep(colours, folder, *space, "trials=4")
    assert len(states(folder)) == 4, again.stderr
    with sqlite3.connect(folder / "optuna.db") as database:
        counts = dict(database.execute("select state, count(*) from trials group by state").fetchall())
    assert counts.get("COMPLETE", 0) + counts.get("FAIL", 0) == 4
    values = {record.value for _, record in find_trials(folder) if record.value is not None}
    with sqlite3.connect(folder / "optuna.db") as database:
        assert {row[0] for row in database.execute("select value from trial_values")} == values


def test_trials_below_the_median_are_pruned(run_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Five trials have 90 % in every epoch: one that doesn't learn stops at the third, one that learns continues."""
    from imgclf.report.tables import history_csv

    dataset = composed(*TINY).dataset.to_dict()
    values = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 0.1, "val_accuracy": 0.9, "lr": 0.1, "seconds": 1.0}
    for number in range(5):
        path = tmp_path / f"other{number}"
        write_record(path, TrialRecord([f"seed={number}"], {"dataset": dataset}, "finished", 0.9))
        history_csv(path / "history.csv", [{"epoch": epoch, **values} for epoch in range(1, 6)])
    epochs = {}
    trials = [("hopeless", "1e-9", dataset), ("good", "0.01", dataset), ("elsewhere", "1e-9", {"name": "cards"})]
    for name, rate, data in trials:
        folder = tmp_path / name
        write_record(folder, TrialRecord([], {"dataset": data}))
        run_tiny("callbacks=pruning", f"optimizer.lr={rate}", "trainer.max_epochs=5", folder=folder)
        epochs[name] = len(json.loads((folder / "history.json").read_text()))
    assert epochs == {"hopeless": 3, "good": 5, "elsewhere": 5}
    assert (tmp_path / "hopeless" / "pruned.txt").read_text().startswith("pruned after epoch 3: val_accuracy 0.")
    write_record(tmp_path / "hopeless", TrialRecord(["optimizer.lr=1e-9"], {"dataset": dataset}, "finished", 0.3))
    assert {trial.folder.name: trial.state for trial in read_sweep(tmp_path).trials}["hopeless"] == "pruned"


def test_a_character_whose_bytes_arrive_apart_is_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [b"caf\xc3", b"\xa9\n"]

    def ended(seconds: float) -> bool:
        with (tmp_path / "log.txt").open("ab") as log:
            log.write(parts.pop(0))
        return not parts

    trials._follow(composed(*TINY, "verbose=true"), tmp_path, "trial 1 of 1", False, ended)
    assert capsys.readouterr().out == "café\n"
