"""What happens around training, apart from training: the console, the files of a run, early stopping."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imgclf.errors import ConfigError
from imgclf.metrics import MONITORS
from imgclf.report.tables import history_csv, history_json
from imgclf.storage import write_atomically

__all__ = ["Bar", "Checkpoints", "EpochLine", "build_callbacks"]


def build_callbacks(
    folder: Path, checkpoint: Mapping[str, Any], early_stopping: Mapping[str, Any] | None
) -> list[Callback]:
    """The callbacks of a run in `folder`, from plain settings; raises `ConfigError` for an unknown metric to watch."""
    for name, options in (("checkpoint", checkpoint), ("callbacks.early_stopping", early_stopping or {})):
        if options and options.get("monitor", "val_loss") not in MONITORS:
            raise ConfigError(f"{name}.monitor={options['monitor']!r}: expected one of {', '.join(MONITORS)}")
    callbacks: list[Callback] = [Bar(), EpochLine(folder), Checkpoints(folder / "checkpoints", **checkpoint)]
    if early_stopping:
        mode = MONITORS[early_stopping["monitor"]]
        callbacks.append(EarlyStopping(**early_stopping, mode=mode, verbose=False))
    return callbacks


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every epoch and `best.ckpt` when `monitor` improves.

    `keep`: "best" for these two, "improved" for `epoch_NNN.ckpt` of every improvement too, "all" for every epoch.
    `every_minutes`, `every_n_steps`: how often `last.ckpt` is renewed within an epoch, None for never.
    Raises `ConfigError` for another `keep`.
    """

    def __init__(self, folder: Path, monitor: str = "val_accuracy", keep: str = "best",
                 every_minutes: float | None = 5, every_n_steps: int | None = None) -> None:  # fmt: skip
        if keep not in ("best", "improved", "all"):
            raise ConfigError(f"checkpoint.keep={keep!r}: expected best, improved or all")
        self.folder, self.monitor, self.keep = folder, monitor, keep
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Renew `last.ckpt` within an epoch; its last batch is left to the epoch's end, which knows the validation."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or index + 1 >= trainer.num_training_batches:
            return
        by_step = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        by_time = self.every_minutes and time.monotonic() - self._saved_at > 60 * self.every_minutes
        if trainer.strategy.broadcast(bool(by_step or by_time)):  # clocks differ between processes, saving is for all
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the epoch, and keep it as the best if it is; an epoch equal to the best doesn't replace it."""
        metric = trainer.callback_metrics.get(self.monitor)
        value = float(metric) if metric is not None else None
        improved = value is None or self.best_value is None or self._better(value, self.best_value)
        improved = improved or not (self.folder / "best.ckpt").is_file()  # resumed from another run's checkpoint
        if improved:
            self.best_value, self.best_epoch = value, trainer.current_epoch
        last = self._save(trainer)
        if trainer.is_global_zero:
            if improved:
                _copy(last, self.folder / "best.ckpt")
            if self.keep == "all" or (self.keep == "improved" and improved):
                _copy(last, self.folder / f"epoch_{trainer.current_epoch:03}.ckpt")

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

    def _save(self, trainer: Trainer) -> Path:
        path = self.folder / "last.ckpt"
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        return path


class EpochLine(Checkpoint):
    """Writes `history.csv` and `history.json` into `folder`, and prints one line, as each epoch ends.

    A `Checkpoint` by type only: Lightning calls those behind the module, whose last row of history this prints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell the epoch that has ended."""
        if not trainer.is_global_zero:
            return
        rows: Any = module.history
        history_csv(self.folder / "history.csv", rows)
        history_json(self.folder / "history.json", rows)
        row, values = rows[-1], [row["val_accuracy"] for row in rows if row["val_accuracy"] is not None]
        line = f"epoch {row['epoch'] + 1:>3}/{trainer.max_epochs}  train loss {row['train_loss']:.4f}"
        line += f" accuracy {row['train_accuracy']:.2%}"
        if row["val_loss"] is not None:
            best = "  best yet" if row["val_accuracy"] == max(values) and values.count(row["val_accuracy"]) == 1 else ""
            line += f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.2%}{best}"
        print(f"{line}  lr {row['lr']:.2e}  {row['seconds']:.1f} s", flush=True)


class Bar(Callback):
    """One bar for the running epoch, on a terminal only; it goes when the epoch's line comes."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin a new bar."""
        console = Console(stderr=True)
        if trainer.is_global_zero and console.is_terminal:
            columns = TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.add_task(f"{trainer.current_epoch + 1}", total=int(trainer.num_training_batches))
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Move it on."""
        if self._progress:
            self._progress.advance(self._progress.task_ids[0])

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Take it away."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Take it away, so that the message stands on a line of its own."""
        self.on_train_epoch_end(trainer, module)


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, source.read_bytes())
