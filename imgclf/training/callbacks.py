"""Callbacks of a run: the console, the files of its history, early stopping, pruning, and the stop on NaN."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

from imgclf.config import MONITORS, CheckpointConfig, EarlyStoppingConfig, PruningConfig
from imgclf.console import print_line, progress_bar
from imgclf.errors import ConfigError, DataError, RunError
from imgclf.files.atomic import write_atomically
from imgclf.files.trial_record import PRUNED, find_trials, read_record
from imgclf.jupyter import in_notebook
from imgclf.report.tables import read_history_csv
from imgclf.signals import Signals
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.classifier import ImageClassifier
from imgclf.training.history import HistoryLogger, NotebookTable

__all__ = ["build_callbacks", "first_non_finite"]

_SHOWN = 4  # files that a message names; all are in non_finite_batch.txt


def build_callbacks(
    folder: Path,
    signals: Signals,
    checkpoint: CheckpointConfig,
    early_stopping: EarlyStoppingConfig | None = None,
    pruning: PruningConfig | None = None,
    max_seconds: float | None = None,
) -> list[Callback]:
    """Return the callbacks of a run in `folder`, which ends after `max_seconds` of training; None: never.

    Raises `ConfigError` for a metric that pruning can't watch.
    """
    saving = CheckpointCallback(folder / "checkpoints", signals, checkpoint, max_seconds)
    callbacks: list[Callback] = [ProgressBar(), StopOnNonFinite(folder), HistoryLogger(folder, saving), saving]
    if early_stopping:
        mode = MONITORS[early_stopping.monitor]
        callbacks.append(EarlyStoppingPlainState(**early_stopping.to_dict(), mode=mode, verbose=False))
    if in_notebook():
        callbacks.append(NotebookTable())
    if pruning:
        callbacks.append(Pruning(folder, checkpoint.monitor, pruning))
    return callbacks


class EarlyStoppingPlainState(EarlyStopping):
    """Lightning's early stopping that prints why it stopped, and has plain data as its state, not an infinite tensor."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print that early stopping ended the run, if it did."""
        if trainer.should_stop and self.wait_count >= self.patience and trainer.is_global_zero:
            waited = f"{self.wait_count} epoch{'s' * (self.wait_count != 1)}"
            best = f"{self.monitor} has not been better than {float(self.best_score):.4f} for {waited}"
            print_line(f"stopped early: {best}; a larger callbacks.early_stopping.patience waits longer")

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, with the best score as a number."""
        state = super().state_dict()
        return {**state, "best_score": float(state["best_score"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict({**state_dict, "best_score": torch.tensor(state_dict["best_score"])})


class Pruning(Callback):
    """Stops a trial of a sweep whose best epoch so far is worse than the median over other trials of their mean so far.

    The median stopping rule of D. Golovin et al., Google Vizier, KDD 2017, section 3.2.2. Which other trials there are
    depends on the time: a sweep with pruning isn't repeatable to the bit.
    """

    def __init__(self, folder: Path, monitor: str, config: PruningConfig) -> None:
        if monitor not in ("val_accuracy", "val_loss"):
            raise ConfigError(f"callbacks.pruning with checkpoint.monitor={monitor}: expected val_accuracy or val_loss")
        self.folder, self.monitor, self.config = folder, monitor, config
        self.sign = 1 if MONITORS[monitor] == "max" else -1

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare this trial with the others, and stop the training after this epoch if it is worse."""
        assert isinstance(module, ImageClassifier)
        done = trainer.current_epoch + 1
        values = [row[self.monitor] for row in module.history] + [float(trainer.callback_metrics[self.monitor])]
        best = max(self.sign * value for value in values if value is not None)
        others = self._others(done) if trainer.is_global_zero and done >= self.config.epochs else []
        hopeless = len(others) >= self.config.trials and best < median(others)
        if trainer.is_global_zero and not hopeless:
            (self.folder / PRUNED).unlink(
                missing_ok=True
            )  # of this epoch before it was killed: the others have come further
        if trainer.strategy.broadcast(hopeless):
            trainer.should_stop = True
            if trainer.is_global_zero:
                had = f"{len(others)} trials is {abs(median(others)):.4f}"
                line = f"pruned after epoch {done}: {self.monitor} {abs(best):.4f}, the median of {had}"
                write_atomically(self.folder / PRUNED, f"{line}\n")
                print_line(line)

    def _others(self, epochs: int) -> list[float]:
        """Return the mean metric of each other trial on the same data over its first `epochs`, larger being better."""
        own = read_record(self.folder)
        means = []
        for path, record in find_trials(self.folder.parent):
            history = path / "history.csv"
            same = own and record.settings.get("dataset") == own.settings.get("dataset")
            if not same or path == self.folder or not history.is_file():
                continue
            with suppress(DataError):  # another trial's damaged file is no reason to stop this one
                values = [row[self.monitor] for row in read_history_csv(history)[:epochs]]
                if len(values) == epochs and None not in values:
                    means.append(self.sign * fmean(values))
        return means


class ProgressBar(Callback):
    """One bar at a time, for the batches of the epoch or of its validation, where a person looks on; it leaves nothing behind.

    A bar begins with the first batch: before that, images may be prepared or features computed, which have their own bar.
    """

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._advance: Callable[[int], object] | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        """Show the epoch's bar, unless it is there."""
        self._show(trainer, "batch", int(trainer.num_training_batches), index)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Advance the bar."""
        if self._advance:
            self._advance(1)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Remove the epoch's bar."""
        self._hide()

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show the validation's bar, unless it is there."""
        self._show(trainer, "validation batch", int(sum(trainer.num_val_batches)), batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar."""
        if self._advance:
            self._advance(1)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Remove the validation's bar."""
        self._hide()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Remove the bar: the epoch's line replaces it."""
        self._hide()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the message stands on a line of its own."""
        self._hide()

    def _show(self, trainer: Trainer, what: str, total: int, done: int) -> None:
        if not self._advance:
            end = f" of {trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # -1: without end
            label = f"epoch {trainer.current_epoch + 1}{end}, {what}"
            self._advance = self._bar.enter_context(progress_bar(label, total, shown=trainer.is_global_zero))
            self._advance(done)

    def _hide(self) -> None:
        self._bar.close()
        self._advance = None


class StopOnNonFinite(Callback):
    """Raises `RunError` when a loss, a gradient or a weight is NaN or infinite, before anything of it is saved.

    The message names the step, the learning rate and the batch, whose files are written to `folder`/non_finite_batch.txt.
    On a GPU the loss is checked one step later, when it is there without waiting, and gradients only in what is saved.
    Under fp16 a gradient may overflow: the scaler then skips the step by itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loss: Tensor | None = None
        self._indices: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        """Check the last loss where it wasn't there in time, and remember the batch."""
        if self._loss is not None and not torch.isfinite(self._loss):
            self._stop(trainer, "the loss is NaN or infinite")
        self._loss, self._indices = None, batch.indices

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Check the loss before the backward pass."""
        if loss.device.type != "cpu":
            self._loss = loss.detach()
        elif not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item():g}")

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Check the gradients."""
        if trainer.precision == "16-mixed" or module.device.type != "cpu":
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # One number for all of them: a sum is finite only if all its terms are, or if they overflow together, which the
        # check of each one then settles.
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients, 1)).sum()):
            for name, parameter in module.named_parameters():
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    self._stop(trainer, f"the gradient of {name} isn't finite")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check every tensor that is about to be saved."""
        if name := first_non_finite(checkpoint):
            self._stop(trainer, f"{name} is no longer finite")

    def _stop(self, trainer: Trainer, reason: str) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        files: list[str] = []
        if self._indices is not None:
            loader: Any = trainer.train_dataloader
            files = [loader.samples.items[index] for index in self._indices.tolist()]
            write_atomically(self.folder / "non_finite_batch.txt", "\n".join(files) + "\n")
        names = ["/".join(Path(file).parts[-2:]) for file in files[:_SHOWN]]  # class and file
        shown = ", ".join(names) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
        raise RunError(
            f"{reason} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}, learning rate {rate:g}; "
            "nothing of it was saved. Pass a smaller optimizer.lr, or look at the images of this batch: "
            f"{shown} (all in non_finite_batch.txt in the run folder)"
        )


def first_non_finite(values: object, name: str = "") -> str | None:
    """Return the path, such as `state_dict.head.weight`, of the first tensor with NaN or infinity; None without one."""
    if isinstance(values, Tensor):
        return None if not values.is_floating_point() or torch.isfinite(values).all() else name
    pairs: Any = ()
    if isinstance(values, (dict, list, tuple)):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
    paths = (first_non_finite(value, f"{name}.{key}".lstrip(".")) for key, value in pairs)
    return next((path for path in paths if path), None)
