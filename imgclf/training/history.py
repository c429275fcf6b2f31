"""What shows the history of a run while it grows: its files, a line per epoch, and the table of a notebook."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from imgclf.console import print_text
from imgclf.jupyter import LiveTable, in_notebook
from imgclf.report.tables import write_history
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.classifier import ImageClassifier

__all__ = ["HistoryLogger", "NotebookTable"]

_COLUMNS = ("epoch", "train loss", "train accuracy", "val loss", "val accuracy", "seconds")


class AfterModule(Checkpoint):
    """A callback that finds the epoch's row in the module's history: Lightning calls callbacks of this type, and no others,
    after the module. It saves no checkpoint.
    """


class HistoryLogger(AfterModule):
    """Writes `history.csv` and `history.json` into `folder`, and prints one row of a table, at the end of each epoch.

    `checkpoint` knows which epoch is the best so far.
    """

    def __init__(self, folder: Path, checkpoint: CheckpointCallback) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        self._heading: str | None = (
            f"{'':13}{'train loss':>11}{'accuracy':>10}{'val loss':>10}{'accuracy':>10}{'lr':>10}"
        )

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the files and print the epoch's line."""
        if not trainer.is_global_zero:
            return
        assert isinstance(module, ImageClassifier)
        rows = module.history
        write_history(self.folder, rows)
        if in_notebook():  # where `NotebookTable` shows them
            return
        if self._heading:
            print_text(f"{self._heading}{'time':>8}")
            self._heading = None
        row = rows[-1]
        end = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # -1: without end
        line = f"epoch {row['epoch']:>3}{end}".ljust(13)
        for loss, accuracy, width in (("train_loss", "train_accuracy", 11), ("val_loss", "val_accuracy", 10)):
            values = ("-", "-") if row[loss] is None else (f"{row[loss]:.4f}", f"{row[accuracy]:.2%}")
            line += f"{values[0][:9]:>{width}}{values[1]:>10}"
        best = "  best" if row["val_loss"] is not None and self.checkpoint.improves(trainer) else ""
        print_text(f"{line}{row['lr']:>10.2e}{row['seconds']:>6.1f} s{best}")


class NotebookTable(AfterModule):
    """Shows the history in one output of the cell; progress bars show below the table, one at a time."""

    def __init__(self) -> None:
        self._table = LiveTable(_COLUMNS)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the table, with the epochs that a resumed run has already."""
        self._fill(module)
        self._table.open()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the epoch."""
        self._fill(module)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the table without a bar."""
        self._table.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Leave the table with the epochs that were finished."""
        self._table.close()

    def _fill(self, module: LightningModule) -> None:
        assert isinstance(module, ImageClassifier)
        self._table.rows = [
            [
                str(row["epoch"]),
                *(_text(row[f"{split}_{name}"], name) for split in ("train", "val") for name in ("loss", "accuracy")),
                f"{row['seconds']:.1f}",
            ]
            for row in module.history
        ]


def _text(value: float | None, name: str) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if name == "loss" else f"{value:.1%}"
