"""The LightningModule: how an image model is trained. Its hyper-parameters are plain data."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imgclf.config import MONITORS, HeadConfig, LossConfig, MixingConfig, ModelConfig, OptimizerConfig, SchedulerConfig
from imgclf.console import silence_advertisements, silence_trainer_warnings
from imgclf.data.loader import Batch
from imgclf.errors import CheckpointError, ConfigError
from imgclf.evaluation import EpochMetrics
from imgclf.evaluation.classification import TOP, has_top5
from imgclf.models import ImageModel
from imgclf.models.checkpoint import check_checkpoint, checkpoint_errors, read_checkpoint
from imgclf.models.metadata import CheckpointMetadata
from imgclf.models.network import Network
from imgclf.models.weights import find_weights, load_pretrained, load_weights, read_note
from imgclf.preprocess import Preprocess
from imgclf.training.batches import as_batch, as_pixels
from imgclf.training.checks import check_fit, single_image
from imgclf.training.optim import build_ema, build_optimizer, build_schedule, class_weights, mixup_cutmix

__all__ = ["ImageClassifier"]

Values = Mapping[str, Any]


class ImageClassifier(LightningModule):
    """Trains an `ImageModel` for `classes`, whose weights are random until `load_weights` or `load_pretrained`.

    Each group of settings is the dataclass of `imgclf.config` or a mapping of its fields; None means its defaults.
    `model`: `pretrained`, `weights` and `name` have no effect here, and `in_chans` follows from `preprocess`.
    `loss.class_weights`: None, or one number per class. `ema_decay`: decay of an average of the weights, with which
    `eval_model` then predicts. `monitor`: metric that a plateau schedule watches. Raises `ConfigError`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: ModelConfig | Values,
        classes: Sequence[str],
        preprocess: Preprocess | Values,
        *,
        optimizer: OptimizerConfig | Values | None = None,
        scheduler: SchedulerConfig | Values | None = None,
        loss: LossConfig | Values | None = None,
        mixing: MixingConfig | Values | None = None,
        ema_decay: float | None = None,
        monitor: str = "val_accuracy",
        seed: int = 0,
    ) -> None:
        super().__init__()
        silence_advertisements()
        preprocess = preprocess if isinstance(preprocess, Preprocess) else Preprocess.from_dict(dict(preprocess))
        self.model_config = replace(ModelConfig.from_dict(model), in_chans=preprocess.channels)
        self.optimizer_config = OptimizerConfig.from_dict(optimizer)
        self.scheduler_config = SchedulerConfig.from_dict(scheduler)
        self.loss_config = LossConfig.from_dict(loss)
        self.mixing_config = MixingConfig.from_dict(mixing)
        self.monitor, self.seed = monitor, seed
        if monitor not in MONITORS:
            raise ConfigError(f"monitor={monitor!r}: expected one of {', '.join(MONITORS)}")
        if monitor == "val_top5" and not has_top5(len(classes)):
            raise ConfigError(
                f"monitor=val_top5: no metric of {len(classes)} classes; top-5 accuracy needs more than {TOP}"
            )
        groups = {
            "model": self.model_config.to_dict(),
            "preprocess": preprocess.to_dict(),
            "optimizer": self.optimizer_config.to_dict(),
            "scheduler": self.scheduler_config.to_dict(),
            "loss": self.loss_config.to_dict(),
            "mixing": self.mixing_config.to_dict(),
        }
        values = {"classes": list(classes), "ema_decay": ema_decay, "monitor": monitor, "seed": seed}
        self.save_hyperparameters({**groups, **values})
        self.model = ImageModel.build(self.model_config, classes, preprocess, seed)
        self.ema = build_ema(self.model, ema_decay) if ema_decay is not None else None
        self.metadata = CheckpointMetadata()
        weights = class_weights(self.loss_config, len(self.classes))
        self.register_buffer("class_weights", weights, persistent=False)
        self.eval_metrics = EpochMetrics(len(self.classes))
        self.train_metrics = EpochMetrics(len(self.classes))
        self.schedule: Scheduler | ReduceLROnPlateau | None = None
        self._second_phase = False  # the network is built with the first phase's parts frozen
        self._began = time.perf_counter()
        self._validated: dict[str, float] = {}  # metrics of this epoch's validation

    @property
    def eval_model(self) -> ImageModel:
        """The model to predict with: the one with averaged weights where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def network(self) -> Network:
        """The network that is trained."""
        assert isinstance(self.model.network, Network)
        return self.model.network

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.model.classes

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing that the network expects."""
        return self.model.preprocess

    @property
    def metadata(self) -> CheckpointMetadata:
        """Plain data that travels in every checkpoint."""
        return self.model.metadata

    @metadata.setter
    def metadata(self, metadata: CheckpointMetadata) -> None:
        """Share the metadata between the trained and the averaged model."""
        self.model.metadata = self.eval_model.metadata = metadata

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per epoch, from epoch 1 on, with the columns of `history.csv`."""
        return self.metadata.history

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax."""
        return self.metadata.temperature

    def flips(self) -> tuple[str, ...]:
        """Return the flips that keep an image's class; raises `ConfigError` where the data set names none."""
        return self.metadata.flips()

    def load_weights(self, path: str | Path) -> None:
        """Give the backbone the weights in a safetensors or pth file; raises `CheckpointError` if they don't fit."""
        needed = read_note(path, self.model_config.backbone).kwargs
        given = self.model_config.backbone_kwargs
        if lacking := {key: value for key, value in needed.items() if given.get(key) != value}:
            raise CheckpointError(f"{path}: these weights need a network with backbone_kwargs={lacking}")
        load_weights(self.network.backbone, path, self.model_config.backbone)
        self._restart_average()

    def load_pretrained(self, path: str | Path | None = None) -> None:
        """Give the backbone the weights in a safetensors or pth file; without one those in the folder $IMGCLF_WEIGHTS that
        have the network's name, else timm's, from the hub or its local cache.

        Raises `CheckpointError` without them.
        """
        path = path or find_weights(self.model_config.backbone)
        if path is not None:
            self.load_weights(path)
            return
        name, kwargs = self.model_config.backbone, self.model_config.backbone_kwargs
        load_pretrained(self.network.backbone, name, kwargs, self.preprocess.channels, self.preprocess.size)
        self._restart_average()

    def replace_head(self, classes: Sequence[str], head: HeadConfig | Values | None = None) -> "ImageClassifier":
        """Return a copy for other classes: this backbone's weights under a new random head (like this one by default)."""
        model = self.model_config if head is None else replace(self.model_config, head=HeadConfig.from_dict(head))
        loss = replace(self.loss_config, class_weights=None)
        other = ImageClassifier(**{**self.hparams, "model": model, "classes": classes, "loss": loss})
        source: Any = self.eval_model.network
        other.network.backbone.load_state_dict(source.backbone.state_dict())
        other._restart_average()
        return other

    def start_from(self, source: Network) -> None:
        """Take the weights of a trained network with the same backbone; of its head too where it has the same layers."""
        own, head = self.network.head.state_dict(), source.head.state_dict()
        self.network.backbone.load_state_dict(source.backbone.state_dict())
        if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in head.items()}:
            self.network.head.load_state_dict(head)
        self._restart_average()

    def use_features(self, frozen_modules: Sequence[str]) -> None:
        """Take features in place of images where a batch has them: what `frozen_modules` would compute."""
        self.model.use_features(frozen_modules)
        if self.ema is not None:
            self.eval_model.use_features(frozen_modules)

    def forward(self, images: Tensor) -> Tensor:
        """uint8, or floats from 0 to 1, [B, C, S, S] -> logits [B, K] of the model to predict with."""
        return self.eval_model(as_pixels(images, self.preprocess))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Check a batch, and turn one of another loader into a `Batch`, where that is free: before it is on a GPU."""
        return as_batch(batch, self.preprocess, len(self.classes), labelled=not self.trainer.predicting)

    def _known_batch(self, batch: Any, labelled: bool = True) -> Batch:
        """Return the batch of a step, which a data module with a hook of its own, or no Trainer, may have handed over."""
        if isinstance(batch, Batch) and (batch.images is None or batch.images.dtype == torch.uint8):
            return batch
        return as_batch(batch, self.preprocess, len(self.classes), labelled=labelled)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch: cross-entropy and the head's L2 term."""
        batch = self._known_batch(batch)
        generator = np.random.default_rng([self.seed, self.current_epoch, batch_idx, self.global_rank])
        self._seed_dropout(int(generator.integers(2**63 - 1)))  # dropout is then a function of the position
        partners: Tensor | None = None
        share = 1.0
        with single_image(len(batch.targets)):
            if batch.images is None:
                logits = _logits(self.model, batch)  # [B, K]
            else:
                images = self.model.normalize(batch.images)
                images, partners, share = mixup_cutmix(images, batch.targets, self.mixing_config, generator)
                logits = self.network(images)  # [B, K]
        loss = share * self._cross_entropy(logits, batch.targets)
        if partners is not None:
            loss = loss + (1 - share) * self._cross_entropy(logits, partners)
        weight, count = self._rank_weight(batch.targets)
        loss = weight * loss + self.model.penalty()
        self.train_metrics.update(loss.detach(), logits.detach(), batch.targets, count)
        self._show_training()
        return loss

    def _show_training(self) -> None:
        """Show the means of the epoch so far on Lightning's bar, where there is one: runs of imgclf have their own."""
        if self._trainer is None or self._trainer.progress_bar_callback is None:
            return
        matrix = self.train_metrics.confusion
        sums = {"train_loss": self.train_metrics.loss_sum, "train_accuracy": matrix.diagonal().sum()}
        means = {name: (value / matrix.sum()).float() for name, value in sums.items()}
        self.log_dict(means, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the metrics; the loss is without smoothing or weights, with the L2 term."""
        batch = self._known_batch(batch)
        if not len(batch.targets):
            return  # the last batch may have fewer images than there are processes
        logits = _logits(self.eval_model, batch).float()  # [B, K]
        loss = functional.cross_entropy(logits, batch.targets) + self.eval_model.penalty()
        self.eval_metrics.update(loss, logits, batch.targets)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the metrics, which are called test_loss, test_accuracy and so on."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities float32 [B, K]."""
        return _logits(self.eval_model, self._known_batch(batch, labelled=False)).float().softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's validation metrics."""
        self._validated = self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> dict[str, float]:
        metrics = self.eval_metrics.compute_and_reset()
        names = ("loss", "accuracy", "top5", "macro_f1")
        # Tensors, as Lightning would make of them: history and callbacks then see the same single-precision numbers.
        values = {f"{split}_{name}": torch.tensor(metrics[name]) for name in names if name in metrics}
        self.log("epoch", float(self.current_epoch + 1))  # trackers would get Lightning's, from 0
        for name, value in values.items():
            self.log(name, value, prog_bar=name.endswith(("_loss", "_accuracy")))
        return {name: float(value) for name, value in values.items()}

    def configure_callbacks(self) -> list[Callback]:
        """Return none; raise `ConfigError` if the Trainer can't train this classifier. Lightning calls this first, in every
        process and before its loggers make a folder.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_fit(self, self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Silence warnings; of the hooks that every process has, Lightning calls this one first but `configure_callbacks`."""
        silence_trainer_warnings()

    def on_fit_start(self) -> None:
        """Leave eval mode, in which `load_from_checkpoint` returns a classifier and Lightning would train it."""
        self.train()

    def on_train_start(self) -> None:
        """Set the phase of this epoch, and build the schedule at its place: Lightning begins a resumed epoch without
        `on_train_epoch_start`.

        The schedule needs the number of batches. To ask for it any earlier makes Lightning set the loader up before it
        restores the loader's position.
        """
        self._began = time.perf_counter()
        self.metadata.temperature = 1.0  # the old one belongs to the weights before training
        self.train_metrics.keep_on_rank_zero(self.trainer.is_global_zero)
        self._set_phase()
        epochs, steps = self._length()
        optimizer = self.trainer.optimizers[0]
        self.schedule = build_schedule(optimizer, self.scheduler_config, epochs, steps, MONITORS[self.monitor])
        if isinstance(self.schedule, Scheduler):
            self.schedule.step_update(self.global_step)
        elif self.schedule is not None and self.metadata.plateau:
            self.schedule.load_state_dict(self.metadata.plateau)

    def _length(self) -> tuple[float, int]:
        """Return the epochs of the run, a fraction where its steps are limited instead, and the steps of an epoch.

        Raises `ConfigError` where the schedule needs one of them, and the loader has no length.
        """
        trainer, config = self.trainer, self.scheduler_config
        epochs, most, batches = trainer.max_epochs or 1, trainer.max_steps, trainer.num_training_batches
        if math.isinf(batches):
            if config.warmup_epochs or config.name == "step" or (config.name in ("cosine", "poly") and most < 1):
                raise ConfigError(
                    f"scheduler.name={config.name}: the training loader has no length to count epochs by; pass "
                    "scheduler={'name': 'none'}, or cosine or poly without warm-up and Trainer(max_steps=<number>)"
                )
            return 1, max(1, most)
        steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        return (epochs if epochs > 0 else max(1, most) / steps), steps

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let an epoch that `max_steps` ends before its last batch be validated as any other."""
        if 0 < self.trainer.max_steps <= self.global_step and self.trainer.val_check_batch is not None:
            self.trainer.val_check_batch = 1  # in batches, of which this is the last

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's sums, and begin the second phase if it is due."""
        self._began = time.perf_counter()
        self.train_metrics.reset()
        self._validated = {}
        self._set_phase()

    def on_train_epoch_end(self) -> None:
        """Append the epoch's row to the history, and step a plateau schedule."""
        self.train_metrics.reduce()
        train, val, lr = self.training_means(), self._validated, self.metadata.learning_rate
        epoch = self.current_epoch + 1  # people count from 1, Lightning from 0
        measured = {"train_loss": train["loss"], "train_accuracy": train["accuracy"], "lr": lr}
        self.log_dict({**measured, "epoch": float(epoch)})
        row = {
            "epoch": epoch,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": val.get("val_loss"),
            "val_accuracy": val.get("val_accuracy"),
            "lr": lr,
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        self.history.append(row)
        self.metadata.metrics = {"train": train}
        metric = val.get(self.monitor)
        if isinstance(self.schedule, ReduceLROnPlateau) and metric is not None:
            self.schedule.step(metric)

    def training_means(self) -> dict[str, float]:
        """Return the metrics of the last epoch's training images, each as the network was when it saw the image."""
        return self.train_metrics.compute()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer; its schedule is built when training starts, and kept here, as a function of the position."""
        return build_optimizer(self.network, self.optimizer_config, self.model_config.unfreeze_epoch is not None)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then the learning rate and the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        done = self.global_step + 1  # Lightning counts this update only when it is back
        self.metadata.learning_rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])  # that of the head
        if isinstance(self.schedule, Scheduler):
            self.schedule.step_update(done)
        if self.ema is not None:
            self.ema.update(self.model, step=done + 2)  # timm's warm-up counts from step 2

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, all of it plain data."""
        schedule = self.schedule
        plateau = schedule.state_dict() if isinstance(schedule, ReduceLROnPlateau) else None
        now: dict[str, Any] = {**self.train_metrics.totals(), "plateau": plateau, "threads": torch.get_num_threads()}
        checkpoint["imgclf"] = replace(self.metadata, **now).to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of training: history, the epoch's sums, learning rate and the state of a plateau schedule."""
        saved = CheckpointMetadata.from_dict(checkpoint["imgclf"], len(self.classes))
        self.train_metrics.restore({"running": saved.running, "confusion": saved.confusion})
        self.metadata.history = [dict(row) for row in saved.history]
        self.metadata.metrics = {"train": saved.metrics.get("train")}
        self.metadata.learning_rate, self.metadata.plateau = saved.learning_rate, saved.plateau

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **changes: Any
    ) -> "ImageClassifier":
        """Return the classifier of a checkpoint, in eval mode, with `changes` to the constructor's arguments.

        Reads nothing but tensors and plain data. Raises `CheckpointError` for any other or a damaged file.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        with checkpoint_errors(checkpoint_path):
            metadata = check_checkpoint(checkpoint)
            classifier = cls(**{**checkpoint["hyper_parameters"], **changes})
            classifier.load_state_dict(checkpoint["state_dict"])
            classifier.on_load_checkpoint(checkpoint)
            classifier.metadata = metadata
        return classifier.eval()

    def _set_phase(self) -> None:
        """Freeze what is frozen in this epoch."""
        unfreeze_epoch = self.model_config.unfreeze_epoch
        if unfreeze_epoch is None:
            return
        if self.trainer.world_size > 1:  # DDP's reducer knows only the parameters that are trained at first
            raise ConfigError("model.unfreeze_epoch doesn't work with several processes; pass trainer.devices=1")
        second = self.current_epoch >= unfreeze_epoch
        if second != self._second_phase:
            self.network.freeze("none" if second else self.model_config.freeze)
            self._second_phase = second

    def _seed_dropout(self, seed: int) -> None:
        """Seed the generators, but not by `torch.manual_seed`: until CUDA is initialised that keeps a stack trace of
        every call, at 3 ms each.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.loss_config.label_smoothing
        return functional.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing)

    def _rank_weight(self, targets: Tensor) -> tuple[Tensor | float, Tensor | int]:
        """Return the weight of this rank's mean loss, and an even share of the global batch's images.

        With that weight DDP's average of the gradients is that of the global batch's loss: shards differ in size and class
        weight.
        """
        if self._trainer is None or self._trainer.world_size == 1:
            return 1.0, len(targets)
        count = self.model.mean.new_tensor(len(targets))
        weight = count if self.class_weights is None else self.class_weights[targets].sum()
        total = self._trainer.strategy.reduce(torch.stack([weight, count]), reduce_op="sum")
        mean = total / self._trainer.world_size
        return weight / mean[0], mean[1]

    def _restart_average(self) -> None:
        if self.ema is not None:
            self.ema.set(self.model)  # type: ignore[no-untyped-call]


def _logits(model: ImageModel, batch: Batch) -> Tensor:
    """Return the logits [B, K] of a batch of images or of features."""
    if batch.features is not None:
        return model.forward_features(batch.features)
    assert batch.images is not None
    return model(batch.images)
