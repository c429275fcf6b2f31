"""When a run's checkpoints are written: as it goes, when it is best, and when a signal asks it to stop."""

import math
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from imgclf.config import MONITORS
from imgclf.errors import ConfigError
from imgclf.files.atomic import write_atomically
from imgclf.signals import Interrupted, Signals

__all__ = ["CheckpointCallback"]


class CheckpointCallback(Checkpoint):
    """Writes `last.ckpt` every epoch and `best.ckpt` when `monitor` improves.

    `keep`: "best" for these two, "improved" for `epoch_NNN.ckpt` of every improvement too, "all" for every epoch.
    `every_minutes`, `every_n_steps`: how often `last.ckpt` is renewed within an epoch, None for never. A signal that is
    pending in `signals` is answered where nothing is lost: behind a step, or before a validation batch; `last.ckpt` is
    renewed, and `Interrupted` raised. Raises `ConfigError` for another `keep`.
    """

    def __init__(self, folder: Path, signals: Signals, monitor: str = "val_accuracy", keep: str = "best",
                 every_minutes: float | None = 5, every_n_steps: int | None = None) -> None:  # fmt: skip
        if keep not in ("best", "improved", "all"):
            raise ConfigError(f"checkpoint.keep={keep!r}: expected best, improved or all")
        self.folder, self.signals, self.monitor, self.keep = folder, signals, monitor, keep
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._saved_at, self._validating = time.monotonic(), False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From here on signals wait for a good moment; Lightning has set up a handler of its own by now, which goes."""
        self.signals.install()
        self.signals.deferring = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Renew `last.ckpt` within an epoch, if it is time or a signal asks for it.

        Not while gradients accumulate, and not behind the last batch: the epoch's end knows the validation too.
        """
        if trainer.fit_loop.epoch_loop._should_accumulate() or index + 1 >= trainer.num_training_batches:
            return
        by_step = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        by_time = self.every_minutes and time.monotonic() - self._saved_at > 60 * self.every_minutes
        wanted = bool(by_step or by_time), self.signals.pending
        due, signum = trainer.strategy.broadcast(wanted)  # clocks differ between processes, saving is for all
        if due or signum:
            self._save(trainer)
        if signum:
            raise Interrupted(signum)

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before the batch if a signal asks for it; the resumed run validates anew."""
        if self.signals.deferring and (signum := trainer.strategy.broadcast(self.signals.pending)):
            self._save(trainer, validating=True)
            raise Interrupted(signum)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the epoch, and keep it as the best if it is; an epoch equal to the best doesn't replace it."""
        metric = trainer.callback_metrics.get(self.monitor)
        value = float(metric) if metric is not None else None
        improved = value is None or self.best_value is None or self._better(value, self.best_value)
        improved = improved or not (self.folder / "best.ckpt").is_file()  # resumed from another run's checkpoint
        if improved:
            self.best_value, self.best_epoch = value, trainer.current_epoch
        module.about["stopped_early"] = trainer.should_stop  # type: ignore[index, operator]
        last = self._save(trainer)
        if trainer.is_global_zero:
            if improved:
                _copy(last, self.folder / "best.ckpt")
            if self.keep == "all" or (self.keep == "improved" and improved):
                _copy(last, self.folder / f"epoch_{trainer.current_epoch:03}.ckpt")
        if signum := trainer.strategy.broadcast(self.signals.pending):
            raise Interrupted(signum)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """From here on a signal stops the program at once: all is saved."""
        self.signals.deferring = False

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the loops' state say that validation stands before its first batch: what it has seen isn't saved."""
        if self._validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part].update(ready=1, started=1, processed=0, completed=0)
            progress["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: the best so far."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]

    def _better(self, value: float, best: float) -> bool:
        if math.isnan(best):
            return not math.isnan(value)
        return value > best if MONITORS[self.monitor] == "max" else value < best

    def _save(self, trainer: Trainer, validating: bool = False) -> Path:
        path = self.folder / "last.ckpt"
        self._validating = validating
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        return path


def _copy(source: Path, target: Path) -> None:
    """A copy, not a second name for the same file: what damages one checkpoint leaves the others."""
    write_atomically(target, source.read_bytes())
