"""Trials that finished in an earlier sweep: believed only with the same settings, the same data and readable results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from imgclf.config import RunConfig
from imgclf.errors import TrialError
from imgclf.files.trial_record import read_record, write_record
from imgclf.sweeps import run_trial
from imgclf.sweeps.comparison import MATTER
from imgclf.sweeps.finished import changed_setting
from imgclf.sweeps.process import BEGUN, ChildProcess

from support.compare import compare  # isort: skip
from support.fabricate import TINY, composed, draw_image, draw_tree  # isort: skip
from support.run_files import read_json, without_seconds  # isort: skip

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
Counts = {"train": 6, "valid": 2, "test": 2}


def settings(data: Path, *overrides: str) -> Any:
    return composed(*TINY, f"data_dir='{data}'", "trainer.max_epochs=1", *overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tree(tmp_path_factory.mktemp("data") / "here", Counts)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trial that the tests copy."""
    folder = tmp_path_factory.mktemp("sweep") / "trial"
    with pytest.MonkeyPatch.context() as patch:
        import multiprocessing

        from imgclf.sweeps import process

        patch.setattr(process, "_context", lambda: multiprocessing.get_context("fork"))
        run_trial(settings(data), folder, ["seed=0"])
    return folder


@pytest.fixture
def finished_trial(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "trial"))


def contents(folder: Path) -> dict[str, bytes]:
    """{name of a file in the folder: what it holds}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], config: RunConfig, folder: Path) -> str:
    """Return the one line in which the trial is refused; nothing of it has changed then."""
    before = contents(folder)
    with pytest.raises(TrialError) as refused:
        run_trial(config, folder, ["seed=0"], "[1/1] seed=0")
    assert contents(folder) == before
    out, err = capsys.readouterr()
    assert out == "" and err == f"imgclf: {refused.value}\n"
    return err


@pytest.mark.trust(
    "a finished trial of a sweep, repeated with another value of each setting that results depend on",
    "the old result is taken for one with the new setting",
)
def test_every_setting_that_results_depend_on_is_compared(record_property: Callable[[str, object], None]) -> None:
    config = composed(*TINY, "callbacks=pruning", "dataset.augment.shift=0.1")
    free = [f"{key}." for key in RunConfig.keys_with("may_change") if key not in MATTER or key == "dataset.exclude"]
    leaves = [key for key, _ in RunConfig.walk() if not any(f"{key}." in other for other, _ in RunConfig.walk())]
    for key in leaves:
        theirs = config.to_dict()
        *above, last = key.split(".")
        reduce(dict.__getitem__, above, theirs)[last] = "another value"
        changed = changed_setting(theirs, config)
        if f"{key}.".startswith(tuple(free)):
            assert changed is None, key
        else:
            assert changed is not None and changed[:2] == (key, "another value")
    compared = [key for key in leaves if not f"{key}.".startswith(tuple(free))]
    assert len(compared) > 60 and {*MATTER} - {*compared} == {"dataset.exclude"}
    record_property("tried", len(compared))


def test_settings_that_newer_versions_added_have_their_defaults() -> None:
    config = composed(*TINY)
    theirs = config.to_dict()
    del theirs["dataset"]["split_seed"], theirs["mixing"]
    assert changed_setting(theirs, config) is None
    assert changed_setting(theirs, replace(config, dataset=replace(config.dataset, split_seed=1))) == (
        "dataset.split_seed",
        "0",
        "1",
    )


def test_a_finished_trial_of_other_settings_is_refused_and_kept(
    forked: None, data: Path, finished_trial: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_trial.parent)
    others = "delete trial to train it again, or pass another hydra.sweep.dir\n"
    assert refusal(capsys, settings(data, "dataset.batch_size=4"), finished_trial) == (
        "imgclf: [1/1] seed=0: was trained with dataset.batch_size=8, this command has 4; pass that value, " + others
    )
    line = refusal(capsys, settings(data, "trainer.max_epochs=2"), finished_trial)
    assert "was trained with trainer.max_epochs=1, this command has 2; " in line
    value = read_record(finished_trial).value  # type: ignore[union-attr]
    assert run_trial(settings(data, "dataset.num_workers=1", "cache=ram"), finished_trial, ["seed=0"]) == value
    assert "finished already" in capsys.readouterr().out


def test_a_stopped_trial_of_other_settings_is_refused_before_its_process_starts(
    forked: None, data: Path, finished_trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(finished_trial)
    assert record
    write_record(finished_trial, replace(record, state="interrupted", value=None))
    line = refusal(capsys, settings(data, "trainer.max_epochs=2"), finished_trial)
    assert "was trained with trainer.max_epochs=1, this command has 2; " in line


def add(root: Path) -> None:
    draw_image(root / "train" / "red" / "new.png", (200, 40, 40), 7)


def remove(root: Path) -> None:
    (root / "valid" / "green" / "001.png").unlink()


def rename(root: Path) -> None:
    (root / "test" / "blue" / "000.png").rename(root / "test" / "blue" / "zzz.png")


def grow(root: Path) -> None:
    with (root / "train" / "blue" / "003.png").open("ab") as file:
        file.write(b"0")


def new_class(root: Path) -> None:
    for number in range(2):
        draw_image(root / "train" / "white" / f"{number}.png", (250, 250, 250), number)


CHANGES = {
    add: "train had 6 images of red, now 7",
    remove: "val had 2 images of green, now 1",
    rename: "the 2 test images of blue aren't the same files",
    grow: "the 6 train images of blue aren't the same files",
    new_class: "train had 0 images of white, now 2",
}


@pytest.mark.trust(
    "a finished trial of a sweep, repeated after its data has changed: an image added, removed, renamed, replaced, a new class",
    "the old result is taken for one of the new data",
)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_finished_trial_of_other_data_is_refused_and_kept(
    forked: None,
    change: Callable[[Path], None],
    data: Path,
    finished_trial: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "moved"))
    value = read_record(finished_trial).value  # type: ignore[union-attr]
    assert run_trial(settings(root), finished_trial, ["seed=0"]) == value, "data that moved as a whole are the same"
    capsys.readouterr()
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    change(changed)
    line = refusal(capsys, settings(changed), finished_trial)
    assert line.startswith(
        f"imgclf: [1/1] seed=0: finished with other data ({CHANGES[change]}); restore the data, delete "
    )


def test_data_of_another_environment_and_data_that_are_gone_are_no_proof(
    forked: None,
    data: Path,
    finished_trial: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(settings(data), data_dir=None)
    for name in ("here", "there"):
        shutil.copytree(data, tmp_path / name / config.dataset.name)
    add(tmp_path / "there" / config.dataset.name)
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path / "here"))
    assert run_trial(config, finished_trial, ["seed=0"]) is not None
    capsys.readouterr()
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path / "there"))
    assert "finished with other data (train had 6 images of red, now 7)" in refusal(capsys, config, finished_trial)
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path / "nowhere"))
    line = refusal(capsys, config, finished_trial)
    assert "finished already, and its data can't be compared: folders: looked for " in line


def test_a_record_of_an_earlier_version_is_compared_by_its_checkpoint(
    forked: None, data: Path, finished_trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(finished_trial)
    assert record and record.fingerprint["train"].keys() == {"blue", "green", "red"}
    write_record(finished_trial, replace(record, fingerprint={}))
    assert run_trial(settings(data), finished_trial, ["seed=0"]) == record.value
    capsys.readouterr()
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    rename(changed)
    assert "aren't the same files" in refusal(capsys, settings(changed), finished_trial)


def test_files_that_a_trial_left_out_are_left_out_of_the_comparison(
    forked: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    (root / "train" / "red" / "001.png").write_bytes(b"no image")
    config = settings(root, "check=exclude")
    value = run_trial(config, tmp_path / "trial", ["seed=0"])
    record = read_record(tmp_path / "trial")
    assert record and record.fingerprint["train"]["red"][0] == 5
    assert run_trial(config, tmp_path / "trial", ["seed=0"]) == value
    assert "finished already" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.trust(
    "a finished trial of a sweep whose metrics.json is missing, empty or cut off, with and without its checkpoints",
    "a trial that is neither ranked nor made again, or other results than before",
)
@pytest.mark.parametrize(
    ("damage", "gone"),
    [("missing", ""), ("empty", ""), ("cut", ""), ("missing", "best.ckpt"), ("cut", "last.ckpt")],
)
def test_the_results_of_a_finished_trial_are_made_again(
    forked: None, data: Path, finished_trial: Path, capsys: pytest.CaptureFixture[str], damage: str, gone: str
) -> None:
    metrics = finished_trial / "metrics.json"
    before, record = metrics.read_bytes(), read_record(finished_trial)
    if damage == "missing":
        metrics.unlink()
    else:
        metrics.write_bytes(b"" if damage == "empty" else before[:-9])
    if gone:
        (finished_trial / "checkpoints" / gone).unlink()
    value = run_trial(settings(data), finished_trial, ["seed=0"], "[1/1] seed=0")
    line = capsys.readouterr().out.splitlines()[0]
    problem = "has no metrics.json" if damage == "missing" else "can't be read as a run ("
    assert line.startswith(f"[1/1] seed=0: finished already, but its folder {problem}") and line.endswith(
        "; its results are made again"
    )
    assert record and value == record.value and json.loads(metrics.read_text()) == json.loads(before)


def results(folder: Path) -> dict[str, Any]:
    """Return all that results are read from, without wall times."""
    from imgclf.models.checkpoint import read_checkpoint

    record = read_record(folder)
    assert record
    files = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions_test.csv")}
    saved = {name: read_checkpoint(folder / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt")}
    for checkpoint in saved.values():
        checkpoint["imgclf"]["history"] = without_seconds(checkpoint["imgclf"]["history"])
        checkpoint["imgclf"]["config"].pop("ckpt_path")
    history = without_seconds(read_json(folder / "history.json"))
    return {
        "record": (record.state, record.value, record.fingerprint, record.error),
        **files,
        "history": history,
        **saved,
    }


def killed_before(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a forked process that is killed before its `number`-th change of a file in `folder`; return whether it was.

    The changes of the trial's own process aren't counted.
    """
    child = os.fork()
    if child == 0:
        me, changes = os.getpid(), 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") or os.getpid() != me:
                return
            writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            # rmtree names files relative to an open folder
            inside = str(arguments[0]).startswith(str(folder)) or not os.path.isabs(str(arguments[0]))  # noqa: PTH117
            if writes and inside and not str(arguments[0]).endswith(".lock"):
                changes += 1
                if changes == number:
                    os.kill(me, signal.SIGKILL)

        sys.addaudithook(count)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.exhaustive
@pytest.mark.trust(
    "SIGKILL of what waits for a trial before each change that it makes to a file, of a new trial and of one that begins again",
    "the repeated command ends otherwise than an uninterrupted trial",
)
@pytest.mark.parametrize("kind", ["new", "begins again", "results again"])
def test_killed_between_any_two_file_operations_a_trial_ends_as_an_uninterrupted_one(
    forked: None,
    data: Path,
    trained: Path,
    tmp_path: Path,
    kind: str,
    record_property: Callable[[str, object], None],
) -> None:
    wanted = results(trained)
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "trial"
        if kind != "new":
            shutil.copytree(trained, folder)
            record = read_record(folder)
            assert record
            if kind == "begins again":
                (folder / "checkpoints" / "last.ckpt").unlink()
                write_record(folder, replace(record, state="running", value=None, fingerprint={}))
            else:
                (folder / "metrics.json").unlink()
        killed = killed_before(number, folder, lambda: run_trial(settings(data), folder, ["seed=0"]))  # noqa: B023
        run_trial(settings(data), folder, ["seed=0"])
        found = results(folder)
        difference = {key: found[key] != wanted[key] for key in wanted if not key.endswith(".ckpt")}
        difference |= {key: compare(wanted[key], found[key]) for key in ("last.ckpt", "best.ckpt")}
        assert not any(difference.values()), (number, difference)
        assert not list(folder.rglob("*.tmp")), number
        shutil.rmtree(folder)
        if not killed:
            break
    assert number > (8 if kind == "new" else 10)
    record_property("tried", number - 1)


def late(seconds: float, connection: Any) -> None:
    time.sleep(seconds)
    connection.send(BEGUN)
    connection.send("done")


def test_the_seconds_of_a_trial_begin_with_its_work(forked: None) -> None:
    process = ChildProcess(late, 1.5)
    process.join()
    assert process.outcome == "done" and process.exitcode == 0 and process.seconds < 1.2


@pytest.mark.exhaustive
def test_a_changed_yaml_of_the_users_own_is_noticed(data: Path, tmp_path: Path) -> None:
    """Through the command line, as users meet it."""
    (tmp_path / "own" / "dataset").mkdir(parents=True)
    own = tmp_path / "own" / "dataset" / "mine.yaml"
    own.write_text("defaults: [folders]\nname: mine\nbatch_size: 8\n")
    words = [text for text in TINY if text.partition("=")[0] not in ("dataset", "dataset.batch_size")]
    command = [sys.executable, "-m", "imgclf.train", *words, "dataset=mine", "-m", f"data_dir='{data}'", "seed=0,1"]
    command += ["trainer.max_epochs=1", "--config-dir", "own", "hydra.sweep.dir=sweep"]
    options: Any = {"capture_output": True, "text": True, "timeout": 300, "cwd": tmp_path}
    first = subprocess.run(command, **options)
    assert first.returncode == 0 and first.stderr == "", first.stderr
    own.write_text(own.read_text().replace("8", "4"))
    second = subprocess.run(command, **options)
    assert second.returncode == 2
    lines = second.stderr.splitlines()
    names = sorted(path.parent.name for path in tmp_path.glob("sweep/*/trial.json"))
    assert lines == [
        *(
            f"imgclf: [{number}/2] seed={number - 1}: was trained with dataset.batch_size=8, this command has 4; pass that "
            f"value, delete sweep/{name} to train it again, or pass another hydra.sweep.dir"
            for number, name in enumerate(names, start=1)
        ),
        "imgclf: not all trials could be used, see above",
    ]


def wait_for(event: str, seconds: float, connection: Any) -> None:
    """As a trial's process: it ignores SIGINT until its work begins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if event == "begun":
        signal.signal(signal.SIGINT, lambda *_: connection.send("saved"))
        connection.send(BEGUN)
    time.sleep(seconds)


@pytest.mark.parametrize(("event", "outcome"), [("begun", "saved"), ("loading", None)])
def test_a_process_that_is_stopped_saves_or_has_not_begun(forked: None, event: str, outcome: str | None) -> None:
    process = ChildProcess(wait_for, event, 3)
    assert not process.ended(1.0)
    began = time.monotonic()
    process.stop(signal.SIGINT)
    assert process.outcome == outcome and process.exitcode == (0 if outcome else -signal.SIGKILL)
    assert outcome or time.monotonic() - began < 1.5
