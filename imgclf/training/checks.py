"""What a Trainer can't do with an `ImageClassifier`, found before anything is read or written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.strategies.single_xla import SingleDeviceXLAStrategy
from pytorch_lightning.strategies.xla import XLAStrategy
from torch.func import functional_call

from imgclf.config import NO_AVERAGE, NO_HALF, PRECISIONS
from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import ConfigError
from imgclf.training.optim import check_optimizer

if TYPE_CHECKING:
    from imgclf.training.classifier import ImageClassifier

__all__ = ["check_batch_norm", "check_fit", "single_image"]

# Subclasses of those that work: one shares the weights out among processes, the others compile whole steps.
_UNSUITED = (DeepSpeedStrategy, SingleDeviceXLAStrategy, XLAStrategy)


def check_fit(classifier: "ImageClassifier", trainer: Trainer) -> None:
    """Raise `ConfigError` for settings of a Trainer that can't train `classifier`, or train it wrongly."""
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        value = getattr(trainer, name)
        if isinstance(value, (int, float)) and value <= 0:  # Lightning divides by it, in the first epoch
            raise ConfigError(f"{name}={value}: expected a number above 0")
    _check_precision(str(trainer.precision), averaged=classifier.ema is not None)
    _check_strategy(trainer.strategy)
    classifier.scheduler_config.check_length(trainer.max_epochs or 1, trainer.max_steps)
    check_optimizer(classifier.optimizer_config)
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ImageDataModule):
        check_batch_norm(classifier, data.batch_size // trainer.world_size)


def check_batch_norm(classifier: "ImageClassifier", batch_size: int) -> None:
    """Raise `ConfigError` if the network can't be trained on batches of `batch_size` images, those of one process.

    BatchNorm needs two values of each channel: the pixels of one image's map suffice, its pooled features don't.
    """
    if batch_size > 1:
        return
    network, preprocess = classifier.network, classifier.preprocess
    training, freeze = network.training, classifier.model_config.freeze
    image = torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size, dtype=torch.uint8)
    if classifier.model_config.unfreeze_epoch is not None:
        network.freeze("none")
    try:
        network.train()
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # they alone would change
        with torch.no_grad(), torch.random.fork_rng(devices=[]), single_image(1):
            functional_call(network, buffers, (classifier.model.normalize(image.to(classifier.device)),))
    finally:
        if classifier.model_config.unfreeze_epoch is not None:
            network.freeze(freeze)
        network.train(training)


@contextmanager
def single_image(count: int) -> Iterator[None]:
    """Turn what BatchNorm raises for a batch of `count` = 1 images into a `ConfigError`."""
    try:
        yield
    except ValueError as error:
        if count != 1 or "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "a batch of 1 image for a process: the network's BatchNorm needs 2 at least; pass a larger "
            "dataset.batch_size (DataLoader: batch_size, or drop_last=True), or a network without BatchNorm"
        ) from None


def _check_precision(precision: str, averaged: bool) -> None:
    if precision == "16-true":
        raise ConfigError(f"precision=16-true: {NO_HALF}; pass 16-mixed or bf16-true")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision}: expected one of {', '.join(PRECISIONS)}")
    if averaged and precision == "bf16-true":
        raise ConfigError(f"precision=bf16-true with ema_decay: {NO_AVERAGE}; leave one out")


def _check_strategy(strategy: Strategy) -> None:
    if not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)) or isinstance(strategy, _UNSUITED):
        raise ConfigError(
            f"strategy={getattr(strategy, 'strategy_name', type(strategy).__name__)}: imgclf trains on one device, or with "
            "strategy='ddp' on several"
        )
