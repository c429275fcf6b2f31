"""Every setting of a run: one field each, with its default, its limits and one sentence.

Hydra composes command lines against these classes (`imgclf.cli`), and YAML files state differences only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from imgclf.errors import ConfigError
from imgclf.schema import Settings, setting

# What early stopping and the best checkpoint may watch, and which way is better.
MONITORS: dict[str, Literal["min", "max"]] = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_top5": "max",
    "val_macro_f1": "max",
}
changeable = partial(setting, may_change=True)  # a resumed run may have another value
overridable = partial(setting, on_resume=True)  # `resume=<folder>` takes it from the command line
advanced = partial(setting, advanced=True)  # left out of help and config.yaml at its default
_DATA_DIR = "Folder of the data set; demo: drawn on the spot; null: $IMGCLF_DATA/<dataset>, else the cache folder."
_ENGINE = "Runtime of frozen layers; auto: OpenVINO on a CPU from 1,000 images on."
# Limits for numbers that have none by their meaning. Settings come out of files too, from config.yaml and checkpoints of others:
# each number has two ends, so that none makes a run allocate, start or count without end.
_COUNT = 10**9
_ANY = 1e12
_RATE = 1e29  # far beyond any that trains
_SEED = 2**63 - 1  # of a signed integer, which numpy's and torch's generators take
_PROCESSES = 256  # of one machine: the threads of the largest servers
KNOWN = ("asl_alphabet", "cards", "rock_paper_scissors", "sign_mnist", "sports")  # data sets that Kaggle has
ENGINES = ("auto", "eager", "openvino")
MODEL_ENGINES = (*ENGINES, "onnxruntime")  # the last one for exported models only
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


NO_HALF = "weights of 16 bits lose small gradients, which nothing scales up"
NO_AVERAGE = "an average in 8 bits never follows the weights"
_BATCHES = {  # numbers of batches, or fractions of them -> the least number
    "limit_train_batches": 1,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "overfit_batches": 0,
    "val_check_interval": 1,
}


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """How far each random change of a training image may go; the default of each is no change."""

    path = "dataset.augment"
    rotation_degrees: float = setting(0.0, "Rotation angle, from -x to x.", low=0, high=360)
    shift: float = setting(0.0, "Shift along each axis, as a fraction of the side.", low=0, high=10)
    shear_degrees: float = setting(0.0, "Shear angle, from -x to x.", low=0, below=90)
    zoom: float = setting(0.0, "Zoom factor of each axis, from 1 - x to 1 + x.", low=0, high=1)
    horizontal_flip: bool = setting(False, "Mirror left and right with probability 1/2.")
    vertical_flip: bool = setting(False, "Mirror top and bottom with probability 1/2.")
    brightness: float = setting(0.0, "Brightness factor, from 1 - x to 1 + x.", low=0, high=1)
    contrast: float = setting(0.0, "Contrast factor, from 1 - x to 1 + x.", low=0, high=1)
    saturation: float = setting(0.0, "Saturation factor, from 1 - x to 1 + x.", low=0, high=1)
    fill: str = setting("nearest", "What shows beyond the border.", choices=("nearest", "reflect", "black"))


@dataclass(frozen=True)
class LayoutConfig(Settings):
    """How one split lies on disk; which fields apply depends on `kind`."""

    path = "dataset.splits"
    kind: str = setting("folders", "Layout of the split.", choices=("folders", "flat", "pixels", "list"))
    names: list[str] | None = advanced(
        None, "folders, flat: names of the split's folder; '.' is the data folder itself."
    )
    files: list[str] | None = advanced(None, "pixels, list: names of the CSV file; the first that exists is read.")
    anywhere: bool = advanced(False, "Search this split below the data folder too, not only next to train.")
    pattern: str | None = advanced(None, "flat: regular expression for the file's stem with a group (?P<label>...).")
    rows: list[float] | None = advanced(
        None, "pixels: from which to which fraction of the file the split reaches.", low=0, high=1
    )
    channels: int | None = advanced(None, "pixels: 1 (grey) or 3 (RGB); null: by the width of a row.", low=1, high=3)
    label_names: dict[str, str] | None = advanced(None, "pixels: class name of each label in the file.")
    path_column: str = advanced("path", "list: column of the image paths.")
    label_column: str = advanced("label", "list: column of the labels.")


@dataclass(frozen=True)
class DatasetConfig(Settings):
    """A data set: where its splits are, which classes and samples are used, and how batches are made."""

    path = "dataset"
    name: str = setting("custom", "Name of the data set; it names folders and the default data folder.")
    splits: dict[str, LayoutConfig | None] = setting(dict, "Layout of train, val and test, where it differs.")
    classes: list[Any] | None = setting(
        None, "Classes to use; null: all that train has. Quote N, Y, no, on, off, yes.", low=-_SEED, high=_SEED
    )
    batch_size: int = setting(32, "Images per batch, over all processes together.", low=1, high=65_536)
    augment: AugmentConfig | None = setting(None, "Random changes of training images; null: none.")
    augment_val: bool = setting(False, "Augment validation images too, as one reference system did.")
    holdout: str | None = setting(
        None, "How val and test are cut from train; null: the data set's own.", choices=("random", "blocks")
    )
    val_fraction: float = setting(0.2, "Fraction of the rest held out for validation.", low=0, below=1)
    test_fraction: float = setting(0.1, "Fraction held out for testing.", low=0, below=1)
    split_seed: int = setting(0, "Seed of the hold-outs; runs with other seeds share them.", low=0, high=_SEED)
    fraction: float = setting(1.0, "Fraction of train to use, of each class alike.", above=0, high=1)
    num_workers: int | None = overridable(
        None, "DataLoader workers; null: by the number of cores.", low=0, high=_PROCESSES
    )
    timeout_seconds: float = overridable(
        300.0, "A worker that is silent for so long ends the run.", above=0, high=_COUNT
    )
    flips: list[str] | None = changeable(None, "Flips that keep the class: horizontal, vertical; null: known ones.")
    range: str = setting(
        "full", "White in 16-bit grey; auto: the largest value of train, as a power of two.", choices=("auto", "full")
    )
    exclude: str | list[str] | None = changeable(None, "Path of a check.json, whose excluded files are left out.")


@dataclass(frozen=True)
class HeadConfig(Settings):
    """The layers from the backbone's features to the logits."""

    path = "model.head"
    hidden: list[int] = setting(list, "Widths of the dense layers before the last.", low=1, high=65_536)
    pool: str = setting("avg", "Pooling of the feature map.", choices=("avg", "max", "flatten"))
    pool_at: str = setting("before", "Pool before or after the hidden layers.", choices=("before", "after"))
    dropout: float = setting(0.0, "Dropout before the last layer.", low=0, high=1)
    batch_norm: bool = setting(False, "BatchNorm after each hidden layer.")
    bn_momentum: float = setting(0.01, "Momentum of its statistics; short runs need 0.1.", low=0, high=1)
    activation: str = setting(
        "relu", "Activation of the hidden layers.", choices=("relu", "gelu", "silu", "hardswish", "tanh", "none")
    )
    l2: Any = setting(
        0.0, "L2 penalty: one number for the hidden layers, or one for each dense layer.", low=0, high=_ANY
    )


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Backbone and head of the network, and which part of it is trained."""

    path = "model"
    name: str = changeable("timm", "Name of the model; it names folders.")
    backbone: str = setting("resnet18", "Any name of timm.list_models().")
    backbone_kwargs: dict[str, Any] = setting(dict, "More keywords for timm.create_model.", low=-_ANY, high=_ANY)
    pretrained: bool = changeable(True, "Load ImageNet weights, from $IMGCLF_WEIGHTS or the hub; false for the demo.")
    weights: str | None = changeable(
        None, "A safetensors or pth file, or a run or checkpoint of imgclf; it replaces pretrained."
    )
    in_chans: int = setting(3, "Channels of the input: 3 (RGB) or 1 (grey).", low=1, high=3)
    freeze: Any = setting(
        "none", "Frozen part: none, all, n (all but the last n modules), or a list of globs.", low=-_COUNT, high=_COUNT
    )
    unfreeze_epoch: int | None = setting(
        None, "Epochs with the frozen part frozen; then all is trained.", low=0, high=_COUNT
    )
    head: HeadConfig = setting(HeadConfig, "Layers after the backbone.")


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """The optimizer, by timm's name."""

    path = "optimizer"
    name: str = setting("adamw", "Any name of timm.optim.list_optimizers().")
    lr: float = setting(1e-3, "Learning rate.", low=0, high=_RATE)
    weight_decay: float = setting(0.01, "Weight decay of matrices; vectors have none.", low=0, high=_RATE)
    backbone_lr: float | None = setting(None, "Learning rate of the backbone; null: lr.", low=0, high=_RATE)
    options: dict[str, Any] = setting(
        dict, "More keywords of the optimizer, such as +optimizer.options.momentum=0.9.", low=-_ANY, high=_ANY
    )


@dataclass(frozen=True)
class SchedulerConfig(Settings):
    """The learning-rate schedule."""

    path = "scheduler"
    name: str = setting("cosine", "Kind of schedule.", choices=("none", "cosine", "step", "plateau", "poly"))
    warmup_epochs: float = setting(0, "Epochs over which the rate rises to its value.", low=0, high=_COUNT)
    min_lr: float = setting(0.0, "Lowest rate.", low=0, high=_ANY)
    decay_epochs: float | None = setting(
        None, "step: epochs between two decays; null: a third of the run.", above=0, high=_COUNT
    )
    decay_rate: float | None = setting(
        None, "step, plateau: factor (null: 0.1); poly: power (null: 1).", low=0, high=_ANY
    )
    patience_epochs: int = setting(5, "plateau: epochs without improvement before the rate decays.", low=0, high=_COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "plateau" and self.warmup_epochs:
            raise ConfigError("scheduler.name=plateau has no warm-up; pass scheduler.warmup_epochs=0")

    def check_length(self, max_epochs: int, max_steps: int | None) -> None:
        """Raise `ConfigError` where the schedule needs the length of a run that has none: `max_epochs` is -1, and
        `max_steps` None or -1.
        """
        of_length = self.name in ("cosine", "poly") or (self.name == "step" and self.decay_epochs is None)
        if of_length and max_epochs == -1 and max_steps in (None, -1):
            own = ", or scheduler.decay_epochs=<number>" if self.name == "step" else ""
            raise ConfigError(
                f"trainer.max_epochs=-1: scheduler.name={self.name} ends with the run, whose length it must know; pass a "
                f"number of epochs, trainer.max_steps=<number>, scheduler.name=none or plateau{own}"
            )


@dataclass(frozen=True)
class LossConfig(Settings):
    """The cross-entropy that is minimised."""

    path = "loss"
    label_smoothing: float = setting(0.0, "Label smoothing.", low=0, below=1)
    class_weights: Any = setting(
        None, "null, balanced, one number for each class in order, or {class: weight}.", low=0, high=_ANY
    )


@dataclass(frozen=True)
class MixingConfig(Settings):
    """MixUp and CutMix: alpha of the Beta distribution that the share is drawn from, 0 for off."""

    path = "mixing"
    mixup: float = setting(0.0, "Alpha of MixUp.", low=0, high=1000)
    cutmix: float = setting(0.0, "Alpha of CutMix.", low=0, high=1000)


@dataclass(frozen=True)
class CheckpointConfig(Settings):
    """Which checkpoints a run writes."""

    path = "checkpoint"
    monitor: str = setting("val_accuracy", "Metric by which the best epoch is chosen.", choices=tuple(MONITORS))
    keep: str = changeable(
        "best",
        "Epochs kept besides the last: the best, improvements, or all.",
        choices=("best", "improved", "all"),
    )
    every_minutes: float | None = changeable(
        5.0, "Renew last.ckpt at least this often within an epoch.", low=0, high=_COUNT
    )
    every_n_steps: int | None = changeable(None, "Renew last.ckpt every so many steps.", low=1, high=_COUNT)


@dataclass(frozen=True)
class EarlyStoppingConfig(Settings):
    """Stop when a metric no longer improves."""

    path = "callbacks.early_stopping"
    monitor: str = setting("val_loss", "Metric to watch.", choices=tuple(MONITORS))
    patience: int = setting(10, "Epochs without improvement before the run stops.", low=0, high=_COUNT)
    min_delta: float = setting(0.0, "Smallest change that counts as an improvement.", low=0, high=_ANY)
    stopping_threshold: float | None = advanced(
        None, "Stop as soon as the metric reaches this value.", low=-_ANY, high=_ANY
    )
    divergence_threshold: float | None = advanced(
        None, "Stop as soon as the metric is worse than this value.", low=-_ANY, high=_ANY
    )


@dataclass(frozen=True)
class PruningConfig(Settings):
    """Stop a trial of a sweep that is worse than the median of the others."""

    path = "callbacks.pruning"
    trials: int = setting(5, "Other trials that must have come as far.", low=1, high=_COUNT)
    epochs: int = setting(3, "Epochs before which no trial is stopped.", low=1, high=_COUNT)


@dataclass(frozen=True)
class CallbacksConfig(Settings):
    """What may end a run before its last epoch."""

    path = "callbacks"
    early_stopping: EarlyStoppingConfig | None = setting(None, "Stop when a metric no longer improves; null: never.")
    pruning: PruningConfig | None = setting(None, "Stop a trial that is worse than the others; null: never.")


@dataclass(frozen=True)
class LoggerConfig(Settings):
    """An experiment tracker in addition to history.csv."""

    path = "logger"
    name: str = setting("none", "Tracker.", choices=("none", "csv", "tensorboard", "mlflow", "wandb"))
    uri: str | None = advanced(None, "mlflow: address; null: sqlite:///outputs/mlflow.db, for all runs together.")
    experiment_name: str = advanced("imgclf", "mlflow: name of the experiment.")
    project: str = advanced("imgclf", "wandb: name of the project.")
    offline: bool = advanced(True, "wandb: keep the run on this machine; `wandb sync` sends it later.")
    options: dict[str, Any] = advanced(dict, "More keywords of Lightning's logger.", low=-_ANY, high=_ANY)


@dataclass(frozen=True)
class TrainerConfig(Settings):
    """Arguments of Lightning's Trainer; null means Lightning's own default."""

    path = "trainer"
    reserved = {
        "logger": "logger=csv, tensorboard, mlflow or wandb adds a tracker",
        "callbacks": "callbacks.early_stopping and callbacks.pruning are settings",
        "enable_checkpointing": "checkpoint.keep says which checkpoints stay",
        "default_root_dir": "hydra.run.dir=<folder> names the run's folder",
        "limit_predict_batches": "imgclf predict takes images",
        "num_sanity_val_steps": "debug=fdr tries everything on one batch",
        **dict.fromkeys(
            (
                *("enable_progress_bar", "enable_model_summary", "enable_autolog_hparams", "barebones"),
                *("plugins", "model_registry", "use_distributed_sampler", "reload_dataloaders_every_n_epochs"),
            ),
            "leave it out, or train with Lightning's own Trainer from Python",
        ),
    }
    accelerator: str = overridable("auto", "Kind of device.", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: Any = overridable(1, "Number of devices, or a list of them; one process each.", low=-1, high=_PROCESSES)
    num_nodes: int = overridable(1, "Number of machines.", low=1, high=10_000)
    strategy: str | None = overridable(None, "ddp for several processes; null: by the number of devices.")
    precision: str = setting("32-true", "Floating-point precision.", choices=PRECISIONS)
    max_epochs: int = overridable(
        15, "Number of epochs; -1: until something else ends the run.", low=-_COUNT, high=_COUNT
    )
    limit_train_batches: int | float | None = setting(
        None, "Batches per epoch, or a fraction of them.", low=-_COUNT, high=_COUNT
    )
    limit_val_batches: int | float | None = setting(
        None, "Validation batches, or a fraction of them.", low=-_COUNT, high=_COUNT
    )
    limit_test_batches: int | float | None = setting(
        None, "Batches of the final evaluation, or a fraction of them.", low=-_COUNT, high=_COUNT
    )
    accumulate_grad_batches: int = setting(1, "Batches per optimizer step.", low=1, high=_COUNT)
    gradient_clip_val: float | None = setting(None, "Largest norm of the gradients.", low=0, high=_ANY)
    deterministic: bool | str | None = setting(
        False, "Use deterministic algorithms only.", choices=("false", "true", "warn")
    )
    gradient_clip_algorithm: str | None = advanced(None, "Clip by norm or value.", choices=("norm", "value"))
    overfit_batches: int | float | None = advanced(
        None, "Train on the same few batches again and again.", low=-_COUNT, high=_COUNT
    )
    profiler: str | None = advanced(None, "Profile the run.", choices=("simple", "advanced", "pytorch"))
    fast_dev_run: int | bool | None = advanced(
        None, "Run one epoch of this many batches, as a trial.", low=0, high=_COUNT
    )
    min_epochs: int | None = advanced(None, "Least number of epochs.", low=0, high=_COUNT)
    max_steps: int | None = advanced(
        None, "Number of optimizer steps after which training ends.", may_change=True, low=-_COUNT, high=_COUNT
    )
    min_steps: int | None = advanced(None, "Least number of optimizer steps.", low=0, high=_COUNT)
    max_time: Any = advanced(
        None,
        "Time of training after which a run stops, as DD:HH:MM:SS; resumed, it has as much again.",
        on_resume=True,
        low=0,
        high=_COUNT,
    )
    val_check_interval: int | float | None = advanced(
        None, "Batches between validations, or a fraction.", low=-_COUNT, high=_COUNT
    )
    check_val_every_n_epoch: int | None = advanced(None, "Epochs between validations.", low=1, high=_COUNT)
    log_every_n_steps: int | None = advanced(None, "Steps between two lines of a tracker.", low=0, high=_COUNT)
    benchmark: bool | None = advanced(None, "Let cuDNN choose its algorithms by speed.")
    inference_mode: bool | None = advanced(None, "Validate under torch.inference_mode.")
    detect_anomaly: bool | None = advanced(None, "Let autograd look for NaN.")
    sync_batchnorm: bool | None = advanced(None, "Share BatchNorm's statistics between processes.")

    def __post_init__(self) -> None:
        if self.precision == "16-true":
            raise ConfigError(f"trainer.precision=16-true: {NO_HALF}; pass 16-mixed or bf16-true")
        super().__post_init__()
        for name, end in (("max_epochs", "no end"), ("max_steps", "any number")):
            value = getattr(self, name)
            if value is not None and value < 1 and value != -1:
                raise ConfigError(f"trainer.{name}={value}: expected a whole number of at least 1, or -1 for {end}")
        for name, least in _BATCHES.items():
            value = getattr(self, name)
            low = 0 if not least else 1 if isinstance(value, int) else 1e-9
            if value is not None and not (low <= value and (isinstance(value, int) or value <= 1)):
                raise ConfigError(
                    f"trainer.{name}={value}: expected a whole number of at least {least}, or a fraction of at most 1"
                )
        time = self.max_time
        written = isinstance(time, str) and re.fullmatch(r"\d+(:\d\d){3}", time.strip()) and re.search("[1-9]", time)
        if not (written or time is None or isinstance(time, dict)):
            raise ConfigError(f"trainer.max_time={time}: expected a time above 0 as DD:HH:MM:SS")


@dataclass(frozen=True)
class CacheConfig(Settings):
    """Where decoded images and features are cached: `kind` is "disk", "ram" or "off"; `budget_gb` limits all of them."""

    kind: str = setting("disk", choices=("disk", "ram", "off"))
    budget_gb: float = setting(32.0, low=0, high=_COUNT)

    @classmethod
    def key(cls, name: str) -> str:
        """Return the setting's name on the command line."""
        return {"kind": "cache", "budget_gb": "cache_gb"}[name]


@dataclass(frozen=True)
class RunConfig(Settings):
    """All settings of `imgclf train`."""

    aliases = {"epochs": "trainer.max_epochs", "learning_rate": "optimizer.lr", "lr": "optimizer.lr"}
    seed: int = setting(0, "Seed of weights, order and augmentation.", low=0, high=_SEED)
    data_dir: str | None = overridable(None, _DATA_DIR)
    image_size: int | None = setting(None, "Side in pixels; null: that of the weights.", low=1, high=4096)
    resize: str = setting("squash", "How an image becomes a square.", choices=("squash", "crop", "letterbox"))
    ckpt_path: str | None = changeable(None, "last: resume the run in hydra.run.dir; or a path.")
    resume: str | None = changeable(None, "Run to resume, with its own settings: `imgclf resume <run>`.")
    find: str | None = changeable(None, "Suggest a value instead of training.", choices=("lr", "batch_size"))
    check: bool | str = changeable(
        False,
        "Check the data first, and stop at files that can't be read; exclude: train without them.",
        choices=("false", "true", "exclude"),
    )
    cache: str = changeable("disk", "Where decoded images and features are cached.", choices=("disk", "ram", "off"))
    cache_gb: float = changeable(32.0, "Size limit of the cache, in gigabytes.", low=0, high=_COUNT)
    features: str = setting(
        "auto", "auto: cache the outputs of frozen layers; off: compute them.", choices=("auto", "off")
    )
    views: int | None = setting(
        None, "Augment each image in so many fixed ways; null: newly each epoch.", low=1, high=10_000
    )
    engine: str = setting("auto", _ENGINE, choices=ENGINES)
    ema_decay: float | None = setting(None, "EMA decay of the weights; evaluation uses the average.", above=0, below=1)
    calibrate: bool = changeable(False, "Fit a temperature on validation, to calibrate probabilities.")
    report: bool | None = changeable(None, "Write report.html and plots; null: except in a sweep.")
    export: bool = changeable(False, "Write checkpoints/best.onnx too, which answers without torch.")
    verbose: bool = changeable(False, "Print the trials of a sweep in full, not only a line for each.")
    trials: int = changeable(20, "Trials of hparams_search, finished ones included.", low=1, high=_COUNT)
    task_name: str = changeable("train", "Free text stored in config.yaml, to find the run later.")
    tags: list[str] = changeable(list, "Words stored in config.yaml, to find the run later.")
    dataset: DatasetConfig = setting(DatasetConfig, "The data set.")
    model: ModelConfig = setting(ModelConfig, "The network.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "The optimizer.")
    scheduler: SchedulerConfig = setting(SchedulerConfig, "The learning-rate schedule.")
    loss: LossConfig = setting(LossConfig, "The loss.")
    mixing: MixingConfig = setting(MixingConfig, "MixUp and CutMix.")
    trainer: TrainerConfig = setting(TrainerConfig, "Lightning's Trainer.")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "Checkpoints.")
    callbacks: CallbacksConfig = setting(CallbacksConfig, "Early stopping and pruning.")
    logger: LoggerConfig = changeable(LoggerConfig, "Experiment tracker.")

    def __post_init__(self) -> None:
        if self.check in ("true", "false"):  # as text, which is true in any case
            object.__setattr__(self, "check", self.check == "true")
        super().__post_init__()
        if not self.trainer.fast_dev_run:
            self.scheduler.check_length(self.trainer.max_epochs, self.trainer.max_steps)
        if self.ema_decay and self.trainer.precision == "bf16-true":
            raise ConfigError(
                f"trainer.precision=bf16-true with ema_decay={self.ema_decay}: {NO_AVERAGE}; leave one out"
            )


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """All settings of `imgclf evaluate`."""

    checkpoint: str = setting("???", "A run's folder, a checkpoint, or latest.")
    split: str = setting("test", "Split to measure.", choices=("train", "val", "test"))
    data_dir: str | None = setting(None, "Folder of the data; null: where the checkpoint was trained.")
    dataset: DatasetConfig | None = setting(None, "The data set; null: that of the checkpoint, with its settings.")
    device: str = setting("auto", "Device: auto, cpu, cuda, mps.")
    engine: str = setting("auto", _ENGINE, choices=MODEL_ENGINES)
    precision: str = setting("fp32", "Floating-point precision.", choices=("fp32", "bf16"))
    tta: bool = setting(False, "Test-time augmentation over label-preserving flips (dataset.flips).")
    report: bool = setting(True, "Write report.html and plots.")


@dataclass(frozen=True)
class CheckConfig(Settings):
    """All settings of `imgclf check`."""

    unused = frozenset(
        f"dataset.{name}"
        for name in ("batch_size", "augment", "augment_val", "num_workers", "timeout_seconds", "flips")
    )
    data_dir: str | None = setting(None, _DATA_DIR)
    quick: bool = setting(False, "Decode a few images of each class only; --quick is the same.")
    seed: int = setting(0, "Seed of dataset.fraction, and of the images that check.html shows.", low=0, high=_SEED)
    workers: int | None = setting(None, "Decoding processes; null: by the number of cores.", low=0, high=_PROCESSES)
    dataset: DatasetConfig = setting(DatasetConfig, "The data set.")


@dataclass(frozen=True)
class DownloadConfig(Settings):
    """All settings of `imgclf download`."""

    unused = frozenset({"dataset"})
    dataset: DatasetConfig = setting(DatasetConfig, "The data set.")
