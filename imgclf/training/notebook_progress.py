"""The progress of a run in a notebook: a row per epoch, and a bar for the running one."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from imgclf.jupyter import LiveTable
from imgclf.training.classifier import ImageClassifier

__all__ = ["NotebookProgress"]

_COLUMNS = ("epoch", "train loss", "train accuracy", "val loss", "val accuracy", "seconds")


class NotebookProgress(Callback):
    """Shows the history as a table that grows with the epochs, in one output of the cell."""

    def __init__(self) -> None:
        self._table = LiveTable(_COLUMNS)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the table, with the epochs that a resumed run has already."""
        self._fill(module)
        self._table.open()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin the bar."""
        self._fill(module)
        self._table.bar(self._label(trainer), 0, int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Advance the bar."""
        self._table.bar(self._label(trainer), index + 1, int(trainer.num_training_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        """Show the bar of the validation."""
        self._table.bar(f"{self._label(trainer)}, validation", index + 1, int(trainer.num_val_batches[0]))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the table without a bar."""
        self._fill(module)
        self._table.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """As `on_fit_end`, with the epochs that were finished."""
        self.on_fit_end(trainer, module)

    def _label(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"

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
