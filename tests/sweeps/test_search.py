"""Searches with Optuna that are continued: other settings and data are refused, stopped trials resume."""

import os
import shutil
import signal
import sqlite3
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from imgclf.cli.hydra_app import Search, run_app
from imgclf.errors import RunError
from imgclf.files.trial_record import TrialRecord, find_trials, write_record
from imgclf.sweeps import finish_sweep, start_search
from imgclf.sweeps import search as module
from imgclf.train import main

from support.fabricate import TINY, composed, draw_image, draw_tree  # isort: skip

pytestmark = [
    pytest.mark.skipif(not find_spec("optuna"), reason="needs the extra optuna"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Deprecated API features"),  # of SQLAlchemy about its next version
]
SWEPT = ["optimizer.lr", "loss.label_smoothing"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_tree(tmp_path / "data", {"train": 3, "valid": 2, "test": 2})


def search(folder: Path, data: Path, *overrides: str, storage: str = "") -> Search:
    settings: Any = composed(*TINY, f"data_dir='{data}'", *overrides)
    return Search(settings, folder, storage or f"sqlite:///{folder}/optuna.db", "imgclf", SWEPT)


def finished(folder: Path, data: Path, lr: float, **more: Any) -> None:
    """A finished trial without its training; the fingerprint is that of the data."""
    from imgclf.training.build import data_of

    config: Any = composed(*TINY, f"data_dir='{data}'", f"optimizer.lr={lr}")
    write_record(
        folder / f"lr-{lr}",
        TrialRecord(
            [f"optimizer.lr={lr}", "loss.label_smoothing=0.1"],
            config.to_dict(),
            "finished",
            0.5,
            fingerprint=data_of(config).fingerprint(),
        ),
    )


@pytest.mark.trust(
    "an Optuna search continued with other constant settings, or after its data has changed",
    "its trials are mixed with those of other settings or data in one study",
)
def test_a_search_is_continued_with_its_own_settings_and_data_only(
    forked: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_locks", [])
    folder = tmp_path / "search"
    start_search(search(folder, data))
    assert not folder.exists(), "a new search has nothing to check"
    for lr in (0.1, 0.02):
        finished(folder, data, lr)
    start_search(search(folder, data, "optimizer.lr=0.7", "loss.label_smoothing=0.3", "dataset.num_workers=1"))
    for override, difference in (
        ("image_size=32", "image_size=16 (lr-0.02), this command has 32"),
        ("seed=5", "seed=0 (lr-0.02), this command has 5"),
        ("trainer.max_epochs=9", "trainer.max_epochs=2 (lr-0.02), this command has 9"),
    ):
        with pytest.raises(RunError) as refused:
            start_search(search(folder, data, override))
        assert str(refused.value) == (
            f"{folder}: this search was made with {difference}; pass that value, or pass another hydra.sweep.dir for "
            "another search"
        )
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    start_search(search(folder, moved))
    draw_image(moved / "train" / "red" / "new.png", (200, 40, 40), 7)
    monkeypatch.setattr("imgclf.sweeps.finished._known", {})  # of an earlier process
    with pytest.raises(RunError, match=r"other data \(lr-0.02: train had 3 images of red, now 4\); restore the data"):
        start_search(search(folder, moved))


def test_trials_that_were_stopped_are_ended_in_the_study_and_queued(
    forked: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(module, "_locks", [])
    folder = tmp_path / "search"
    finished(folder, data, 0.125)
    storage = f"sqlite:///{folder}/optuna.db"
    study = optuna.create_study(study_name="imgclf", storage=storage, direction="maximize")
    uniform = optuna.distributions.UniformDistribution(0.0, 1.0)
    choice = optuna.distributions.CategoricalDistribution([0.1, 0.2])

    def begin(lr: float) -> None:
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            study.enqueue_trial({"optimizer.lr": lr, "loss.label_smoothing": 0.1})
        trial = study.ask()
        assert trial._suggest("optimizer.lr", uniform) == lr
        trial._suggest("loss.label_smoothing", choice)

    def states() -> list[str]:
        """As another process finds them: this one remembers what it began."""
        trials = optuna.load_study(study_name="imgclf", storage=storage).get_trials()
        return [trial.state.name for trial in trials]

    settings: Any = composed(*TINY, f"data_dir='{data}'").to_dict()
    for lr, state in ((0.25, "interrupted"), (0.375, "running"), (0.5, "failed")):
        begin(lr)
        overrides = [f"optimizer.lr={lr}", "loss.label_smoothing=0.1"]
        write_record(folder / f"lr-{lr}", TrialRecord(overrides, settings, state))
    begin(0.125)  # finished, but the study wasn't told
    begin(0.75)  # nothing was written
    study.ask()  # nothing was proposed

    (tmp_path / "shared").symlink_to(folder)
    start_search(search(folder, data, storage=f"sqlite:///{tmp_path}/shared/optuna.db"))
    assert states() == ["FAIL", "FAIL", "FAIL", "COMPLETE", "RUNNING", "RUNNING", "WAITING", "WAITING"]
    module._locks.pop().release()  # as that search ends
    start_search(search(folder, data))
    assert states() == ["FAIL", "FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL", "WAITING", "WAITING"]
    study = optuna.load_study(study_name="imgclf", storage=storage)
    assert study.get_trials()[3].value == 0.5
    assert [study.ask()._suggest("optimizer.lr", uniform) for _ in range(2)] == [0.25, 0.375]
    start_search(search(folder, data))  # while a search runs here, as the lock tells
    assert states()[-2:] == ["RUNNING", "RUNNING"]


def begin(words: list[str], errors: Path) -> int:
    """Start `imgclf train` with these words in a forked process, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for stream, path in ((1, errors.with_suffix(".out")), (2, errors)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["imgclf.train", *words]
        run_app("train", main, finish_sweep, before_search=start_search)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.exhaustive
@pytest.mark.trust(
    "an Optuna search ended by SIGINT or SIGKILL within a trial, repeated with the same command, and with another setting",
    "a trial that stays running in the study, is lost, or is mixed with those of other settings",
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_resumes_its_trial(forked: None, data: Path, tmp_path: Path, signum: int) -> None:
    folder, errors = tmp_path / "search", tmp_path / "errors"
    own = [word for word in TINY if not word.startswith(("optimizer.lr", "model.head.dropout", "trainer.max"))]
    words = ["-m", *own, f"data_dir='{data}'", "hparams_search=frozen", f"hydra.sweep.dir={folder}", "callbacks=none"]
    search = begin([*words, "trials=2", "trainer.max_epochs=30"], errors)
    ends = time.monotonic() + 200
    while not (saved := list(folder.glob("*/checkpoints/last.ckpt"))):
        assert time.monotonic() < ends
        time.sleep(0.01)
    os.kill(search, signum)
    assert ended(search) == (130 if signum == signal.SIGINT else -signum)
    ((path, record),) = find_trials(folder)
    assert record.state == ("interrupted" if signum == signal.SIGINT else "running") and path == saved[0].parents[1]
    history = path / "history.csv"
    while history.stat().st_mtime > time.time() - 2:  # the trial of a killed search saves itself
        time.sleep(0.1)
    before = history.read_text()

    code = ended(begin([*words, "trials=2", "trainer.max_epochs=30"], errors))
    assert code == 0, errors.read_text()
    assert [record.state for _, record in find_trials(folder)] == ["finished"] * 2
    assert before.count("\n") < 31 and history.read_text().startswith(before), "it was continued"
    with sqlite3.connect(folder / "optuna.db") as database:
        states = dict(database.execute("select state, count(*) from trials group by state").fetchall())
    assert states == {"FAIL": 1, "COMPLETE": 2}

    assert ended(begin([*words, "trials=3", "trainer.max_epochs=3"], errors)) == 2
    text = errors.read_text()
    assert text.startswith(f"imgclf: {folder}: this search was made with trainer.max_epochs=30 (")
    assert text.count("\n") == 1 and errors.with_suffix(".out").read_text() == "" and len(find_trials(folder)) == 2
