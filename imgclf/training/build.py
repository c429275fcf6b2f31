"""From settings, as Hydra composed them, to the objects of a run."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy

from imgclf.config import CheckpointConfig, EarlyStoppingConfig, PruningConfig
from imgclf.data import datamodule_class
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.location import locate
from imgclf.errors import ConfigError
from imgclf.models.checkpoint import CheckpointMetadata, DataFacts
from imgclf.models.weights import describe_weights
from imgclf.preprocess import Preprocess
from imgclf.signals import Signals
from imgclf.training.callbacks import build_callbacks
from imgclf.training.checkpointing import AtomicCheckpointIO
from imgclf.training.classifier import ImageClassifier
from imgclf.training.loggers import build_logger

__all__ = ["build_classifier", "build_data", "build_trainer", "is_first_process", "restore_classifier"]


def build_data(settings: Mapping[str, Any]) -> ImageDataModule:
    """The data module of `settings["dataset"]`, its files found and labelled; raises `DataError`, `ConfigError`."""
    options = dict(settings["dataset"])
    name, data_dir = options.pop("name"), settings.get("data_dir")
    data = _call(datamodule_class(name), "dataset", locate(name, data_dir), name=name, seed=settings["seed"],
                 check_counts=data_dir != "demo", cache=settings.get("cache", "off"), cache_gb=settings.get("cache_gb", 0),
                 views=settings.get("views"), **options)  # fmt: skip
    data.setup()
    return data


def build_classifier(settings: Mapping[str, Any], data: ImageDataModule) -> ImageClassifier:
    """The network for the data's classes, with its weights, and the preprocessing that they ask for, which the data then
    uses; raises `ConfigError`, `CheckpointError`.
    """
    model = dict(settings["model"])
    weights, pretrained = model.pop("weights", None), model.pop("pretrained", False) and not model.get("weights")
    channels = model.pop("in_chans", 3)
    chosen = {
        key: settings[source]
        for key, source in (("size", "image_size"), ("resize", "resize"))
        if settings[source] is not None
    }
    preprocess, keywords = describe_weights(model["backbone"], weights, **chosen)
    preprocess = preprocess.with_channels(channels)
    model["backbone_kwargs"] = {**(model.get("backbone_kwargs") or {}), **keywords}
    data.preprocess = preprocess
    if not weights and not pretrained:  # nothing is known about the pixels but what the training set says
        mean, std = data.statistics(channels)
        preprocess = Preprocess(**{**preprocess.to_dict(), "mean": mean, "std": std})
        data.preprocess = preprocess
    classifier = _call(
        ImageClassifier, "the settings", model, list(data.classes), preprocess.to_dict(), optimizer=settings["optimizer"],
        scheduler=settings["scheduler"], loss=_loss(settings["loss"], data), mixing=settings["mixing"],
        ema_decay=settings["ema_decay"], monitor=settings["checkpoint"]["monitor"], seed=settings["seed"],
    )  # fmt: skip
    if weights:
        classifier.load_weights(weights)
    elif pretrained:
        classifier.load_pretrained()
    classifier.metadata = _metadata(settings, data)
    return classifier


def restore_classifier(settings: Mapping[str, Any], data: ImageDataModule, path: Path) -> ImageClassifier:
    """The network of the checkpoint at `path`, to train on; its weights file or the hub isn't needed again."""
    classifier = ImageClassifier.load_from_checkpoint(path).train()
    data.preprocess = classifier.preprocess
    classifier.metadata = _metadata(settings, data)
    return classifier


def build_trainer(settings: Mapping[str, Any], folder: Path, data: ImageDataModule, signals: Signals) -> Trainer:
    """Lightning's Trainer with `settings["trainer"]`, and imgclf's callbacks and checkpoints in `folder`.

    Without validation pictures there is nothing to stop early by.
    """
    options = dict(settings["trainer"])
    if not isinstance(options["max_epochs"], int):
        raise ConfigError(f"trainer.max_epochs={options['max_epochs']!r}: expected a whole number of epochs")
    if not len(data.samples["val"]):
        options["limit_val_batches"] = 0
    if options.get("strategy") == "ddp":  # processes wait for each other while caches are filled, which may take hours
        options["strategy"] = DDPStrategy(timeout=timedelta(hours=12))
    chosen = (settings.get("callbacks") or {}) if options["limit_val_batches"] != 0 else {}
    callbacks = build_callbacks(
        folder,
        signals,
        CheckpointConfig.from_dict(settings["checkpoint"]),
        EarlyStoppingConfig.from_dict(chosen["early_stopping"]) if chosen.get("early_stopping") else None,
        PruningConfig.from_dict(chosen["pruning"]) if chosen.get("pruning") else None,
    )
    try:
        return _call(
            Trainer, "trainer", default_root_dir=folder, callbacks=callbacks, logger=build_logger(settings, folder),
            plugins=[AtomicCheckpointIO()], enable_checkpointing=True, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, **options,
        )  # fmt: skip
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error


def is_first_process() -> bool:
    """Whether this is the first of a distributed run's processes, as far as can be told before it has begun."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _metadata(settings: Mapping[str, Any], data: ImageDataModule) -> CheckpointMetadata:
    """Return what travels in every checkpoint beside the network: where it comes from, as plain data."""
    counts = {split: len(samples) for split, samples in data.samples.items()}
    facts = DataFacts(data.name, str(data.root), counts, list(data.flips))
    return CheckpointMetadata(config=dict(settings), data=facts, fingerprint=data.fingerprint())


def _loss(options: Mapping[str, Any], data: ImageDataModule) -> dict[str, Any]:
    """The class weights as numbers: "balanced" is N / (K * count), as in scikit-learn's `compute_class_weight`."""
    smoothing, weights = options.get("label_smoothing", 0.0), options.get("class_weights")
    if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise ConfigError(f"loss.label_smoothing={smoothing!r}: expected a number from 0 up to, not including, 1")
    if weights == "balanced":
        counts = data.samples["train"].counts()
        weights = (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()
    elif isinstance(weights, Mapping):
        weights = {str(name): weight for name, weight in weights.items()}
        if unknown := sorted(set(weights) - set(data.classes)):
            raise ConfigError(f"loss.class_weights: {', '.join(unknown)} is no class of {data.name}")
        weights = [float(weights.get(name, 1.0)) for name in data.classes]
    elif weights is not None and (isinstance(weights, str) or len(weights) != len(data.classes)):
        raise ConfigError(f"loss.class_weights={weights!r}: expected null, balanced, a number for each of the "
                          f"{len(data.classes)} classes in their order, or a mapping from names to numbers")  # fmt: skip
    return {**options, "class_weights": None if weights is None else [float(weight) for weight in weights]}


def _call(function: Any, where: str, *args: Any, **kwargs: Any) -> Any:
    """Call `function`; a keyword that it doesn't take is a setting that a user misspelt."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"{where}: {str(error).partition('() ')[2] or error}") from None
