"""A run that was stopped at any step and resumed equals, to the last bit, the run that was never stopped.

The usual tests try a seeded sample of the settings; `pytest -m exhaustive` tries all of them.
"""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from support.compare import compare
from support.fabricate import TINY, composed, draw_tree
from support.run_files import read_rows, without_seconds

from imgclf.config import RunConfig
from imgclf.data.loader import Loader
from imgclf.errors import CheckpointError, ConfigError, DataError, RunError
from imgclf.models.checkpoint import read_checkpoint, update_metadata, write_checkpoint
from imgclf.training import run as training
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.classifier import ImageClassifier
from imgclf.training.resume import find_resume_point
from imgclf.training.run import train

DROPOUT = "model.head.dropout=0.3"
FACTORS = {
    "accumulation": ([], ["trainer.accumulate_grad_batches=3"]),
    "workers": (["dataset.num_workers=0"], ["dataset.num_workers=2"], ["dataset.num_workers=2", "then 0"]),
    "average": ([], ["ema_decay=0.9"]),
    "mixup": ([], ["mixing.mixup=0.4"]),
    "schedule": ([], ["scheduler.name=cosine", "scheduler.warmup_epochs=1"], ["scheduler.name=plateau"]),
    "phases": ([], ["model.freeze=all", "model.unfreeze_epoch=1", "optimizer.backbone_lr=0.001"]),
}
Stops = dict[int, tuple[bytes, bytes | None]]
RunTiny = Callable[..., Path]
Record = Callable[[str, object], None]
DIFFERS = "a result that differs from the uninterrupted run"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with seven batches per epoch; the batch size does not divide the number of images, nor 3 the batches."""
    return draw_tree(tmp_path_factory.mktemp("resume"), {"train": 18, "valid": 4, "test": 1})


@pytest.fixture
def fit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Function that trains without the evaluation that follows, and returns the content of `last.ckpt`."""
    monkeypatch.setattr(training, "_evaluate_best", lambda run, _: (run.classifier, {}, []))
    numbers = itertools.count()

    def run(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
        settings = composed(*TINY, f"data_dir='{data}'", "dataset.augment={rotation_degrees: 10}", DROPOUT, *overrides)
        folder = folder or tmp_path / f"run{next(numbers)}"
        train(settings, folder, list(overrides))
        return read_checkpoint(folder / "checkpoints" / "last.ckpt")

    return run


@pytest.fixture
def saved_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stops]:
    """Bytes of `last.ckpt`, and of `best.ckpt` if it is there, after each step of the next run, by step."""
    stops: Stops = {}
    save = CheckpointCallback._save

    def save_and_record(self: CheckpointCallback, trainer: Trainer, **options: Any) -> Path:
        path = save(self, trainer, **options)
        best = path.with_name("best.ckpt")
        stops[trainer.global_step] = (path.read_bytes(), best.read_bytes() if best.exists() else None)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_save", save_and_record)
        yield stops


def write_stop(folder: Path, stop: tuple[bytes, bytes | None]) -> None:
    """Make `folder` that of a run that was killed after it wrote these checkpoints."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    for name, content in zip(("last.ckpt", "best.ckpt"), stop, strict=True):
        if content is not None:
            (checkpoints / name).write_bytes(content)


def resume_from(fit: Callable[..., Any], stop: tuple[bytes, bytes | None], folder: Path, *overrides: str) -> Any:
    """Resume from the checkpoints `stop` in a new folder, and return the content of the last checkpoint."""
    write_stop(folder, stop)
    return fit(*overrides, "ckpt_path=last", folder=folder)


@pytest.mark.trust("runs stopped after every step of two epochs, then resumed", DIFFERS)
def test_run_resumed_after_any_step_equals_the_uninterrupted_one(
    fit: Callable[..., Any], saved_steps: Stops, tmp_path: Path, record_property: Record
) -> None:
    steps = ("checkpoint.every_n_steps=1",)
    whole = fit(*steps)
    stops = dict(saved_steps)
    assert sorted(stops) == [*range(1, 7), *range(7, 15)]  # 54 images: 7 batches of at most 8, twice
    record_property("tried", len(stops) - 1)
    differences = {}
    for step in sorted(stops)[:-1]:
        resumed = resume_from(fit, stops[step], tmp_path / f"at{step}", *steps)
        differences[step] = compare(whole, resumed)
    assert set(differences.values()) == {None}, differences


def pairs() -> list[tuple[str, ...]]:
    """Return every pair of values of every two factors, with the other factors at their first value."""
    cases = []
    for one, two in itertools.combinations(FACTORS, 2):
        cases += [tuple(a + b) for a, b in itertools.product(FACTORS[one], FACTORS[two])]
    return sorted(set(cases))


SAMPLE = set(random.Random(3).sample(pairs(), 3)) | {
    ("trainer.accumulate_grad_batches=3", "dataset.num_workers=2", "then 0")
}


@pytest.mark.trust("runs with pairs of settings stopped at three steps each, then resumed", DIFFERS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(pair, marks=() if pair in SAMPLE else pytest.mark.exhaustive, id=" ".join(pair) or "defaults")
        for pair in pairs()
    ],
)
def test_resumed_run_equals_the_uninterrupted_one_for_each_pair_of_settings(
    fit: Callable[..., Any], saved_steps: Stops, tmp_path: Path, case: tuple[str, ...], record_property: Record
) -> None:
    overrides = (*(text for text in case if not text.startswith("then")), "checkpoint.every_n_steps=1")
    later = (*overrides, "dataset.num_workers=0") if "then 0" in case else overrides
    whole = fit(*overrides)
    stops = dict(saved_steps)
    steps = sorted(stops)[:-1]
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    record_property("tried", len(chosen))
    differences = {}
    for step in chosen:
        resumed = resume_from(fit, stops[step], tmp_path / f"at{step}", *later)
        differences[step] = compare(whole, resumed)
    assert set(differences.values()) == {None}, differences


def test_number_of_workers_changes_no_result(fit: Callable[..., Any]) -> None:
    assert compare(fit("dataset.num_workers=0"), fit("dataset.num_workers=2")) is None


@pytest.mark.parametrize("broken", ["position", "step seed"])
def test_comparison_fails_without_the_loader_position_or_the_step_seed(
    fit: Callable[..., Any], saved_steps: Stops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Both are needed for an exact resume: without either, the comparison above must fail."""
    steps = ("checkpoint.every_n_steps=1",)
    if broken == "step seed":
        monkeypatch.setattr(ImageClassifier, "_seed_dropout", lambda self, seed: None)
    whole = fit(*steps)
    middle = dict(saved_steps)[3]
    if broken == "position":
        monkeypatch.setattr(Loader, "load_state_dict", lambda self, state: None)
    torch.rand(7)
    assert compare(whole, resume_from(fit, middle, tmp_path / "again", *steps)) is not None


def test_epochs_have_different_orders_that_repeat(data: Path) -> None:
    from imgclf import ImageDataModule

    loader = ImageDataModule(data, batch_size=8).loader("train", shuffle="epoch")
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append(np.concatenate([batch.indices.numpy() for batch in loader]))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], orders[2])
    assert np.array_equal(np.sort(orders[0]), np.sort(orders[1]))


@pytest.fixture
def stopped(fit: Callable[..., Any], tmp_path: Path) -> Path:
    """Folder of a run that has finished one of two epochs."""
    folder = tmp_path / "stopped"
    fit("trainer.max_epochs=1", "checkpoint.keep=all", folder=folder)
    return folder


def test_last_skips_damaged_checkpoints_and_fails_if_none_is_left(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = stopped / "checkpoints"
    start = find_resume_point("last", stopped)
    assert start and start.path == checkpoints / "last.ckpt"
    another = find_resume_point(str(stopped), stopped / "elsewhere")
    assert another and another.path == checkpoints / "best.ckpt", "ckpt_path=<another run>"
    (checkpoints / "last.ckpt").write_bytes((checkpoints / "last.ckpt").read_bytes()[:-500])
    (checkpoints / "best.ckpt").write_bytes(b"")
    start = find_resume_point("last", stopped)
    assert start and start.path == checkpoints / "epoch_001.ckpt"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        line.startswith("skipped ") and name in line
        for line, name in zip(lines, ("last.ckpt", "best.ckpt"), strict=True)
    )
    (checkpoints / "epoch_001.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="ckpt_path=last: none of the checkpoints can be read"):
        find_resume_point("last", stopped)


def test_resume_uses_the_settings_of_the_run_and_ends_as_the_uninterrupted_one(
    fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit("optimizer.lr=0.003")
    folder = tmp_path / "half"
    fit("optimizer.lr=0.003", "trainer.max_epochs=1", folder=folder)
    overrides = (folder / "overrides.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    resume = [f"resume='{folder}'", "trainer.max_epochs=2", "dataset.num_workers=2"]
    capsys.readouterr()
    train(composed(*resume), folder, resume)
    assert "continues in epoch 2, after 7 steps" in capsys.readouterr().out
    again = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert compare(whole, again) is None
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["dataset"]["num_workers"] == 2
    assert config["optimizer"]["lr"] == 0.003
    assert (folder / "overrides.yaml").read_bytes() == overrides
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    capsys.readouterr()
    best = train(composed(resume[0]), folder, resume[:1])  # a finished run prints its end and trains nothing
    first, *end = capsys.readouterr().out.splitlines()
    assert first == "this run is finished, after 2 epochs; a larger trainer.max_epochs continues it"
    assert [line.split()[0] for line in end] == ["model", "predict"]
    assert best == max(row["val_accuracy"] for row in again["imgclf"]["history"])


@pytest.mark.parametrize("threads", [1, 2, None])
def test_other_thread_count_than_the_checkpoints_is_said_in_a_line(
    run_tiny: RunTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: int | None
) -> None:
    folder = tmp_path / "run"
    run_tiny("trainer.max_epochs=1", folder=folder)
    last = folder / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["imgclf"]["threads"] == torch.get_num_threads() == 1
    if threads:
        update_metadata(last, threads=threads)
    else:  # of an earlier version of imgclf
        checkpoint = read_checkpoint(last)
        del checkpoint["imgclf"]["threads"]
        write_checkpoint(checkpoint, last)
    capsys.readouterr()
    resume = [f"resume='{folder}'", "trainer.max_epochs=2"]
    train(composed(*resume), folder, resume)
    lines = capsys.readouterr().out.splitlines()
    note = "note: the checkpoint was written with 2 threads, this process uses 1; sums may differ in the last digits"
    assert (note in lines) == (threads == 2)
    assert sum("threads" in each for each in lines) == (threads == 2)


def test_resume_refuses_settings_that_would_change_results(stopped: Path, tmp_path: Path) -> None:
    resume = f"resume='{stopped}'"
    for override in ("optimizer.lr=1", "model=mobilenetv2", "seed=3", "image_size=32"):
        with pytest.raises(ConfigError, match=f"{override} can't change"):
            train(composed(resume, override), stopped, [resume, override])
    with pytest.raises(ConfigError, match=r"leave out hydra\.run\.dir"):
        train(composed(resume), tmp_path, [resume])
    with pytest.raises(RunError, match="holds no run's settings"):
        train(composed(f"resume='{tmp_path}'"), tmp_path, [f"resume='{tmp_path}'"])
    saved = yaml.safe_load((stopped / "config.yaml").read_text())
    for group, key, value, was in (
        ("optimizer", "lr", 0.5, "0.01"),
        ("checkpoint", "monitor", "val_loss", "val_accuracy"),
    ):
        with pytest.raises(CheckpointError, match=rf"its run had {group}\.{key}={was}, this one has {value}"):
            changed = {**saved, "ckpt_path": "last", group: {**saved[group], key: value}}
            train(RunConfig.from_dict(changed), stopped, [])


@pytest.mark.trust("runs resumed on changed data or classes", "training continues")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "train had 18 images of red, now 17"),
        ("add", "val had 4 images of blue, now 5"),
        ("replace", "the 18 train images of green aren't the same files"),
        ("class", r"only there: none; only in the data: pink"),
    ],
)
def test_resume_on_changed_data_raises_checkpoint_error(
    fit: Callable[..., Any], data: Path, tmp_path: Path, change: str, message: str
) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    folder = tmp_path / "run"
    fit("trainer.max_epochs=1", f"data_dir='{own}'", folder=folder)
    image = own / "train" / "red" / "003.png"
    if change == "remove":
        image.unlink()
    elif change == "add":
        shutil.copy(image, own / "valid" / "blue" / "100.png")
    elif change == "replace":
        shutil.copy(image, own / "train" / "green" / "003.png")
        with (own / "train" / "green" / "003.png").open("ab") as file:
            file.write(bytes(5000))
    else:
        shutil.copytree(own / "train" / "red", own / "train" / "pink")
    resume = [f"resume='{folder}'", "trainer.max_epochs=2"]
    with pytest.raises(CheckpointError, match=message):
        train(composed(*resume), folder, resume)


@pytest.mark.trust("runs resumed with data that moved", DIFFERS)
@pytest.mark.parametrize("extra", [(), ("model.freeze=all", "dataset.augment=null")], ids=["images", "features"])
def test_resume_on_moved_data_equals_the_uninterrupted_run(
    fit: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    whole, folder, place = fit(*extra), tmp_path / "run", tmp_path / "before"
    shutil.copytree(data, place)
    fit("trainer.max_epochs=1", *extra, f"data_dir='{place}'", folder=folder)
    place.rename(tmp_path / "moved")
    settings = (folder / "config.yaml").read_bytes()
    resume = [f"resume='{folder}'", "trainer.max_epochs=2"]
    with pytest.raises(DataError, match=f"{place}, which doesn't exist; pass data_dir="):
        train(composed(*resume), folder, resume)
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "moved", tmp_path / "other" / "images", ignore=shutil.ignore_patterns("001.png"))
    with pytest.raises(CheckpointError, match="the data has changed since"):
        train(composed(*resume, f"data_dir='{tmp_path}/other'"), folder, [*resume, f"data_dir='{tmp_path}/other'"])
    assert (folder / "config.yaml").read_bytes() == settings
    monkeypatch.chdir(tmp_path)
    train(composed(*resume, "data_dir=moved"), folder, [*resume, "data_dir=moved"])
    again = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert again["imgclf"]["data"].pop("root") == str(tmp_path / "moved") and whole["imgclf"]["data"].pop("root")
    assert compare(whole, again) is None
    assert yaml.safe_load((folder / "config.yaml").read_text())["data_dir"] == str(tmp_path / "moved")


def test_resume_of_an_early_stopped_run_trains_no_step(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = ("callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1")
    stopping = (*early, "optimizer.lr=1e-12", "trainer.max_epochs=9")
    folder = tmp_path / "run"
    ended = fit(*stopping, folder=folder)
    assert len(ended["imgclf"]["history"]) == 2
    stepped = []
    monkeypatch.setattr(ImageClassifier, "training_step", lambda self, *_: stepped.append(1))
    assert compare(ended, fit(*stopping, "ckpt_path=last", folder=folder)) is None
    assert not stepped


def test_finished_run_resumed_for_one_more_epoch_equals_the_longer_run(run_tiny: RunTiny, tmp_path: Path) -> None:
    whole = run_tiny("trainer.max_epochs=3", "dataset.augment={rotation_degrees: 10}")
    folder = run_tiny("trainer.max_epochs=2", "dataset.augment={rotation_degrees: 10}")
    run_tiny("trainer.max_epochs=3", "dataset.augment={rotation_degrees: 10}", "ckpt_path=last", folder=folder)
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, folder))
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    histories = [without_seconds(checkpoint["imgclf"]["history"]) for checkpoint in (one, two)]
    assert histories[0] == histories[1] and len(histories[0]) == 3
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    with pytest.raises(CheckpointError, match="ckpt_path=last: there is no checkpoint in"):
        find_resume_point("last", tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.head.dropout=0.3", "dataset.augment={rotation_degrees: 10}", "scheduler.name=cosine"),
        ("trainer.accumulate_grad_batches=2", "ema_decay=0.9", "mixing.mixup=0.4", "scheduler.name=plateau"),
    ],
)
def test_run_resumed_within_an_epoch_equals_the_uninterrupted_one(
    run_tiny: RunTiny, saved_steps: Stops, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = (*overrides, "checkpoint.every_n_steps=1", "trainer.max_epochs=3")
    whole = torch.load(run_tiny(*overrides) / "checkpoints" / "last.ckpt", weights_only=True)
    stops = dict(saved_steps)
    assert len(stops) == whole["global_step"]  # one per step, the last steps of epochs included
    for step in sorted(stops)[1 : len(stops) - 1 : 3]:
        folder = tmp_path / f"at{step}"
        write_stop(folder, stops[step])
        run_tiny(*overrides, "ckpt_path=last", folder=folder)
        again = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, again["state_dict"][key]), (step, key)
        assert without_seconds(whole["imgclf"]["history"]) == without_seconds(again["imgclf"]["history"]), step


def test_new_run_continues_a_checkpoint_of_the_same_classes_and_model_only(run_tiny: RunTiny, tiny_run: Path) -> None:
    last = tiny_run / "checkpoints" / "last.ckpt"
    folder = run_tiny(f"ckpt_path='{last}'", "trainer.max_epochs=4")
    assert len(read_rows(folder / "history.csv")) == 4
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    for change, message in (
        ("dataset.classes=[red,blue]", r"its run had dataset\.classes=None, this one has \['red', 'blue'\]"),
        ("model.head.hidden=[9]", r"its run had model.head.hidden=\[8\], this one has \[9\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run_tiny(f"ckpt_path='{last}'", change)


def test_a_run_that_max_steps_ended_is_finished_and_takes_more_steps(
    run_tiny: RunTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("trainer.max_epochs=-1", "scheduler.name=none")  # 5 steps an epoch
    whole, folder = run_tiny(*steps, "trainer.max_steps=12"), run_tiny(*steps, "trainer.max_steps=7")
    capsys.readouterr()
    train(composed(f"resume='{folder}'"), folder, [])
    printed = capsys.readouterr().out
    assert "this run is finished, after 2 epochs; a larger trainer.max_steps continues it" in printed
    assert "continues in epoch" not in printed
    train(composed(f"resume='{folder}'", "trainer.max_steps=12"), folder, ["trainer.max_steps=12"])
    assert "after 7 steps" in capsys.readouterr().out
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 12
    assert len(read_rows(folder / "history.csv")) >= len(read_rows(whole / "history.csv")) == 3
