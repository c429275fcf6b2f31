"""ImageClassifier from Python: its settings, its hyper-parameters, and its average of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

import imgclf
from imgclf.config import HeadConfig, LossConfig, MixingConfig, ModelConfig, OptimizerConfig, SchedulerConfig
from imgclf.console import silence_library_logs
from imgclf.errors import ConfigError
from imgclf.preprocess import Preprocess
from imgclf.training.classifier import ImageClassifier

MODEL = {"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}, "head": {"hidden": [4]}}
PREPROCESS = Preprocess(size=16)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_settings_may_be_mappings_or_dataclasses() -> None:
    by_mapping = ImageClassifier(
        MODEL,
        ["a", "b"],
        PREPROCESS.to_dict(),
        optimizer={"name": "sgd", "lr": 0.1},
        loss={"label_smoothing": 0.1, "class_weights": [1.0, 2.0]},
        ema_decay=0.9,
    )
    by_dataclass = ImageClassifier(
        ModelConfig.from_dict(MODEL),
        ("a", "b"),
        PREPROCESS,
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
        loss=LossConfig(label_smoothing=0.1, class_weights=[1.0, 2.0]),
        ema_decay=0.9,
    )
    assert dict(by_mapping.hparams) == dict(by_dataclass.hparams)
    assert is_plain(dict(by_mapping.hparams))
    again = ImageClassifier(**by_mapping.hparams)
    assert dict(again.hparams) == dict(by_mapping.hparams)
    for name, value in by_mapping.state_dict().items():
        assert torch.equal(value, by_dataclass.state_dict()[name])


def test_missing_settings_take_the_defaults_of_their_dataclasses() -> None:
    classifier = ImageClassifier(MODEL, ["a", "b"], PREPROCESS)
    assert classifier.optimizer_config == OptimizerConfig() and classifier.scheduler_config == SchedulerConfig()
    assert classifier.loss_config == LossConfig() and classifier.mixing_config == MixingConfig()
    assert classifier.eval_model is classifier.model
    grey = ImageClassifier(MODEL, ["a", "b"], PREPROCESS.with_channels(1))
    assert grey.model_config.in_chans == 1 and grey.model_config.head == HeadConfig(hidden=[4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "test_accuracy"}, "monitor='test_accuracy': expected one of val_loss"),
        ({"ema_decay": 2.0}, "ema_decay=2.0: expected null, or a number between 0 and 1"),
        ({"loss": {"class_weights": [1.0]}}, r"class_weights=\[1.0\]: expected null, or one number for each of 2"),
        ({"loss": {"class_weights": "balanced"}}, "class_weights='balanced': expected null, or one number"),
        ({"optimizer": {"rate": 1}}, "optimizer.rate: unknown key"),
        ({"mixing": {"mixup": -1}}, "mixing.mixup=-1: expected a number of at least 0"),
    ],
)
def test_invalid_settings_raise_config_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageClassifier(MODEL, ["a", "b"], PREPROCESS, **changes)


def test_average_of_the_weights_follows_its_warm_up_and_decay() -> None:
    """The reference: decay min(d, (1 + n) / (10 + n)) at update n, as TensorFlow's ExponentialMovingAverage has it."""
    classifier = ImageClassifier(MODEL, ["a", "b"], PREPROCESS, ema_decay=0.3)
    assert classifier.ema is not None
    output: Any = classifier.network.head.output

    def averaged() -> Tensor:
        network: Any = classifier.eval_model.network
        return network.head.output.weight

    expected = output.weight.detach().double()
    for update in range(1, 7):  # the warm-up passes 0.3 at n = 3
        with torch.no_grad():
            output.weight.normal_()
        classifier.ema.update(classifier.model, step=update + 2)
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * output.weight.detach().double()
        torch.testing.assert_close(averaged().double(), expected, rtol=1e-6, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in classifier.eval_model.parameters())
    assert averaged().data_ptr() != output.weight.data_ptr()


def test_classifier_trained_from_python_is_loaded_from_lightnings_own_checkpoint(colours: Path, tmp_path: Path) -> None:
    silence_library_logs()
    data = imgclf.ImageDataModule(colours, preprocess=PREPROCESS, batch_size=8, num_workers=0)
    classifier = ImageClassifier(MODEL, data.classes, data.preprocess.to_dict(), optimizer={"lr": 0.01}, ema_decay=0.9)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(classifier, datamodule=data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "own.ckpt")
    assert loaded.classes == ("blue", "green", "red") and len(loaded.history) == 1
    assert loaded.metadata.config is None
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert imgclf.load(tmp_path / "own.ckpt").predict(colours / "test" / "red" / "000.png") in loaded.classes


def test_replace_head_starts_from_the_averaged_backbone(run_tiny: Callable[..., Path]) -> None:
    path = run_tiny("ema_decay=0.9", "trainer.max_epochs=1") / "checkpoints" / "best.ckpt"
    classifier = ImageClassifier.load_from_checkpoint(path)
    other = classifier.replace_head(["x", "y"])
    source: Any = classifier.eval_model.network
    for name, value in other.network.backbone.state_dict().items():
        assert torch.equal(value, source.backbone.state_dict()[name])
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, other.eval_model.state_dict()[name])
