"""The tracker logger=csv: Lightning's, but a resumed run keeps the rows that it has written before.

Lightning deletes metrics.csv when its logger is built again.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from imgclf.files.atomic import write_atomically

__all__ = ["CsvTracker"]

Row = dict[str, Any]


class CsvTracker(CSVLogger):
    """Writes `csv/metrics.csv` in `folder`: two rows per epoch, of validation and of training, and one of the results.

    `steps` and `history` are those of the checkpoint that a run is resumed from: rows of later steps, which the run will
    write again, are dropped. `options` are more keywords of Lightning's logger.
    """

    def __init__(self, folder: Path, steps: int = 0, history: Sequence[Mapping[str, Any]] = (), **options: Any) -> None:
        super().__init__(folder, name="csv", version="", **options)  # no version_N folder, as a run has its own
        self._steps, self._history = steps, history

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the rows; the file is prepared when it is first asked for."""
        if not isinstance(self._experiment, _Writer):
            self._experiment = _Writer(self.log_dir)
            columns = _keep_rows(Path(self._experiment.metrics_file_path), self._steps, self._history)
            self._experiment.metrics_keys = columns
        return self._experiment


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""


def _keep_rows(path: Path, steps: int, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reduce the file to the rows of the first `steps` steps, and return its columns; without any it is deleted.

    A run that is stopped at an epoch's end has saved its checkpoint, but not yet written the epoch's row of training.
    """
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "") if path.is_file() else ""
    rows = [_filled(row) for row in csv.DictReader(io.StringIO(text)) if _number(row.get("step")) < steps]
    if rows and history:
        trained = {_number(row.get("epoch")) for row in rows if "train_loss" in row}
        if history[-1]["epoch"] not in trained:
            rows.append(_training_row(history[-1], steps - 1))
    if not rows:
        path.unlink(missing_ok=True)
        return []
    columns, file = sorted(set().union(*rows)), io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())
    return columns


def _filled(row: Row) -> Row:
    return {key: value for key, value in row.items() if key and value}


def _number(text: str | None) -> float:
    """Return the number in a cell; infinity for none, as a row that was cut off has."""
    try:
        return float(text or "inf")
    except ValueError:
        return float("inf")


def _training_row(epoch: Mapping[str, Any], step: int) -> Row:
    """Return an epoch of the history as Lightning would have written it, in single precision."""
    values = {key: torch.tensor(float(epoch[key])).item() for key in ("epoch", "lr", "train_loss", "train_accuracy")}
    return {**values, "step": step}
