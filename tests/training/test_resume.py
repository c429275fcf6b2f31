"""A run that was stopped at any step and went on is, to the last bit, the run that was never stopped.

Where time is short a seeded sample is tried; `pytest -m exhaustive` tries everything.
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

from imgclf.config import RunConfig
from imgclf.data.loader import Loader
from imgclf.errors import CheckpointError, ConfigError, RunError
from imgclf.models.checkpoint import read_checkpoint
from imgclf.training import run as training
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.classifier import ImageClassifier
from imgclf.training.resume import find_checkpoint
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
Stops = dict[int, bytes]
Record = Callable[[str, object], None]
DIFFERS = "a result that differs from the run that was never stopped"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven batches an epoch: neither 3 nor the batch size divides the number of pictures."""
    return draw_tree(tmp_path_factory.mktemp("resume"), {"train": 18, "valid": 4, "test": 1})


@pytest.fixture
def fit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Train without the tests and plots that follow, and return what `last.ckpt` then holds."""
    monkeypatch.setattr(training, "_evaluate_best", lambda run, _: (run.classifier, {}))
    numbers = itertools.count()

    def run(*overrides: str, folder: Path | None = None) -> dict[str, Any]:
        settings = composed(*TINY, f"data_dir='{data}'", "dataset.augment={rotation_degrees: 10}", DROPOUT, *overrides)
        folder = folder or tmp_path / f"run{next(numbers)}"
        train(settings, folder, list(overrides))
        return read_checkpoint(folder / "checkpoints" / "last.ckpt")

    return run


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stops]:
    """What `last.ckpt` holds behind each step of the next run."""
    stops: Stops = {}
    save = CheckpointCallback._save

    def save_and_keep(self: CheckpointCallback, trainer: Trainer, validating: bool = False) -> Path:
        path = save(self, trainer, validating)
        stops[trainer.global_step] = path.read_bytes()
        return path

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_save", save_and_keep)
        yield stops


def go_on(fit: Callable[..., dict[str, Any]], stop: bytes, folder: Path, *overrides: str) -> dict[str, Any]:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "checkpoints" / "last.ckpt").write_bytes(stop)
    if (
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]["CheckpointCallback"]["best_epoch"]
        is not None
    ):
        (folder / "checkpoints" / "best.ckpt").write_bytes(stop)  # it matters here that there is one, not which
    return fit(*overrides, "ckpt_path=last", folder=folder)


@pytest.mark.trust("runs stopped behind every step of two epochs, then resumed", DIFFERS)
def test_every_step_of_two_epochs(
    fit: Callable[..., Any], every_step: Stops, tmp_path: Path, record_property: Record
) -> None:
    steps = ("checkpoint.every_n_steps=1",)
    whole = fit(*steps)
    stops = dict(every_step)
    assert sorted(stops) == [*range(1, 7), *range(7, 15)]  # 54 pictures: 7 batches of at most 8, twice
    record_property("tried", len(stops) - 1)
    wrong = {step: difference for step in sorted(stops)[:-1]
             if (difference := compare(whole, go_on(fit, stops[step], tmp_path / f"at{step}", *steps)))}  # fmt: skip
    assert wrong == {}


def pairs() -> list[tuple[str, ...]]:
    """Every pair of values of every two factors, the other factors being at their first value."""
    cases = []
    for one, two in itertools.combinations(FACTORS, 2):
        for a, b in itertools.product(FACTORS[one], FACTORS[two]):
            cases.append(tuple(a + b))
    return sorted(set(cases))


SAMPLE = set(random.Random(3).sample(pairs(), 6)) | {
    ("trainer.accumulate_grad_batches=3", "dataset.num_workers=2", "then 0")
}


@pytest.mark.trust("runs with pairs of settings stopped at three steps each, then resumed", DIFFERS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if c in SAMPLE else pytest.mark.exhaustive, id=" ".join(c) or "to_dict")
        for c in pairs()
    ],
)
def test_pairs_of_settings(
    fit: Callable[..., Any], every_step: Stops, tmp_path: Path, case: tuple[str, ...], record_property: Record
) -> None:
    overrides = (*(text for text in case if not text.startswith("then")), "checkpoint.every_n_steps=1")
    later = (*overrides, "dataset.num_workers=0") if "then 0" in case else overrides
    whole = fit(*overrides)
    stops = dict(every_step)
    steps = sorted(stops)[:-1]
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    record_property("tried", len(chosen))
    wrong = {step: difference for step in chosen
             if (difference := compare(whole, go_on(fit, stops[step], tmp_path / f"at{step}", *later)))}  # fmt: skip
    assert wrong == {}


def test_the_number_of_workers_changes_nothing(fit: Callable[..., Any]) -> None:
    assert compare(fit("dataset.num_workers=0"), fit("dataset.num_workers=2")) is None


@pytest.mark.parametrize("broken", ["position", "step seed"])
def test_the_comparison_notices(
    fit: Callable[..., Any], every_step: Stops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without either of the two things that make resuming exact, the same comparison fails."""
    steps = ("checkpoint.every_n_steps=1",)
    if broken == "step seed":
        monkeypatch.setattr(ImageClassifier, "_seed_dropout", lambda self, seed: None)
    whole = fit(*steps)
    middle = dict(every_step)[3]
    if broken == "position":
        monkeypatch.setattr(Loader, "load_state_dict", lambda self, state: None)
    torch.rand(7)
    assert compare(whole, go_on(fit, middle, tmp_path / "again", *steps)) is not None


def test_two_epochs_have_different_orders(data: Path) -> None:
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
    """A run of which one of two epochs is done."""
    folder = tmp_path / "stopped"
    fit("trainer.max_epochs=1", "checkpoint.keep=all", folder=folder)
    return folder


def test_the_newest_valid_checkpoint(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = stopped / "checkpoints"
    start = find_checkpoint("last", stopped)
    assert start and start.path == place / "last.ckpt"
    (place / "last.ckpt").write_bytes((place / "last.ckpt").read_bytes()[:-500])
    (place / "best.ckpt").write_bytes(b"")
    start = find_checkpoint("last", stopped)
    assert start and start.path == place / "epoch_000.ckpt"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(
        line.startswith("skipped ") and name in line
        for line, name in zip(lines, ("last.ckpt", "best.ckpt"), strict=True)
    )
    (place / "epoch_000.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="ckpt_path=last: none of the checkpoints can be read"):
        find_checkpoint("last", stopped)


def test_resume_takes_the_runs_own_settings(
    fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit("optimizer.lr=0.003")
    folder = tmp_path / "half"
    fit("optimizer.lr=0.003", "trainer.max_epochs=1", folder=folder)
    overrides = (folder / "overrides.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    resume = [f"resume='{folder}'", "trainer.max_epochs=2", "dataset.num_workers=2"]
    train(composed(*resume), folder, resume)
    again = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert compare(whole, again) is None
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["dataset"]["num_workers"], config["optimizer"]["lr"]) == (
        2,
        2,
        0.003,
    )
    assert (folder / "overrides.yaml").read_bytes() == overrides
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    capsys.readouterr()
    best = train(composed(resume[0]), folder, resume[:1])  # a finished run says so
    said = capsys.readouterr().out
    assert "this run is finished, after 2 epochs" in said and said.count("\n") == 1
    assert best == max(row["val_accuracy"] for row in again["imgclf"]["history"])


def test_resume_refuses_what_would_change_results(stopped: Path, tmp_path: Path) -> None:
    resume = f"resume='{stopped}'"
    for override in ("optimizer.lr=1", "model=mobilenetv2", "seed=3", "data_dir=demo"):
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


@pytest.mark.trust("runs resumed on changed data or classes", "training goes on")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "train had 18 images of red, now 17"),
        ("add", "valid had 4 images of blue, now 5".replace("valid", "val")),
        ("replace", "the 18 train images of green aren't the same files"),
        ("class", r"only there: none; only in the data: pink"),
    ],
)
def test_changed_data_is_refused(
    fit: Callable[..., Any], data: Path, tmp_path: Path, change: str, message: str
) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    folder = tmp_path / "run"
    fit("trainer.max_epochs=1", f"data_dir='{own}'", folder=folder)
    picture = own / "train" / "red" / "003.png"
    if change == "remove":
        picture.unlink()
    elif change == "add":
        shutil.copy(picture, own / "valid" / "blue" / "100.png")
    elif change == "replace":
        shutil.copy(picture, own / "train" / "green" / "003.png")
        with (own / "train" / "green" / "003.png").open("ab") as file:
            file.write(bytes(5000))
    else:
        shutil.copytree(own / "train" / "red", own / "train" / "pink")
    with pytest.raises(CheckpointError, match=message):
        train(
            composed(f"resume='{folder}'", "trainer.max_epochs=2"),
            folder,
            [f"resume='{folder}'", "trainer.max_epochs=2"],
        )


def test_data_that_moved_is_the_same_data(fit: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    whole, folder = fit(), tmp_path / "run"
    fit("trainer.max_epochs=1", folder=folder)
    shutil.copytree(data, tmp_path / "moved")
    again = fit("ckpt_path=last", f"data_dir='{tmp_path / 'moved'}'", folder=folder)
    assert compare(whole["state_dict"] | {k: whole[k] for k in ("optimizer_states",)} | whole, again | again) in (
        None, "imgclf.data.root",
    )  # fmt: skip


def test_early_stopping_stays_stopped(fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = ("callbacks.early_stopping.patience=1", "optimizer.lr=1e-12", "trainer.max_epochs=9",
                "callbacks.early_stopping.min_delta=1")  # fmt: skip
    folder = tmp_path / "run"
    ended = fit(*stopping, folder=folder)
    assert len(ended["imgclf"]["history"]) == 2
    stepped = []
    monkeypatch.setattr(ImageClassifier, "training_step", lambda self, *_: stepped.append(1))
    assert compare(ended, fit(*stopping, "ckpt_path=last", folder=folder)) is None
    assert not stepped
