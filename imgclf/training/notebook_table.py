"""The history of a run as a table in a notebook, which grows by a row per epoch."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from imgclf.jupyter import LiveTable
from imgclf.training.classifier import ImageClassifier

__all__ = ["NotebookTable"]

_COLUMNS = ("epoch", "train loss", "train accuracy", "val loss", "val accuracy", "seconds")


class NotebookTable(Checkpoint):
    """Shows the history in one output of the cell; progress bars show below the table, one at a time.

    A `Checkpoint` by type only: Lightning calls those after the module, whose new row of history this shows.
    """

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
