"""All arguments of Lightning's Trainer: as settings of a run, and under a Trainer of one's own. Each works, or is refused in
one line before anything is written."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import StrategyRegistry
from support.fabricate import TINY, Batches, composed

from imgclf.config import TrainerConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import ConfigError, ImgclfError
from imgclf.preprocess import Preprocess
from imgclf.training.build import check_names
from imgclf.training.classifier import ImageClassifier
from imgclf.training.run import train

ARGUMENTS = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
SETTINGS = TrainerConfig.field_names()
TRIED = ("arguments of Lightning's Trainer, as settings and from Python", "a traceback, or a file of a refused run")
PROCESSES = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "single_device")
MODEL: dict[str, Any] = {"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}, "head": {"hidden": [4]}}
BATCH = (torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

# Words of a command line, and a part of the line that refuses them: without data ...
REFUSED = {
    "trainer.max_epochs=0": "expected a whole number of at least 1, or -1 for no end",
    "trainer.max_epochs=-2": "expected a whole number of at least 1, or -1 for no end",
    "trainer.max_epochs=-1 scheduler.name=cosine": "scheduler.name=cosine ends with the run, whose length it must know",
    "trainer.max_epochs=-1 scheduler.name=poly": "scheduler.name=poly ends with the run",
    "trainer.max_epochs=-1 scheduler.name=step": "scheduler.name=step ends with .* or scheduler.decay_epochs=<number>",
    "trainer.max_epochs=-1 scheduler.name=cosine trainer.max_time=00:00:01:00": "ends with the run",
    "trainer.max_steps=0": "expected a whole number of at least 1, or -1",
    "trainer.max_steps=-2": "expected a whole number of at least 1, or -1",
    "trainer.min_epochs=-1": "expected a whole number of at least 0",
    "trainer.min_steps=-1": "expected a whole number of at least 0",
    "trainer.limit_train_batches=0": "expected a whole number of at least 1, or a fraction of at most 1",
    "trainer.limit_train_batches=0.0": "expected a whole number of at least 1, or a fraction",
    "trainer.limit_train_batches=1.5": "expected a whole number of at least 1, or a fraction",
    "trainer.limit_val_batches=-1": "expected a whole number of at least 0, or a fraction",
    "trainer.limit_test_batches=1.5": "expected a whole number of at least 0, or a fraction",
    "trainer.overfit_batches=-1": "expected a whole number of at least 0, or a fraction",
    "trainer.val_check_interval=0": "expected a whole number of at least 1, or a fraction",
    "trainer.check_val_every_n_epoch=0": "expected a whole number of at least 1",
    "trainer.accumulate_grad_batches=0": "expected a whole number of at least 1",
    "trainer.gradient_clip_val=-1": "expected a number of at least 0",
    "trainer.gradient_clip_algorithm=sum": "expected one of norm, value",
    "trainer.log_every_n_steps=-1": "expected a whole number of at least 0",
    "trainer.deterministic=perhaps": "expected one of false, true, warn",
    "trainer.profiler=xla": "expected one of simple, advanced, pytorch",
    "trainer.max_time=5": "expected a time above 0 as DD:HH:MM:SS",
    "trainer.max_time=soon": "expected a time above 0 as DD:HH:MM:SS",
    "trainer.max_time=00:00:00:00": "expected a time above 0 as DD:HH:MM:SS",
    "trainer.accelerator=tpu": "trainer.accelerator='tpu': did you mean gpu",
    "trainer.num_nodes=0": "expected a whole number of at least 1",
    "trainer.precision=16-true": "lose small gradients, which nothing scales up; pass 16-mixed or bf16-true",
    "trainer.precision=8": "trainer.precision",
    "trainer.precision=bf16-true ema_decay=0.99": "an average in 8 bits never follows the weights",
    "trainer.strategy=ddp_spawn": "imgclf trains on one device, or with ddp on several; pass trainer.strategy=ddp",
}
# ... and with data, before the run's folder is made.
REFUSED_WITH_DATA = {
    "trainer.devices=0": "trainer: ",
    "trainer.devices=[0]": "`devices` selected with `CPUAccelerator` should be an int > 0",
    "trainer.devices=x": "`devices` selected with `CPUAccelerator` should be an int > 0",
    "trainer.fast_dev_run=-1": "expected a whole number of at least 0",
    "trainer.val_check_interval=100": "val_check_interval=100: an epoch has 5 batches; pass fewer, or a fraction",
    "trainer.val_check_interval=3 trainer.limit_train_batches=0.5": "an epoch has 2 batches",
    "dataset.batch_size=1 model.head.batch_norm=true": "a batch of 1 image .* BatchNorm needs 2",
    "dataset.batch_size=1 model.head.batch_norm=true model.freeze=all model.unfreeze_epoch=1": "BatchNorm needs 2",
}
# Settings that a whole run is trained with: the epochs that it has, and whether each was validated.
TRAINED = {
    "trainer.max_steps=3": [True],
    "trainer.precision=64-true": [True, True],
    "trainer.precision=bf16-true": [True, True],
    "trainer.overfit_batches=0.01": [True, True],
    "trainer.limit_train_batches=0.01 trainer.limit_val_batches=0.01": [True, True],
}
TRAINED_SLOWLY = {
    "trainer.max_epochs=-1 trainer.max_steps=7": [True, True],
    "trainer.max_epochs=-1 trainer.max_steps=7 scheduler.name=cosine scheduler.warmup_epochs=1": [True, True],
    "trainer.max_steps=7": [True, True],
    "trainer.max_steps=2 trainer.accumulate_grad_batches=2": [True],
    "trainer.max_steps=3 trainer.limit_val_batches=0": [False],
    "trainer.max_steps=100": [True, True],
    "trainer.precision=bf16-mixed": [True, True],
    "trainer.precision=16-mixed": [True, True],
    "trainer.precision=64-true ema_decay=0.9 loss.class_weights=balanced mixing.mixup=0.2": [True, True],
    "trainer.precision=64-true model.freeze=all": [True, True],
    "trainer.devices=auto": [True, True],
    "trainer.strategy=single_device": [True, True],
    "trainer.limit_train_batches=1": [True, True],
    "trainer.limit_train_batches=0.5": [True, True],
    "trainer.limit_val_batches=0": [False, False],
    "trainer.limit_test_batches=0.01": [True, True],
    "trainer.overfit_batches=0.5": [True, True],
    "trainer.overfit_batches=1": [True, True],
    "trainer.val_check_interval=0.01": [True, True],
    "trainer.val_check_interval=2": [True, True],
    "trainer.check_val_every_n_epoch=2": [False, True],
    "trainer.check_val_every_n_epoch=5": [False, False],
    "trainer.accumulate_grad_batches=100": [True, True],
    "trainer.gradient_clip_val=0": [True, True],
    "trainer.gradient_clip_val=1 trainer.gradient_clip_algorithm=value": [True, True],
    "trainer.deterministic=true": [True, True],
    "trainer.deterministic=warn": [True, True],
    "trainer.profiler=simple": [True, True],
    "trainer.profiler=advanced": [True, True],
    "trainer.fast_dev_run=true trainer.max_epochs=-1 scheduler.name=cosine": [True],
    "trainer.min_epochs=5": [True, True],
    "trainer.min_steps=100": [True, True],
    "trainer.max_time=00:01:00:00": [True, True],
    "trainer.log_every_n_steps=0 logger=csv": [True, True],
    "trainer.benchmark=true trainer.detect_anomaly=true trainer.inference_mode=false": [True, True],
    "trainer.sync_batchnorm=true": [True, True],
    "dataset.batch_size=1 trainer.limit_train_batches=3": [True, True],
    "dataset.batch_size=1 trainer.limit_train_batches=3 model.head.batch_norm=true model.head.pool_at=after": [
        True,
        True,
    ],
}


def refuses(words: str, message: str, folder: Path) -> None:
    """Assert that a command line is refused by one line with `message`, and that nothing is written."""
    with pytest.raises(ImgclfError, match=message) as raised:
        train(composed(*TINY, *words.split()), folder / "run", [])
    assert "\n" not in str(raised.value)
    assert not list(folder.iterdir())


def epochs_validated(words: str, data: Path, folder: Path) -> list[bool]:
    """Train a run, check that it is whole, and return for each epoch whether it was validated."""
    train(composed(*TINY, f"data_dir='{data}'", *words.split()), folder / "run", [])
    assert json.loads((folder / "run" / "metrics.json").read_text())["test"]["count"] in (15, 8)
    rows = json.loads((folder / "run" / "history.json").read_text())
    return [row["val_loss"] is not None for row in rows]


def test_every_argument_is_a_setting_or_refused_with_what_to_do() -> None:
    others = [name for name in ARGUMENTS if name not in SETTINGS]
    assert set(others) == set(TrainerConfig.reserved)  # a new argument of Lightning must be decided upon
    for name in others:
        for word in (f"trainer.{name}=1", f"+trainer.{name}=1"):
            with pytest.raises(ConfigError, match=f"^trainer.{name}: unknown key; imgclf sets it itself; ") as raised:
                composed(word)
            assert "\n" not in str(raised.value)
    named = " ".join([*REFUSED, *REFUSED_WITH_DATA, *TRAINED, *TRAINED_SLOWLY])
    assert not [name for name in SETTINGS if f"trainer.{name}=" not in named]


@pytest.mark.trust(*TRIED)
@pytest.mark.parametrize("words", REFUSED)
def test_setting_that_cannot_work_is_refused_before_data_are_read(words: str, tmp_path: Path) -> None:
    refuses(f"data_dir=/nowhere {words}", REFUSED[words], tmp_path)


@pytest.mark.trust(*TRIED)
def test_every_other_strategy_of_lightning_is_refused(record_property: Any) -> None:
    config = composed(*TINY)
    names = ["dpp", *(name for name in StrategyRegistry.available_strategies() if name not in PROCESSES)]
    for name in names:
        with pytest.raises(ConfigError, match=f"^trainer.strategy={name}: imgclf trains on one device, or with ddp"):
            check_names(replace(config, trainer=replace(config.trainer, strategy=name)))
    for name in PROCESSES:
        check_names(replace(config, trainer=replace(config.trainer, strategy=name)))
    assert len(names) > 10
    record_property("tried", len(names))


@pytest.mark.trust(*TRIED)
@pytest.mark.parametrize("words", REFUSED_WITH_DATA)
def test_setting_that_does_not_suit_the_data_is_refused_before_the_run_begins(
    words: str, colours: Path, tmp_path: Path
) -> None:
    refuses(f"data_dir={colours} {words}", REFUSED_WITH_DATA[words], tmp_path)


@pytest.mark.trust(*TRIED)
@pytest.mark.parametrize("words", TRAINED)
def test_setting_trains_a_run(words: str, colours: Path, tmp_path: Path) -> None:
    assert epochs_validated(words, colours, tmp_path) == TRAINED[words]


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.trust(*TRIED)
@pytest.mark.parametrize("words", TRAINED_SLOWLY)
def test_setting_trains_a_run_too(words: str, colours: Path, tmp_path: Path) -> None:
    assert epochs_validated(words, colours, tmp_path) == TRAINED_SLOWLY[words]


def test_a_notebook_does_not_train_in_several_processes(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    refuses(f"data_dir={colours} trainer.devices=2", "trainer.devices=2: a notebook can't train in several", tmp_path)


# A value or more of each argument, under a Trainer of one's own; None: it trains, else a part of the line that refuses it.
OWN: list[tuple[str, Any, str | None]] = [
    ("accelerator", "auto", None),
    ("accelerator", "tpu", "torch_xla|TPU"),
    ("strategy", "single_device", None),
    ("strategy", "fsdp", "fsdp"),
    ("devices", 1, None),
    ("num_nodes", 1, None),
    ("precision", "64-true", None),
    ("precision", "bf16-true", None),
    ("precision", "bf16-mixed", None),
    ("precision", "16-mixed", None),
    ("precision", "16-true", "precision=16-true: weights of 16 bits lose small gradients"),
    ("logger", True, None),
    ("callbacks", [], None),
    ("fast_dev_run", 1, None),
    ("max_epochs", 1, None),
    ("max_epochs", -1, "trainer.max_epochs=-1: scheduler.name=cosine ends with the run"),
    ("min_epochs", 3, None),
    ("max_steps", 1, None),
    ("min_steps", 3, None),
    ("max_time", {"minutes": 5}, None),
    ("limit_train_batches", 0.5, None),
    ("limit_val_batches", 0, None),
    ("limit_test_batches", 1, None),
    ("limit_predict_batches", 1, None),
    ("overfit_batches", 0.5, None),
    ("val_check_interval", 0.5, None),
    ("val_check_interval", 0, "val_check_interval=0: expected a number above 0"),
    ("check_val_every_n_epoch", 2, None),
    ("check_val_every_n_epoch", 0, "check_val_every_n_epoch=0: expected a number above 0"),
    ("num_sanity_val_steps", -1, None),
    ("log_every_n_steps", 1, None),
    ("enable_checkpointing", True, None),
    ("enable_progress_bar", True, None),
    ("enable_model_summary", True, None),
    ("accumulate_grad_batches", 2, None),
    ("accumulate_grad_batches", 0, "accumulate_grad_batches=0: expected a number above 0"),
    ("gradient_clip_val", 0.5, None),
    ("gradient_clip_algorithm", "value", None),
    ("deterministic", "warn", None),
    ("benchmark", False, None),
    ("inference_mode", False, None),
    ("use_distributed_sampler", False, None),
    ("profiler", "simple", None),
    ("detect_anomaly", True, None),
    ("barebones", True, None),
    ("plugins", [], None),
    ("sync_batchnorm", True, None),
    ("reload_dataloaders_every_n_epochs", 1, None),
    ("default_root_dir", "here", None),
    ("enable_autolog_hparams", False, None),
    ("model_registry", "registry", None),
]


@pytest.mark.trust(*TRIED)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "value", "message"), OWN)
def test_argument_of_ones_own_trainer_trains_or_is_refused(
    name: str, value: Any, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = {"accelerator": "cpu"} if name == "barebones" else QUIET
    options = {"max_epochs": 2, **quiet, name: value}
    classifier = ImageClassifier(MODEL, ["a", "b", "c"], Preprocess(size=8))
    loaders = Batches(*[BATCH] * 2), Batches(BATCH, BATCH)
    if message:
        with pytest.raises(Exception, match=message) as raised:
            Trainer(**options).fit(classifier, *loaders)
        lightnings_own = name in ("accelerator", "strategy")  # raised by the Trainer itself
        assert lightnings_own or (isinstance(raised.value, ConfigError) and "\n" not in str(raised.value))
        assert not list(tmp_path.iterdir())
        return
    before = {key: weight.clone() for key, weight in classifier.state_dict().items()}
    Trainer(**options).fit(classifier, *loaders)
    assert len(classifier.history) == (
        1 if name in ("fast_dev_run", "max_steps") or value == 1 == options["max_epochs"] else 2
    )
    assert any(not torch.equal(before[key].float(), weight.float()) for key, weight in classifier.state_dict().items())


def test_every_argument_is_tried_under_ones_own_trainer() -> None:
    assert {name for name, _, _ in OWN} == set(ARGUMENTS)


def rates(**options: Any) -> list[float]:
    """Return the learning rate after each epoch of four steps."""
    scheduler = options.pop("scheduler")
    classifier = ImageClassifier(MODEL, ["a", "b", "c"], Preprocess(size=8), optimizer={"lr": 0.1}, scheduler=scheduler)
    Trainer(**QUIET, **options).fit(classifier, Batches(*[BATCH] * 4), Batches(BATCH))
    return [row["lr"] for row in classifier.history]


def test_endless_run_has_a_rate_that_its_schedule_can_know(tmp_path: Path) -> None:
    steps: dict[str, Any] = {"max_epochs": -1, "max_steps": 12, "default_root_dir": tmp_path}
    epochs: dict[str, Any] = {"max_epochs": 3, "default_root_dir": tmp_path}
    for name in ("cosine", "poly", "step"):
        known = rates(scheduler={"name": name}, **epochs)
        assert len(known) == 3 and 0 < known[2] < known[1]
        assert rates(scheduler={"name": name}, **steps) == pytest.approx(known)
    assert rates(scheduler={"name": "none"}, **steps) == [0.1] * 3
    assert rates(scheduler={"name": "plateau"}, **steps) == [0.1] * 3
    assert rates(scheduler={"name": "step", "decay_epochs": 1}, **steps) == pytest.approx([0.1, 0.01, 0.001])


def test_run_that_its_steps_end_within_an_epoch_is_evaluated_as_it_then_is(colours: Path, tmp_path: Path) -> None:
    """Three steps of an epoch of five are an epoch of three steps, in everything that is measured."""
    values = []
    for number, words in enumerate(("trainer.max_steps=3", "trainer.limit_train_batches=3 trainer.max_epochs=1")):
        folder = tmp_path / str(number)
        train(composed(*TINY, f"data_dir='{colours}'", *words.split()), folder, [])
        rows = json.loads((folder / "history.json").read_text())
        assert len(rows) == 1 and rows[0].pop("seconds") > 0
        values.append((rows, json.loads((folder / "metrics.json").read_text())))
    assert values[0] == values[1]


@pytest.mark.exhaustive
@pytest.mark.trust(*TRIED)
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook", "ddp"])
def test_processes_of_ones_own_trainer_bring_their_weights_back(strategy: str, colours: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import torch
from pytorch_lightning import Trainer
from imgclf import ImageClassifier, ImageDataModule, Preprocess
if __name__ == "__main__":
    data = ImageDataModule({str(colours)!r}, preprocess=Preprocess(size=16), batch_size=8, num_workers=0)
    classifier = ImageClassifier({MODEL!r}, data.classes, data.preprocess)
    before = classifier.network.head.output.weight.clone()
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy={strategy!r}, logger=False,
                      enable_progress_bar=False, default_root_dir={str(tmp_path)!r})
    trainer.fit(classifier, datamodule=data)
    assert not torch.equal(before, classifier.network.head.output.weight)
    print("trained", float(trainer.callback_metrics["val_loss"]) > 0)
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "trained True" in done.stdout, done.stderr[-2000:]


def test_batch_of_one_image_for_a_process_is_refused_under_a_plain_trainer_too(colours: Path, tmp_path: Path) -> None:
    data = ImageDataModule(colours, preprocess=Preprocess(size=16), batch_size=1)
    model = {**MODEL, "head": {"hidden": [4], "batch_norm": True}}
    classifier = ImageClassifier(model, data.classes, data.preprocess)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    with pytest.raises(ConfigError, match="a batch of 1 image for a process"):
        Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path).fit(classifier, datamodule=data)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())
