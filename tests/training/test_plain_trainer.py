"""The road without the command line: an `ImageClassifier` and a data module under a plain `Trainer`."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ProgressBar
from safetensors.torch import save_file

from imgclf.console import silence_advertisements, silence_trainer_warnings
from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import CheckpointError
from imgclf.preprocess import Preprocess
from imgclf.training.classifier import ImageClassifier

MODEL = {"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}, "head": {"hidden": [4], "dropout": 0.5}}
PREPROCESS = Preprocess(size=16)


class Bar(ProgressBar):
    """A progress bar that keeps what it would show after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def disable(self) -> None:
        pass

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.shown.append({key: float(value) for key, value in self.get_metrics(trainer, module).items()})

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.shown.append({key: float(value) for key, value in self.get_metrics(trainer, module).items()})


def test_bar_of_a_plain_trainer_shows_the_epochs_loss_and_accuracy(colours: Path, tmp_path: Path) -> None:
    data = ImageDataModule(colours, preprocess=PREPROCESS, batch_size=8)
    classifier, bar = ImageClassifier(MODEL, data.classes, PREPROCESS), Bar()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[bar], enable_model_summary=False, **options)
    trainer.fit(classifier, datamodule=data)
    (row,) = classifier.history
    assert len(bar.shown) == 6  # 5 steps, and the end
    assert all({"train_loss", "train_accuracy"} <= set(shown) for shown in bar.shown)
    assert bar.shown[4]["train_loss"] == pytest.approx(row["train_loss"])
    assert bar.shown[4]["train_accuracy"] == pytest.approx(row["train_accuracy"])
    assert bar.shown[-1]["val_loss"] == pytest.approx(row["val_loss"])
    assert bar.shown[-1]["val_accuracy"] == pytest.approx(row["val_accuracy"])


def test_loaded_classifier_is_trained_in_training_mode(tiny_run: Path, colours: Path, tmp_path: Path) -> None:
    classifier = ImageClassifier.load_from_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    assert not classifier.training
    modes: list[bool] = []
    classifier.network.head.register_forward_hook(lambda module, *_: modes.append(module.training))
    data = ImageDataModule(colours, preprocess=classifier.preprocess, batch_size=8)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(fast_dev_run=1, accelerator="cpu", enable_model_summary=False, **quiet).fit(classifier, datamodule=data)
    assert modes[0]


def test_load_pretrained_takes_a_weights_file(tmp_path: Path) -> None:
    source, classifier = (ImageClassifier(MODEL, ["a", "b"], PREPROCESS, seed=seed) for seed in (1, 2))
    weights = source.network.backbone.network.state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "weights.safetensors")
    key = "features.0.weight"
    assert not torch.equal(classifier.network.backbone.network.state_dict()[key], weights[key])
    classifier.load_pretrained(tmp_path / "weights.safetensors")
    assert torch.equal(classifier.network.backbone.network.state_dict()[key], weights[key])
    with pytest.raises(CheckpointError, match=r"nothing\.pth: no such file"):
        classifier.load_pretrained(tmp_path / "nothing.pth")


def test_advertisements_are_silent_and_notes_and_warnings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    silence_advertisements()
    try:
        logger.info("💡 Tip: try our cloud")
        logger.info("GPU available: False, used: False")
        logger.info("`Trainer.fit` stopped: `max_epochs=2` reached.")
        logger.warning("a real warning")
    finally:
        logger.removeHandler(caplog.handler)
    messages = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert messages == ["`Trainer.fit` stopped: `max_epochs=2` reached.", "a real warning"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_trainer_warnings()
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
        warnings.warn("Checkpoint directory /x exists and is not empty.", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["Checkpoint directory /x exists and is not empty."]


def test_training_with_a_plain_trainer_prints_no_advertisement_and_no_warning(
    colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    data = ImageDataModule(colours, preprocess=PREPROCESS, batch_size=8)
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    try:
        trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
        trainer.fit(ImageClassifier(MODEL, data.classes, PREPROCESS), datamodule=data)
    finally:
        logger.removeHandler(caplog.handler)
    messages = {record.getMessage() for record in caplog.records if record.name == logger.name}
    assert messages == {"`Trainer.fit` stopped: `max_epochs=1` reached."}
    assert [str(warning.message) for warning in recwarn] == []


def test_imports_change_neither_the_filters_of_warnings_nor_a_logger() -> None:
    code = """
import logging, warnings
import pytorch_lightning
logger, before = logging.getLogger("pytorch_lightning.utilities.rank_zero"), list(warnings.filters)
import imgclf
from imgclf import CardsDataModule, ImageClassifier
ours = [f for f in warnings.filters if f not in before and f[1] and ("IProgress" in f[1].pattern or "train" in f[1].pattern)]
assert not ours and not logger.filters, (ours, logger.filters)
CardsDataModule("x")
assert len(logger.filters) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
