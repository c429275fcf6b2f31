"""What happens around training, apart from training: the console, the files of a run, early stopping."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imgclf.errors import ConfigError, DataError
from imgclf.evaluation.accumulators import MONITORS
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import PRUNED, find_trials, read_record
from imgclf.report.tables import history_csv, history_json, read_history_csv
from imgclf.signals import Signals
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.guard import StopOnNonFinite

__all__ = ["EarlyStoppingPlainState", "HistoryLogger", "ProgressBar", "Pruning", "build_callbacks"]


def build_callbacks(folder: Path, signals: Signals, checkpoint: Mapping[str, Any],
                    early_stopping: Mapping[str, Any] | None, pruning: Mapping[str, Any] | None) -> list[Callback]:  # fmt: skip
    """The callbacks of a run in `folder`, from plain settings; raises `ConfigError` for an unknown metric to watch."""
    for name, options in (("checkpoint", checkpoint), ("callbacks.early_stopping", early_stopping or {})):
        if options and options.get("monitor", "val_loss") not in MONITORS:
            raise ConfigError(f"{name}.monitor={options['monitor']!r}: expected one of {', '.join(MONITORS)}")
    callbacks: list[Callback] = [ProgressBar(), StopOnNonFinite(folder), HistoryLogger(folder)]
    callbacks.append(CheckpointCallback(folder / "checkpoints", signals, **checkpoint))
    if early_stopping:
        mode = MONITORS[early_stopping["monitor"]]
        callbacks.append(EarlyStoppingPlainState(**early_stopping, mode=mode, verbose=False))
    if pruning:
        callbacks.append(Pruning(folder, checkpoint.get("monitor", "val_accuracy"), **pruning))
    return callbacks


class EarlyStoppingPlainState(EarlyStopping):
    """Lightning's early stopping, whose state is plain data: it begins as an infinite tensor, which no file may hold."""

    def state_dict(self) -> dict[str, Any]:
        """As Lightning's, with the best score as a number."""
        state = super().state_dict()
        return {**state, "best_score": float(state["best_score"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict({**state_dict, "best_score": torch.tensor(state_dict["best_score"])})


class Pruning(Callback):
    """Stops a trial of a sweep whose best epoch so far is worse than the median of what `trials` others, or more, had on
    average by then; not before `epochs`. The median stopping rule of D. Golovin et al., Google Vizier, KDD 2017, section 3.2.2.

    What the others are depends on when it is asked: a sweep with pruning isn't repeatable to the bit.
    """

    def __init__(self, folder: Path, monitor: str, trials: int = 5, epochs: int = 3) -> None:
        if monitor not in ("val_accuracy", "val_loss"):
            raise ConfigError(f"callbacks.pruning with checkpoint.monitor={monitor}: expected val_accuracy or val_loss")
        self.folder, self.monitor, self.trials, self.epochs = folder, monitor, trials, epochs
        self.sign = 1 if MONITORS[monitor] == "max" else -1

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare, and stop the training behind this epoch."""
        done = trainer.current_epoch + 1
        history: Any = module.history
        rows = [row[self.monitor] for row in history] + [float(trainer.callback_metrics[self.monitor])]
        best = max(self.sign * value for value in rows if value is not None)
        others = self._others(done) if trainer.is_global_zero and done >= self.epochs else []
        hopeless = len(others) >= self.trials and best < median(others)
        if trainer.strategy.broadcast(hopeless):
            trainer.should_stop = True
            if trainer.is_global_zero:
                had = abs(median(others))
                said = f"pruned after epoch {done}: {self.monitor} {abs(best):.4f}, {len(others)} trials had {had:.4f}"
                write_atomically(self.folder / PRUNED, f"{said}\n")
                print(said, flush=True)

    def _others(self, epochs: int) -> list[float]:
        """What each other trial on the same data had on average over its first `epochs`, larger being better."""
        mine = read_record(self.folder)
        found = []
        for path, record in find_trials(self.folder.parent):
            history = path / "history.csv"
            same = mine and record.settings.get("dataset") == mine.settings.get("dataset")
            if not same or path == self.folder or not history.is_file():
                continue
            with suppress(DataError):  # damaged: not this trial's affair
                values = [row[self.monitor] for row in read_history_csv(history)[:epochs]]
                if len(values) == epochs and None not in values:
                    found.append(self.sign * fmean(values))
        return found


class HistoryLogger(Checkpoint):
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


class ProgressBar(Callback):
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
