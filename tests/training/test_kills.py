"""A run that is killed before any file operation, and resumed, ends with the same results as the run that never was.

A killed process leaves its folder as it is before the operation. So one run, copied before each of its file operations, shows
every state that a kill can leave, and only the resumed runs are trained. A few real kills show that the copies are such states.
The usual tests try a sample; `pytest -m exhaustive` tries every operation of every setting.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.compare import compare
from support.fabricate import TINY, composed, draw_tree
from support.run_files import read_rows, without_seconds

from imgclf.errors import CheckpointError, RunError
from imgclf.files import run_folder
from imgclf.files.row_store import key_of
from imgclf.files.run_folder import RunLock, is_run
from imgclf.models.checkpoint import read_checkpoint
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.run import train

DIFFERS = "a result that differs from the uninterrupted run's"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
MONITORS, KEEPS = ("val_accuracy", "val_loss"), ("best", "improved", "all")

_watch: list[tuple[Path, Callable[[int, str], None]]] = []  # an audit hook can't be removed: it asks here
_counter = itertools.count()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Call the watcher before each operation that changes something in its folder."""
    if not _watch or (event not in CHANGES and event != "open"):
        return
    folder, act = _watch[0]
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return
    paths = [os.fspath(one) for one in arguments[:2] if isinstance(one, (str, os.PathLike))]
    if not any(Path(path).absolute().is_relative_to(folder) for path in paths if isinstance(path, str)):
        return
    watcher = _watch.pop()  # what it does itself isn't watched
    try:
        act(next(_counter), f"{event} {Path(str(paths[-1])).name}")
    finally:
        _watch.append(watcher)


@contextmanager
def watched(folder: Path, act: Callable[[int, str], None]) -> Iterator[None]:
    """Call `act(number, operation)` before each file operation below `folder`."""
    global _counter
    if not getattr(sys, "_imgclf_audited", False):
        sys.addaudithook(_audit)
        sys._imgclf_audited = True  # type: ignore[attr-defined]
    _counter = itertools.count()
    _watch.append((folder.absolute(), act))
    try:
        yield
    finally:
        _watch.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few images that a small network learns quickly, and unlearns with a large learning rate."""
    return draw_tree(tmp_path_factory.mktemp("kills"), {"train": 6, "valid": 4, "test": 3})


# The second of three epochs is the best: an older best.ckpt could stay, and a later and worse epoch replace it.
VALUES = {"val_accuracy": (0.3, 0.6, 0.5), "val_loss": (0.6, 0.3, 0.5)}


@pytest.fixture(autouse=True)
def second_epoch_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the best epoch by these values, on every machine."""
    monkeypatch.setattr(
        CheckpointCallback, "_value", lambda self, trainer: VALUES[self.config.monitor][trainer.current_epoch]
    )


def settings_of(data: Path, monitor: str, keep: str, *more: str) -> list[str]:
    """Return the command line of a run of three epochs."""
    own = ["trainer.max_epochs=3", "checkpoint.every_n_steps=2", "model.head.dropout=0.3"]
    return [*TINY, f"data_dir='{data}'", *own, f"checkpoint.monitor={monitor}", f"checkpoint.keep={keep}", *more]


def results_of(folder: Path) -> dict[str, Any]:
    """Return the content of every file of a run that results are read from, without what depends on the time."""
    results: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".ckpt":
            results[name] = read_checkpoint(path)
        elif name == "history.csv":
            results[name] = [{**row, "seconds": None} for row in read_rows(path)]
        elif name == "history.json":
            results[name] = without_seconds(json.loads(path.read_text()))
        elif name == "environment.json":
            values = json.loads(path.read_text())
            results[name] = {key: values.get(key) for key in ("epochs", "results", "forwards")}
        elif name == "config.yaml":
            results[name] = {**yaml.safe_load(path.read_text()), "ckpt_path": None, "resume": None}
        elif path.suffix in (".csv", ".json", ".yaml"):
            results[name] = path.read_bytes()
        else:
            results[name] = path.stat().st_size > 0 or name.endswith(".lock")
    return results


def difference(whole: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first file in which two runs differ, and where."""
    if names := whole.keys() ^ other.keys():
        return f"files {sorted(names)}"
    for name, value in whole.items():
        if name.endswith(".ckpt"):
            if place := compare(value, other[name]):
                return f"{name}: {place}"
        elif value != other[name]:
            return name
    return None


def state_of(folder: Path) -> bytes:
    """Return a digest of the folder's content; temporary files count by their name alone."""
    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        temporary = path.name.startswith(".imgclf-")
        parts += [str(path.relative_to(folder)).encode(), b"" if temporary else path.read_bytes()]
    return key_of(*parts)


def run_again(folder: Path, overrides: list[str]) -> None:
    """Resume the run in `folder`; where nothing was written yet, there is only the first command."""
    words = [f"resume='{folder}'"] if is_run(folder) else overrides
    train(composed(*words), folder, words)


def kill_states(folder: Path, overrides: list[str], into: Path) -> dict[str, Path]:
    """Train in `folder`; return {operation: copy of the folder before it} of all states that differ."""
    states: dict[str, Path] = {}
    seen = set()

    def record(number: int, operation: str) -> None:
        if folder.exists() and (state := state_of(folder)) not in seen:
            seen.add(state)
            states[f"{number:03} {operation}"] = into / f"{number:03}"
            shutil.copytree(folder, into / f"{number:03}")

    with watched(folder, record):
        train(composed(*overrides), folder, overrides)
    return states


def cases() -> list[Any]:
    """Return (monitor, keep, every): every how many states are tried; one sample is for every commit."""
    all_of = [(*pair, 1) for pair in itertools.product(MONITORS, KEEPS)]
    exhaustive = [pytest.param(*case, marks=pytest.mark.exhaustive) for case in all_of]
    return [pytest.param("val_loss", "improved", 12), *exhaustive]


@pytest.mark.trust("runs killed before each of their file operations, then resumed", DIFFERS)
@pytest.mark.parametrize(("monitor", "keep", "every"), cases())
def test_run_killed_before_any_file_operation_ends_as_the_uninterrupted_one(
    data: Path, tmp_path: Path, monitor: str, keep: str, every: int, record_property: Callable[..., None]
) -> None:
    overrides = settings_of(data, monitor, keep, "report=true")
    whole = tmp_path / "whole"
    states = kill_states(whole, overrides, tmp_path / "states")
    expected = results_of(whole)
    assert expected["checkpoints/last.ckpt"]["callbacks"]["CheckpointCallback"]["best_epoch"] == 2
    assert len(states) > 50
    chosen = [one for number, one in enumerate(states) if number % every == 0 or "rename best.ckpt" in one]
    record_property("tried", len(chosen))
    differences = {}
    for operation in chosen:
        run_again(states[operation], overrides)
        differences[operation] = difference(expected, results_of(states[operation]))
    assert {operation: place for operation, place in differences.items() if place} == {}


@pytest.mark.trust("runs killed before each of their file operations, then resumed", DIFFERS)
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n == 29 else pytest.mark.exhaustive) for n in range(5, 95, 6)]
)
def test_killed_process_leaves_the_folder_as_it_was_before_the_operation(
    data: Path, tmp_path: Path, number: int, record_property: Callable[..., None]
) -> None:
    """What the test above takes for granted, shown by SIGKILL."""
    overrides = settings_of(data, "val_accuracy", "all")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_states(whole, overrides, tmp_path / "states")
    record_property("tried", 1)

    def kill(count: int, operation: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        with watched(killed, kill):
            train(composed(*overrides), killed, overrides)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    run_again(killed, overrides)
    assert difference(results_of(whole), results_of(killed)) is None


def test_best_checkpoint_that_is_gone_is_restored_or_missed(data: Path, tmp_path: Path) -> None:
    overrides = settings_of(data, "val_loss", "all", "trainer.max_epochs=3")
    run = tmp_path / "run"
    train(composed(*overrides), run, overrides)
    expected = results_of(run)
    checkpoints = run / "checkpoints"
    resume = [f"resume='{run}'"]
    third = (checkpoints / "epoch_003.ckpt").read_bytes()
    for damage in (b"torn", third, None):  # a damaged file, that of another epoch, none
        (checkpoints / "best.ckpt").unlink()
        if damage is not None:
            (checkpoints / "best.ckpt").write_bytes(damage)
        train(composed(*resume), run, resume)
        kept = read_checkpoint(checkpoints / "best.ckpt")
        assert kept["callbacks"]["CheckpointCallback"]["finished_epoch"] == 2
        if damage is None:  # then the metrics are measured again
            assert difference(expected, results_of(run)) is None
    (checkpoints / "epoch_002.ckpt").unlink()
    (checkpoints / "best.ckpt").write_bytes(third)
    before = results_of(run)
    with pytest.raises(
        CheckpointError, match=r"best\.ckpt: not the checkpoint of epoch 2, the best of this run, and no other"
    ):
        train(composed(*resume, "trainer.max_epochs=4"), run, [*resume, "trainer.max_epochs=4"])
    assert difference(before, results_of(run)) is None


def test_new_run_takes_the_best_checkpoint_from_beside_the_one_that_it_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = settings_of(data, "val_loss", "best")
    run = tmp_path / "run"
    train(composed(*overrides), run, overrides)
    monkeypatch.setitem(VALUES, "val_loss", (0.6, 0.3, 0.5, 0.4))
    last = run / "checkpoints" / "last.ckpt"
    for name, best_epoch in (("with", 2), ("without", 4)):
        words = [*overrides, "trainer.max_epochs=4", f"ckpt_path='{last}'"]
        capsys.readouterr()
        train(composed(*words), tmp_path / name, words)
        out = capsys.readouterr().out
        assert f"best epoch: {best_epoch}\n" in out
        assert ("the best epoch is chosen from here on: the checkpoint of epoch 2" in out) == (name == "without")
        last.with_name("best.ckpt").unlink(missing_ok=True)


def test_run_without_a_checkpoint_begins_again_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = settings_of(data, "val_loss", "best")
    whole = tmp_path / "whole"
    states = kill_states(whole, overrides, tmp_path / "states")
    early = next(folder for name, folder in states.items() if name.endswith("rename last.ckpt"))
    assert is_run(early) and not (early / "checkpoints" / "last.ckpt").exists()
    for name, words in (
        ("resume", [f"resume='{tmp_path / 'resume'}'"]),
        ("same command", overrides),
        ("ckpt_path", [*overrides, "ckpt_path=last"]),
    ):
        folder = tmp_path / name
        shutil.copytree(early, folder)
        capsys.readouterr()
        train(composed(*words), folder, words)
        assert "begins again: the run in this folder ended before its first checkpoint\n" in capsys.readouterr().out
        kept = results_of(folder)
        if name == "ckpt_path":
            kept["overrides.yaml"] = results_of(whole)["overrides.yaml"]
        assert difference(results_of(whole), kept) is None
    with pytest.raises(RunError, match="holds a run already; pass another hydra"):
        train(composed(*overrides), folder, overrides)
    more = [*overrides, "trainer.max_epochs=4", f"ckpt_path='{whole}'"]  # begun from another run's checkpoint
    monkeypatch.setitem(VALUES, "val_loss", (0.6, 0.3, 0.5, 0.4))
    train(composed(*more), tmp_path / "more", more)
    longer = tmp_path / "longer"
    longer.mkdir()
    for name in ("config.yaml", "overrides.yaml"):
        shutil.copy(tmp_path / "more" / name, longer)
    train(composed(f"resume='{longer}'"), longer, [f"resume='{longer}'"])
    assert difference(results_of(tmp_path / "more"), results_of(longer)) is None


@pytest.mark.trust("runs resumed while another process trains them", "two processes write into one run")
def test_second_process_that_resumes_a_run_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    monkeypatch.setattr(run_folder, "_ENDING_SECONDS", 0)
    overrides = settings_of(data, "val_loss", "best")
    run = tmp_path / "run"
    refused = []

    def act(number: int, operation: str) -> None:
        if not is_run(run) or number % 10:
            return
        before = sorted(run.rglob("*"))
        child = os.fork()
        if not child:
            code = 1
            try:
                train(composed(f"resume='{run}'"), run, [f"resume='{run}'"])
            except RunError as error:
                code = 0 if "another process trains this run" in str(error) else 2
            os._exit(code)
        refused.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert sorted(run.rglob("*")) == before  # nothing of the other's is deleted

    with watched(run, act):
        train(composed(*overrides), run, overrides)
    record_property("tried", len(refused))
    assert len(refused) >= 3 and set(refused) == {0}
    with RunLock(run) as lock:  # free again
        lock.acquire()


def test_max_time_saves_within_the_epoch_and_the_resumed_run_equals_the_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = settings_of(data, "val_loss", "best", "trainer.max_time=00:01:00:00")
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(composed(*overrides), whole, overrides)
    calls = itertools.count(1)
    monkeypatch.setattr(CheckpointCallback, "_time_is_over", lambda self: next(calls) in stops)
    resume = [f"resume='{run}'"]
    stops = {2}
    with pytest.raises(
        RunError, match=r"trainer\.max_time=00:01:00:00 is over within epoch 1, after 2 steps, before any epoch"
    ):
        train(composed(*overrides), run, overrides)
    stops = {3, 7}  # asked twice within an epoch and once at its end: the first one's end, the third one's first step
    for words, where in ((resume, "stopped after epoch 1"), (resume, "stopped within epoch 3, after 7 steps")):
        capsys.readouterr()
        train(composed(*words), run, words)
        out = capsys.readouterr().out
        assert f"{where}: trainer.max_time=00:01:00:00 is over; resume it with: imgclf resume" in out
        metrics = json.loads((run / "metrics.json").read_text())
        rows = read_rows(run / "history.csv")
        assert metrics["train"]["loss"] == pytest.approx(float(rows[-1]["train_loss"]))
        assert metrics["train"]["count"] == 18
    train(composed(*resume), run, resume)
    assert difference(results_of(whole), results_of(run)) is None
    capsys.readouterr()
    train(composed(*resume), run, resume)
    assert "this run is finished, after 3 epochs; a larger trainer.max_epochs continues it" in capsys.readouterr().out
