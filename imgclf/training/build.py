"""From a plan to the objects of a run: data, classifier, Trainer, cached features."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

from imgclf.config import CacheConfig, LoggerConfig, LossConfig, ModelConfig, RunConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import build_data
from imgclf.errors import CheckpointError, ConfigError, nearest, one_line, require_package
from imgclf.evaluation.classification import TOP, has_top5
from imgclf.exporting import require_packages
from imgclf.files.run_folder import find_checkpoint
from imgclf.models import ImageModel, load_image_model
from imgclf.models.backbone import check_name
from imgclf.models.metadata import CheckpointMetadata, DataFacts
from imgclf.models.network import Network
from imgclf.models.weights import describe_weights, find_weights
from imgclf.signals import Signals
from imgclf.training.callbacks import build_callbacks
from imgclf.training.checkpointing import AtomicCheckpointIO, CheckpointCallback
from imgclf.training.checks import check_batch_norm
from imgclf.training.classifier import ImageClassifier
from imgclf.training.csv_tracker import CsvTracker
from imgclf.training.feature_cache import FeatureCache, attach_features
from imgclf.training.optim import check_optimizer
from imgclf.training.ranks import with_time_limit
from imgclf.training.resume import ResumePoint, RunPlan

__all__ = ["Run", "build_classifier", "build_run", "build_trainer", "check_names", "data_of", "is_first_process"]

# Lightning's others start processes that can't take a run along, or share the weights out among them.
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "single_device")


@dataclass
class Run:
    """The objects of one run; `features` are None where every epoch needs the images themselves."""

    plan: RunPlan
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: Trainer
    signals: Signals
    features: FeatureCache | None = None


def build_run(plan: RunPlan, signals: Signals) -> Run:
    """Build everything that a run needs; raises `DataError`, `ConfigError`, `CheckpointError`."""
    config, point = plan.config, plan.resume
    data = data_of(config)
    if data.settings.exclude:  # as a list: the run no longer needs the file that it came from
        config = replace(config, dataset=replace(config.dataset, exclude=data.settings.exclude))
        plan = replace(plan, config=config)
    if config.calibrate and not len(data.samples["val"]):
        raise ConfigError("calibrate=true: there are no validation images to fit a temperature on; leave it out")
    trainer = build_trainer(config, plan.folder, data, signals, point)
    saving = next(one for one in trainer.checkpoint_callbacks if isinstance(one, CheckpointCallback))
    saving.forget_best = plan.best is None
    if point:
        point.check_data(data)
        classifier = ImageClassifier.load_from_checkpoint(point.path).train()
        classifier.metadata = _metadata(config, data)
    else:
        classifier = build_classifier(config, data)
    check_batch_norm(classifier, config.dataset.batch_size // trainer.world_size)
    if point and point.stopped_early:
        trainer.fit_loop.max_epochs = point.epochs
    engine = point.metadata.get("engine") if point else None
    features = attach_features(config, classifier, data, trainer.strategy.root_device, engine)
    data.connect(classifier.preprocess, features, stop=lambda: signals.pending is not None)
    return Run(plan, data, classifier, trainer, signals, features)


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for a name that timm or Lightning doesn't know, and for a package that isn't installed."""
    check_optimizer(config.optimizer)
    check_name(config.model.backbone)
    if (strategy := config.trainer.strategy) is not None and strategy not in _STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={strategy}: imgclf trains on one device, or with ddp on several; pass "
            "trainer.strategy=ddp, or leave it out"
        )
    if config.logger.name not in ("none", "csv"):
        require_package(config.logger.name, config.logger.name, f"logger={config.logger.name}")
    if config.export:
        require_packages()


def data_of(config: RunConfig) -> ImageDataModule:
    """Return the data module of a run's settings, set up; raises `DataError`, `ConfigError`."""
    cache = CacheConfig(config.cache, config.cache_gb)
    return build_data(config.dataset, config.data_dir, config.seed, cache, config.views)


def build_classifier(config: RunConfig, data: ImageDataModule) -> ImageClassifier:
    """Return the network for the data's classes with its weights, and let the data use the preprocessing that they need.

    Raises `ConfigError`, `CheckpointError`.
    """
    model, channels = config.model, config.model.in_chans
    own = _own_model(model)
    if model.pretrained and not model.weights and (file := find_weights(model.backbone)):
        model = replace(model, weights=str(file))
    chosen: dict[str, Any] = {"resize": config.resize, **({"size": config.image_size} if config.image_size else {})}
    if own:
        preprocess, keywords = replace(own.preprocess, **chosen), _keywords_of(own)
    else:
        preprocess, keywords = describe_weights(model.backbone, model.weights, **chosen)
    preprocess = replace(preprocess.with_channels(channels), bits=data.preprocess.bits)
    model = replace(model, backbone_kwargs={**model.backbone_kwargs, **keywords})
    data.connect(preprocess)
    if not model.weights and not model.pretrained:  # the training set alone tells how pixels are distributed
        mean, std = data.statistics(channels)
        preprocess = replace(preprocess, mean=mean, std=std)
        data.connect(preprocess)
    classifier = ImageClassifier(
        model,
        data.classes,
        preprocess,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        loss=_with_class_weights(config.loss, data),
        mixing=config.mixing,
        ema_decay=config.ema_decay,
        monitor=config.checkpoint.monitor,
        seed=config.seed,
    )
    if own:
        classifier.start_from(_network_of(own))
    elif model.weights:
        classifier.load_weights(model.weights)
    elif model.pretrained:
        try:
            classifier.load_pretrained()
        except CheckpointError as error:
            others = "or pass model.weights=<file>, or model.pretrained=false to start from random weights"
            raise CheckpointError(f"{error}; {others}") from error
    classifier.metadata = _metadata(config, data)
    return classifier


def _own_model(model: ModelConfig) -> ImageModel | None:
    """Return the model that `model.weights` names where that is a run or a checkpoint of imgclf; raises `CheckpointError`."""
    path = Path(model.weights or "").expanduser()
    if not model.weights or not (model.weights == "latest" or path.is_dir() or path.suffix == ".ckpt"):
        return None
    own = load_image_model(find_checkpoint(model.weights))
    name = _network_of(own).backbone.name
    if name != model.backbone:
        raise CheckpointError(
            f"model.weights={model.weights}: a {name}, but the network is {model.backbone}; "
            f"pass model=timm model.backbone={name}, or other weights"
        )
    return own


def _network_of(own: ImageModel) -> Network:
    assert isinstance(own.network, Network)  # a network of ImageNet's classes is none, and has no checkpoint
    return own.network


def _keywords_of(own: ImageModel) -> Mapping[str, Any]:
    trained = own.metadata.config or {}
    return ModelConfig.from_dict(trained.get("model")).backbone_kwargs


def build_trainer(
    config: RunConfig, folder: Path, data: ImageDataModule, signals: Signals, point: ResumePoint | None = None
) -> Trainer:
    """Return Lightning's Trainer with `config.trainer`, and imgclf's callbacks and checkpoints in `folder`; it continues the
    run of `point`, if any.

    Without validation images there is nothing to stop early by.
    """
    options = {key: value for key, value in config.trainer.to_dict().items() if value is not None}
    options |= _batch_counts(options, data)
    if not len(data.samples["val"]):
        options["limit_val_batches"] = 0
    if strategy := options.get("strategy"):
        options["strategy"] = with_time_limit(strategy, config.dataset.timeout_seconds)
    validated = options.get("limit_val_batches") != 0
    early = config.callbacks.early_stopping
    if early and early.monitor == "val_top5" and not has_top5(len(data.classes)):
        few = f"no metric of {len(data.classes)} classes; top-5 accuracy needs more than {TOP}"
        raise ConfigError(f"callbacks.early_stopping.monitor=val_top5: {few}")
    stopping = (config.callbacks.early_stopping, config.callbacks.pruning) if validated else (None, None)
    max_seconds = _seconds_of(options.pop("max_time", None))
    own: dict[str, Any] = {
        "default_root_dir": folder,
        "callbacks": build_callbacks(folder, signals, config.checkpoint, *stopping, max_seconds),
        "logger": _build_logger(config.logger, folder, point),
        "plugins": [AtomicCheckpointIO()],
        "enable_checkpointing": True,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    try:
        trainer = Trainer(**own, **options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        kind = config.trainer.accelerator
        others = (
            f"; trainer.accelerator={kind} needs one, trainer=cpu or trainer=auto doesn't"
            if "backend" in str(error)
            else ""
        )
        raise ConfigError(f"trainer: {one_line(error, 300)}{others}") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):  # which Lightning chooses in a notebook
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}: a notebook can't train in several processes; pass trainer.devices=1, "
            "or run `imgclf train` in a terminal"
        )
    return trainer


def _batch_counts(options: Mapping[str, Any], data: ImageDataModule) -> dict[str, int]:
    """Return 1 for each of Lightning's `options` that is a fraction of an epoch's batches below one, which it would refuse
    after the run has begun; raises `ConfigError` for validations that are more batches apart than an epoch has.
    """
    batches = {split: data.num_batches(split) for split in ("train", "val")}
    changed = {}
    for name, splits in (
        ("limit_train_batches", ("train",)),
        ("limit_val_batches", ("val",)),
        ("overfit_batches", ("train", "val")),
    ):
        value, fewest = options.get(name), min(batches[split] for split in splits)
        if isinstance(value, float) and 0 < value * fewest < 1:
            changed[name] = 1
    limit = changed.get("limit_train_batches", options.get("limit_train_batches", 1.0))
    count = batches["train"]
    count = int(limit * count) if isinstance(limit, float) else min(limit, count)
    between = options.get("val_check_interval")
    if isinstance(between, int) and between > count and options.get("limit_val_batches") != 0:
        raise ConfigError(
            f"trainer.val_check_interval={between}: an epoch has {count} batches; pass fewer, or a fraction such as 0.5"
        )
    return changed


def _seconds_of(max_time: Any) -> float | None:
    """Return `trainer.max_time` in seconds; raises `ConfigError`."""
    try:
        return Timer(max_time).time_remaining()  # of a timer that hasn't begun: all of it
    except (MisconfigurationException, TypeError, OverflowError) as error:
        raise ConfigError(f"trainer.max_time={max_time}: expected DD:HH:MM:SS, such as 00:01:30:00") from error


def is_first_process() -> bool:
    """Return whether this is the first of a distributed run's processes, as far as can be known before it has begun."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _build_logger(config: LoggerConfig, folder: Path, point: ResumePoint | None = None) -> Logger | bool:
    """Return the tracker of `config`; False for none. What isn't shared by all runs lies below `folder`.

    Raises `ConfigError` for one whose package isn't installed.
    """
    options, label = config.options, str(folder).rpartition("outputs/")[2].strip("/")  # as people call a run
    try:
        if config.name == "csv":
            if point and (folder / "csv").exists():
                return CsvTracker(folder, point.checkpoint["global_step"], point.metadata["history"], **options)
            return CsvTracker(folder, **options)
        if config.name == "tensorboard":
            return TensorBoardLogger(folder, name="tensorboard", version="", **options)
        if config.name == "mlflow":
            uri = config.uri or f"sqlite:///{Path('outputs').absolute() / 'mlflow.db'}"
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            artifacts = str(folder / "mlflow")
            return MLFlowLogger(config.experiment_name, label, uri, artifact_location=artifacts, **options)
        if config.name == "wandb":
            return WandbLogger(label, folder, project=config.project, offline=config.offline, **options)
        return False
    except TypeError as error:
        raise ConfigError(f"logger.options: {one_line(error, 200)}") from None


def _with_class_weights(config: LossConfig, data: ImageDataModule) -> LossConfig:
    """Return the loss with one weight per class: "balanced" is N / (K * count), as in scikit-learn's `compute_class_weight`."""
    weights = config.class_weights
    if weights == "balanced":
        counts = data.samples["train"].counts()
        weights = (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()
    elif isinstance(weights, Mapping):
        weights = {str(name): weight for name, weight in weights.items()}
        if unknown := sorted(set(weights) - set(data.classes)):
            raise ConfigError(
                f"loss.class_weights: {', '.join(unknown)} is no class of {data.name}; {nearest(unknown[0], data.classes)}"
            )
        weights = [weights.get(name, 1.0) for name in data.classes]
    if weights is not None and not (
        isinstance(weights, (list, tuple))
        and len(weights) == len(data.classes)
        and all(isinstance(weight, (int, float)) for weight in weights)
    ):
        raise ConfigError(
            f"loss.class_weights={config.class_weights!r}: expected null, balanced, a number for each of the "
            f"{len(data.classes)} classes in their order, or a mapping from names to numbers"
        )
    return replace(config, class_weights=None if weights is None else [float(weight) for weight in weights])


def _metadata(config: RunConfig, data: ImageDataModule) -> CheckpointMetadata:
    """Return what every checkpoint holds besides the network: where it comes from, as plain data."""
    counts = {split: len(samples) for split, samples in data.samples.items()}
    facts = DataFacts(data.name, str(data.root), counts, list(data.flips))
    return CheckpointMetadata(config=config.to_dict(), data=facts, fingerprint=data.fingerprint())
