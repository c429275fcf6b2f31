"""Runs and checkpoints found by name: folders, files, and the word `latest`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fabricate import composed

import imgclf
from imgclf.errors import CheckpointError, RunError
from imgclf.files import run_folder
from imgclf.files.run_folder import find_checkpoint, find_run, mark_latest
from imgclf.files.trial_record import TrialRecord, write_record
from imgclf.training.run import train


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with its own `outputs/latest`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "LATEST", Path("outputs/latest"))
    return tmp_path


def make_run(name: str, *checkpoints: str) -> Path:
    """Write what a run's folder holds as far as names go."""
    folder = Path(name)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for file in checkpoints:
        (folder / "checkpoints" / file).touch()
    return folder


def test_file_folder_and_checkpoints_folder_lead_to_the_best_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("outputs/cards", "best.ckpt", "last.ckpt")
    best, last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
    for name in ("outputs/cards", "outputs/cards/", run, "outputs/cards/checkpoints", best, here / run):
        assert find_checkpoint(name).resolve() == best.resolve()
        assert find_run(name).resolve() == run.resolve()
    assert find_checkpoint(last) == last and find_run(last) == run
    monkeypatch.chdir(run / "checkpoints")
    assert find_checkpoint(".").resolve() == here / best and find_run("best.ckpt") == here / run
    alone = here / "alone.ckpt"
    alone.touch()
    assert find_checkpoint(alone) == alone


def test_latest_follows_the_newest_finished_run_and_moves_with_outputs(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_run("outputs/a/b", "best.ckpt"), make_run("elsewhere", "best.ckpt")
    for run in (second, first):
        mark_latest(run)
        assert find_run("latest").resolve() == run.resolve()
        assert find_checkpoint("latest").resolve() == (run / "checkpoints" / "best.ckpt").resolve()
    assert str(find_run("latest")) == "outputs/a/b" and Path("outputs/latest/config.yaml").exists()
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["a", "latest"]
    (here / "moved").mkdir()
    Path("outputs").rename("moved/outputs")
    monkeypatch.chdir("moved")
    assert find_checkpoint("latest") == Path("outputs/a/b/checkpoints/best.ckpt")


def test_latest_is_a_text_file_where_the_system_has_no_links(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("outputs/one", "outputs/two"):
        mark_latest(make_run(name, "best.ckpt"))
        assert Path("outputs/latest").is_file() and not Path("outputs/latest").is_symlink()
        for word in ("latest", "outputs/latest"):
            assert find_checkpoint(word) == Path(name, "checkpoints", "best.ckpt")


def test_a_folder_really_called_latest_comes_before_the_word(here: Path) -> None:
    mark_latest(make_run("outputs/a", "best.ckpt"))
    real = make_run("latest", "best.ckpt")
    assert find_run("latest") == real and find_run("outputs/latest") == Path("outputs/a")


def test_a_folder_called_outputs_latest_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make_run("outputs/latest", "best.ckpt")
    mark_latest(make_run("outputs/a", "best.ckpt"))
    assert "outputs/latest: not renewed" in capsys.readouterr().out
    assert find_run("latest") == own and not own.is_symlink()
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["a", "latest"]


def test_what_is_missing_is_one_line_that_says_what_to_do(here: Path) -> None:
    make_run("begun")
    make_run("in epoch 1", "last.ckpt")
    write_record(make_run("sweep/0", "best.ckpt"), TrialRecord([], {}))
    (here / "photos").mkdir()
    cases = {
        "nowhere.ckpt": "nowhere.ckpt: no such file or folder; expected a run's folder",
        "latest": "latest: no run has finished here yet (there is no outputs/latest); pass a run's folder",
        "begun": "begun: no checkpoint there yet; wait for the run's first epoch",
        "in epoch 1": "first epoch isn't finished; imgclf resume 'in epoch 1'",
        "sweep": "sweep: holds a sweep; pass one of its trials, such as sweep/0",
        "photos": "photos: no run's folder; expected one with checkpoints/best.ckpt",
        "https://x.org/best.ckpt": "models aren't loaded from URLs",
    }
    for text, message in cases.items():
        with pytest.raises(CheckpointError) as caught:
            find_checkpoint(text)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    gone = make_run("outputs/gone", "best.ckpt")
    mark_latest(gone)
    gone.rename("kept")
    with pytest.raises(CheckpointError, match=r"outputs/gone: no such file or folder \(where outputs/latest leads\)"):
        find_checkpoint("latest")


def test_a_finished_run_is_the_latest_and_a_model_is_loaded_by_any_of_its_names(
    run_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_tiny("trainer.max_epochs=1", folder=tmp_path / "runs" / "one")
    trial = tmp_path / "sweep" / "0"
    write_record(trial, TrialRecord([], {}))
    run_tiny("trainer.max_epochs=1", folder=trial)
    for name in ("latest", run, run / "checkpoints", run / "checkpoints" / "best.ckpt"):
        classifier = imgclf.load(name)
        assert classifier.path.resolve() == run / "checkpoints" / "best.ckpt"
        assert classifier.metrics == json.loads((run / "metrics.json").read_text())


BLOCKED = {  # what lies there -> what the message says
    "checkpoints": "not a folder, and a run writes its checkpoints there",
    "checkpoints/last.ckpt/": "a folder, and a run writes a file of that name",
    "checkpoints/best.ckpt/": "a folder, and a run writes a file of that name",
    "metrics.json/": "a folder, and a run writes a file of that name",
    "report.html/": "a folder, and a run writes a file of that name",
}


def block(folder: Path, place: str) -> list[Path]:
    """Put an empty file or folder (one that ends in /) into the place; return all paths in `folder`."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if place.endswith("/") else path.touch()
    return sorted(folder.rglob("*"))


@pytest.mark.trust("folders in the place of a run's files, and files in that of its folders", "an epoch in vain")
@pytest.mark.parametrize("place", BLOCKED)
def test_run_that_could_not_write_its_files_does_not_begin(
    place: str, run_tiny: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "run"
    before = block(folder, place)
    with pytest.raises(RunError) as raised:
        run_tiny(folder=folder)
    assert str(raised.value) == f"{folder / place}: {BLOCKED[place]}; move it away"
    assert sorted(folder.rglob("*")) == before and "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_run_with_a_folder_in_place_of_a_checkpoint_is_not_resumed(
    name: str, tiny_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "checkpoints" / name).unlink()
    block(folder, f"checkpoints/{name}/")
    if name == "best.ckpt":
        with pytest.raises(CheckpointError, match=r"best\.ckpt: is a folder, expected a file"):
            find_checkpoint(folder)
    with pytest.raises(RunError, match=f"{name}: a folder, and a run writes a file of that name; move it away"):
        train(composed(f"resume='{folder}'", "trainer.max_epochs=4"), folder, ["trainer.max_epochs=4"])
    assert "epoch 4" not in capsys.readouterr().out
