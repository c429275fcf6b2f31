"""When a run writes checkpoints, and how: as it goes, when it is best, and when a signal asks it to stop."""

import math
import time
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from imgclf.config import MONITORS, CheckpointConfig
from imgclf.files.atomic import write_atomically
from imgclf.models.checkpoint import read_checkpoint, write_checkpoint
from imgclf.models.metadata import CheckpointMetadata
from imgclf.signals import Interrupted, Signals

__all__ = ["AtomicCheckpointIO", "CheckpointCallback", "TimeOver", "copy_checkpoint", "epoch_files"]


class TimeOver(Exception):
    """`trainer.max_time` is over: training ends here, with `last.ckpt` written."""


def epoch_files(keep: str, epoch: int, best_epoch: int | None) -> list[str]:
    """Return the names of the files that hold the end of `epoch` besides last.ckpt; `keep` is that of `CheckpointConfig`."""
    best = epoch == best_epoch
    names = ["best.ckpt"] if best else []
    return [*names, f"epoch_{epoch:03}.ckpt"] if keep == "all" or (keep == "improved" and best) else names


class AtomicCheckpointIO(CheckpointIO):
    """Makes Lightning save and load by `write_checkpoint` and `read_checkpoint`: whole files, and no code in them is run."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, or leave the old file."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the checkpoint; raises `CheckpointError` for any file but a whole checkpoint of imgclf."""
        return read_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file, if it exists."""
        Path(path).unlink(missing_ok=True)


class CheckpointCallback(Checkpoint):
    """Writes `last.ckpt` every epoch and `best.ckpt` when the monitored metric improves, into `folder`.

    `config.keep`: "improved" keeps `epoch_NNN.ckpt` of every improvement too, "all" of every epoch. Which epoch is the best
    is a fact of `last.ckpt`, and each checkpoint knows the epoch at whose end it was written: what a crash leaves undone
    between two files is seen, and done again, by the run that resumes (`imgclf.training.resume.find_best`).

    A pending signal is handled where nothing is lost: after a step, or before a validation batch; `last.ckpt` is renewed,
    and `Interrupted` raised. When `max_seconds` of training are over, `TimeOver` is raised likewise.
    """

    def __init__(
        self, folder: Path, signals: Signals, config: CheckpointConfig, max_seconds: float | None = None
    ) -> None:
        self.folder, self.signals, self.config = folder, signals, config
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.forget_best = False  # the checkpoint of the best epoch of the run that is continued isn't there
        self._began = self._saved_at = time.monotonic()
        self._validating, self._finished_epoch = False, None  # type: bool, int | None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Defer signals from here on; this replaces the handler that Lightning has set up."""
        self.signals.install()
        self.signals.deferring = True
        self._began = self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Renew `last.ckpt` within an epoch, if it is time or a signal asks for it.

        Not while gradients accumulate, and not after the last batch: the epoch's end has the validation too.
        """
        if trainer.fit_loop.epoch_loop._should_accumulate() or index + 1 >= trainer.num_training_batches:
            return
        steps, minutes = self.config.every_n_steps, self.config.every_minutes
        by_step = steps and trainer.global_step % steps == 0
        by_time = minutes and time.monotonic() - self._saved_at > 60 * minutes
        wanted = bool(by_step or by_time), self._time_is_over(), self.signals.pending
        due, over, signum = trainer.strategy.broadcast(wanted)  # clocks differ, and all processes must save together
        if due or over or signum:
            self._save(trainer)
        if signum:
            raise Interrupted(signum)
        if over:
            raise TimeOver(f"within epoch {trainer.current_epoch + 1}, after {trainer.global_step:,} steps")

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before the batch if a signal asks for it; the resumed run repeats the validation."""
        if self.signals.deferring and (signum := trainer.strategy.broadcast(self.signals.pending)):
            self._save(trainer, validating=True)
            raise Interrupted(signum)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the epoch, and copy it to `best.ckpt` if it is better than all before; a tie doesn't replace the best."""
        epoch = trainer.current_epoch + 1
        if self.improves(trainer):
            self.best_value, self.best_epoch = self._value(trainer), epoch
        metadata = module.metadata
        assert isinstance(metadata, CheckpointMetadata)
        metadata.stopped_early = trainer.should_stop
        last = self._save(trainer, finished_epoch=epoch)
        if trainer.is_global_zero:
            for name in epoch_files(self.config.keep, epoch, self.best_epoch):
                copy_checkpoint(last, self.folder / name)
        over, signum = trainer.strategy.broadcast((self._time_is_over(), self.signals.pending))
        if signum:
            raise Interrupted(signum)
        if over and not trainer.should_stop and epoch != trainer.max_epochs:
            raise TimeOver(f"after epoch {epoch}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Let a signal end the program at once: everything is saved."""
        self.signals.deferring = False

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the loops' state to before the first validation batch: results of a part of a validation aren't saved."""
        if self._validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part].update(ready=1, started=1, processed=0, completed=0)
            progress["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and epoch so far, and the epoch that ends with this checkpoint, None within an epoch; the
        first epoch is 1.
        """
        return {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "finished_epoch": self._finished_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and epoch."""
        if not self.forget_best:
            self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]

    def improves(self, trainer: Trainer) -> bool:
        """Return whether the epoch that ends is better than all before, by the monitored metric, or has none."""
        value = self._value(trainer)
        return value is None or self.best_value is None or self._better(value, self.best_value)

    def _value(self, trainer: Trainer) -> float | None:
        metric = trainer.callback_metrics.get(self.config.monitor)
        return float(metric) if metric is not None else None

    def _better(self, value: float, best: float) -> bool:
        if math.isnan(best):
            return not math.isnan(value)
        return value > best if MONITORS[self.config.monitor] == "max" else value < best

    def _time_is_over(self) -> bool:
        return time.monotonic() - self._began > self.max_seconds

    def _save(self, trainer: Trainer, validating: bool = False, finished_epoch: int | None = None) -> Path:
        path = self.folder / "last.ckpt"
        self._validating, self._finished_epoch = validating, finished_epoch
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        return path


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a file; not by a link: damage to one checkpoint must not reach the others."""
    write_atomically(target, source.read_bytes())
