"""The LightningModule: one shared step over a network of backbone and head; its hyper-parameters are plain data."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imgclf.config import MONITORS
from imgclf.data.loader import Batch
from imgclf.errors import ConfigError
from imgclf.evaluation import EpochMetrics
from imgclf.models.average import average
from imgclf.models.image_model import Answers, restore
from imgclf.models.network import freeze_backbone
from imgclf.models.weights import load_pretrained, load_weights
from imgclf.training.mixing import mixup_cutmix
from imgclf.training.optim import build_optimizer, build_schedule

__all__ = ["ImageClassifier"]


class ImageClassifier(Answers, LightningModule):
    """A network for `classes`, with the preprocessing that it expects, and how it is trained.

    `model`: backbone, backbone_kwargs, head, freeze, unfreeze_epoch (see `build_network`). `preprocess`: the dictionary
    of a `Preprocess`. `optimizer`, `scheduler`: see `imgclf.training.optim`. `loss`: label_smoothing, class_weights (None or
    one number a class). `mixing`: see `imgclf.training.mixing`. `ema_decay`: None, or the decay of an average of the weights that
    is then what predicts. `monitor`: what a plateau schedule watches. Weights are random until `load_weights`.
    Raises `ConfigError`.
    """

    class_weights: Tensor | None

    def __init__(self, model: Mapping[str, Any], classes: Sequence[str], preprocess: Mapping[str, Any],
                 optimizer: Mapping[str, Any] | None = None, scheduler: Mapping[str, Any] | None = None,
                 loss: Mapping[str, Any] | None = None, mixing: Mapping[str, Any] | None = None,
                 ema_decay: float | None = None, monitor: str = "val_accuracy", seed: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.assemble(model, classes, preprocess, ema_decay, seed)
        self.eval_metrics = EpochMetrics(len(self.classes))
        weights = (loss or {}).get("class_weights")
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)
        self._second_phase = False  # of a network that is built with the first phase's parts frozen
        self.train_metrics = EpochMetrics(len(self.classes))
        self.schedule: Scheduler | ReduceLROnPlateau | None = None
        self.learning_rate = 0.0  # of the head's parameters, at the last update
        self._began, self._plateau_state = time.perf_counter(), None
        self._validated: dict[str, float] = {}  # what this epoch's validation said

    def load_weights(self, path: str | Path) -> None:
        """Give the backbone the weights in a safetensors or pth file; raises `CheckpointError` if they don't fit."""
        load_weights(self.network.backbone, path, self.hparams["model"]["backbone"])
        self._restart_average()

    def load_pretrained(self) -> None:
        """Give the backbone timm's weights, from the hub or its local cache; raises `CheckpointError` if out of reach."""
        model = self.hparams["model"]
        load_pretrained(self.network.backbone, model["backbone"], model.get("backbone_kwargs") or {},
                        self.preprocess.channels, self.preprocess.size)  # fmt: skip
        self._restart_average()

    def replace_head(self, classes: Sequence[str], head: Mapping[str, Any] | None = None) -> "ImageClassifier":
        """A copy for other classes: this backbone's weights under a new random head (like this one unless `head`)."""
        hparams = copy.deepcopy(dict(self.hparams))
        hparams.update(classes=list(classes), loss={**(hparams.get("loss") or {}), "class_weights": None})
        hparams["model"] = {
            **hparams["model"],
            "head": dict(head if head is not None else hparams["model"].get("head") or {}),
        }
        other = ImageClassifier(**hparams)
        other.network.backbone.load_state_dict(self.predictor.backbone.state_dict())
        other._restart_average()
        return other

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch: cross-entropy and the head's L2 term."""
        generator = np.random.default_rng([self._seed, self.current_epoch, batch_idx, self.global_rank])
        self._seed_dropout(int(generator.integers(2**63 - 1)))  # which is then a function of the position
        images, partner_targets, share = mixup_cutmix(self.normalise(batch.images), batch.targets, self.hparams["mixing"] or {},
                                             generator)  # fmt: skip
        logits = self.taking(self.network, batch.images)(images)  # [B, K]
        loss = share * self._cross_entropy(logits, batch.targets)
        if partner_targets is not None:
            loss = loss + (1 - share) * self._cross_entropy(logits, partner_targets)
        penalty = self.network.head.penalty()
        part, count = self._shares(batch.targets)
        loss = part * loss + penalty
        self.train_metrics.update(loss.detach(), logits.detach(), batch.targets, count)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the metrics; the loss is without smoothing or weights, with the L2 term."""
        if not len(batch.targets):
            return  # the last batch may have fewer pictures than there are processes
        logits = self(batch.images).float()  # [B, K]
        loss = functional.cross_entropy(logits, batch.targets) + self.predictor.head.penalty()
        self.eval_metrics.update(loss, logits, batch.targets)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation; the metrics are called test_loss, test_accuracy and so on."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities float32 [B, K]."""
        return self(batch.images).float().softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Give the epoch's validation metrics to whoever watches them."""
        self._validated = self._close_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._close_metrics("test")

    def _close_metrics(self, split: str) -> dict[str, float]:
        metrics = self.eval_metrics.compute_and_reset()
        names = ("loss", "accuracy", "top5", "macro_f1")
        # Tensors, as Lightning would make of them: history and callbacks then see the same single-precision numbers.
        values = {f"{split}_{name}": torch.tensor(metrics[name]) for name in names}
        self.log_dict(values)
        return {name: float(value) for name, value in values.items()}

    def on_train_start(self) -> None:
        """Freeze what is frozen at this epoch, and build the schedule where the checkpoint left it: Lightning begins a
        resumed epoch without `on_train_epoch_start`.

        The schedule is built here because it needs the number of batches, and to ask for that any earlier makes
        Lightning set the loader up before it restores the loader's position.
        """
        self._began = time.perf_counter()
        self.about.pop("temperature", None)  # of weights that are about to change
        self.train_metrics.keep_on_rank_zero(self.trainer.is_global_zero)
        self._apply_phase()
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        self.schedule = build_schedule(
            self.trainer.optimizers[0], self.hparams["scheduler"] or {"name": "none"}, self.trainer.max_epochs or 1, steps,
            MONITORS[self.hparams["monitor"]],
        )  # fmt: skip
        if isinstance(self.schedule, Scheduler):
            self.schedule.step_update(self.global_step)
        elif self.schedule is not None and self._plateau_state:
            self.schedule.load_state_dict(self._plateau_state)

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's sums, and the second phase if it is due."""
        self._began = time.perf_counter()
        self.train_metrics.reset()
        self._validated = {}
        self._apply_phase()

    def on_train_epoch_end(self) -> None:
        """Close the epoch: its row of history, and what a plateau schedule does about it."""
        self.train_metrics.reduce()
        seen, means = self._validated, self.training_means()
        self.log_dict({"train_loss": means["loss"], "train_accuracy": means["accuracy"], "lr": self.learning_rate})
        self.history.append({
            "epoch": self.current_epoch, "train_loss": means["loss"], "train_accuracy": means["accuracy"],
            "val_loss": seen.get("val_loss"),
            "val_accuracy": seen.get("val_accuracy"),
            "lr": self.learning_rate, "seconds": round(time.perf_counter() - self._began, 3),
        })  # fmt: skip
        metric = seen.get(self.hparams["monitor"])
        if isinstance(self.schedule, ReduceLROnPlateau) and metric is not None:
            self.schedule.step(metric)

    def training_means(self) -> dict[str, float]:
        """The metrics of the pictures trained on in the last epoch, as the network was when it met each."""
        return self.train_metrics.compute()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer; its schedule is built when training starts, and kept here, as a function of the position."""
        options = self.hparams["optimizer"] or {"name": "adamw", "lr": 1e-3}
        return build_optimizer(self.network, options, self._unfreeze_epoch is not None)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One update, then what follows from it: the next learning rate and the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        done = self.global_step + 1  # Lightning counts this update only when it is back
        self.learning_rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        if isinstance(self.schedule, Scheduler):
            self.schedule.step_update(done)
        if self.ema_network is not None:
            average(self.ema_network, self.network, self.hparams["ema_decay"], done)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a reader of the file needs, all of it plain data."""
        checkpoint["imgclf"] = {
            **self.about,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "history": copy.deepcopy(self.history),
            **self.train_metrics.totals(),
            "learning_rate": self.learning_rate,
            "plateau": self.schedule.state_dict() if isinstance(self.schedule, ReduceLROnPlateau) else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the history, the epoch's sums and a plateau schedule's memory."""
        super().on_load_checkpoint(checkpoint)
        extra = checkpoint["imgclf"]
        self.train_metrics.restore(extra)
        self.learning_rate, self._plateau_state = extra.get("learning_rate", 0.0), extra["plateau"]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **changes: Any
    ) -> "ImageClassifier":
        """The classifier in a checkpoint, in eval mode; nothing but tensors and plain data is read from the file.

        Raises `CheckpointError` for a file that is no checkpoint of imgclf, or a damaged one.
        """
        return restore(cls, checkpoint_path, map_location, **changes)

    @property
    def _seed(self) -> int:
        return int(self.hparams["seed"])

    @property
    def _unfreeze_epoch(self) -> int | None:
        return self.hparams["model"].get("unfreeze_epoch")

    def _apply_phase(self) -> None:
        if (
            self._unfreeze_epoch is not None and self.trainer.world_size > 1
        ):  # DDP's reducer knows only what is trained at first
            raise ConfigError("model.unfreeze_epoch with several processes isn't possible; pass trainer.devices=1")
        second = self._unfreeze_epoch is not None and self.current_epoch >= self._unfreeze_epoch
        if second != self._second_phase:
            freeze_backbone(self.network, "none" if second else self.hparams["model"].get("freeze", "none"))
            self._second_phase = second

    def _seed_dropout(self, seed: int) -> None:
        """Not `torch.manual_seed`: until CUDA is up that keeps a stack trace of every call, at 3 ms each."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = (self.hparams["loss"] or {}).get("label_smoothing", 0.0)
        return functional.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing)

    def _shares(self, targets: Tensor) -> tuple[Tensor | float, Tensor | int]:
        """What this process's mean loss counts in the mean over processes, so that it is that of the global batch, whose
        parts differ by a picture or in their classes' weights; and a process's even share of that batch's pictures.
        """
        if self._trainer is None or self._trainer.world_size == 1:
            return 1.0, len(targets)
        count = self.mean.new_tensor(len(targets))
        weight = count if self.class_weights is None else self.class_weights[targets].sum()
        whole = self._total(torch.stack([weight, count])) / self._trainer.world_size
        return weight / whole[0], whole[1]

    def _total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.trainer.strategy.reduce(values, reduce_op="sum") if self._trainer is not None else values

    def _restart_average(self) -> None:
        if self.ema_network is not None:
            self.ema_network.load_state_dict(self.network.state_dict())
