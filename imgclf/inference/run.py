"""A run in Python: its results, plots, report and classifier, each read from the files of its folder when it is asked for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from imgclf.config import RunConfig
from imgclf.errors import ConfigError, DataError, RunError, one_line, require_value
from imgclf.evaluation.classification import format_accuracy
from imgclf.files.run_folder import find_run, finished_epochs
from imgclf.report.tables import read_confusion_csv, read_history_csv, read_predictions_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imgclf.data.datamodule import ImageDataModule
    from imgclf.inference.predictor import Predictor

__all__ = ["Run", "TopLoss", "open_run"]

_LEAST = float(np.finfo(np.float32).tiny)  # probability, so that every loss is finite


def open_run(run: "str | Path | Run") -> "Run":
    """Return the run in a folder; `run` may also be one of its checkpoints, or "latest" for the newest finished run.

    Raises `RunError` or `CheckpointError` where there is none.
    """
    folder = run.folder if isinstance(run, Run) else find_run(run)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{run}: its folder holds no run; pass a run's folder, one of its checkpoints, or latest")
    return Run(folder)


class Run:
    """A run of `imgclf.train` or `imgclf train` in `folder`; what an unfinished run lacks raises `RunError`."""

    def __init__(self, folder: str | Path) -> None:
        require_value("the run's folder", folder)
        self.folder = Path(folder).absolute()

    @cached_property
    def config(self) -> RunConfig:
        """All settings of the run."""
        path = self.folder / "config.yaml"
        try:
            return RunConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ConfigError) as error:
            raise RunError(f"{path}: can't be read as a run's settings ({one_line(error, 160)})") from None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each split, `top5` only of more than five classes: {split: {accuracy, loss, macro_f1, correct, ...}}."""
        path = self._file("metrics.json")
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{path}: can't be read as metrics ({one_line(error, 160)})") from None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per epoch, with the columns of `history.csv`; `pandas.DataFrame(run.history)` is a table."""
        return read_history_csv(self._file("history.csv"))

    @cached_property
    def classifier(self) -> "Predictor":
        """The classifier of the best epoch, loaded at first use."""
        from imgclf.inference.predictor import load  # here, because it loads torch

        return load(self._file("checkpoints/best.ckpt"))

    def predict(self, images: object) -> Any:
        """Return the class name of one image, or a list of them for several; see `Predictor.predict`."""
        return self.classifier.predict(images)

    @cached_property
    def data(self) -> "ImageDataModule":
        """The data of the run, with its splits, as its network sees them; raises `DataError` where they have moved."""
        from imgclf.training.build import data_of  # here, because it loads Lightning

        data = data_of(self.config)
        data.connect(self.classifier.model.preprocess)
        return data

    @property
    def report(self) -> "Report":
        """The path of report.html; as the last line of a notebook's cell, the page itself."""
        if self.config.report is False:
            raise RunError(f"{self.folder}: this run has no report; it was trained with report=false")
        return Report(self._file("report.html"))

    def plot_curves(self) -> "Figure":
        """Return a figure of loss and accuracy over the epochs, for training and validation."""
        from imgclf.figures.plots import curves_figure  # here, because it loads matplotlib

        return curves_figure(self.history)

    def plot_confusion(self, split: str = "test") -> "Figure":
        """Return a figure of the confusion matrix of a split, test or val."""
        from imgclf.report.confusion import confusion_figure  # here, because it loads matplotlib

        path = self._file(f"confusion_{split}.csv")
        classes, matrix = read_confusion_csv(path)
        try:
            return confusion_figure(matrix, classes)
        except ValueError as error:
            raise DataError(f"{path}: can't be read as counts ({one_line(error, 160)})") from None

    def top_losses(self, n: int = 9) -> "TopLosses":
        """Return the `n` test images with the highest loss, the highest first; a notebook shows them as a grid."""
        if n < 1:
            raise ConfigError(f"n={n}: expected the number of images to show, at least 1")
        tested = self._tested
        own = np.take_along_axis(tested.probabilities, tested.targets[:, None], axis=1)[:, 0]  # [N]
        order = np.argsort(own, kind="stable")[:n].tolist()
        predicted = tested.probabilities.argmax(axis=1)
        rows = (
            TopLoss(
                path=tested.files[index],
                actual=tested.classes[tested.targets[index]],
                predicted=tested.classes[predicted[index]],
                probability=float(tested.probabilities[index].max()),
                loss=-math.log(max(float(own[index]), _LEAST)),
            )
            for index in order
        )
        return TopLosses(rows, self)

    @cached_property
    def _tested(self) -> "_Tested":
        return _Tested.read(self._file("predictions_test.csv"))

    def _file(self, name: str) -> Path:
        """Return the path of a file of the run; raises `RunError` where it's missing."""
        path = self.folder / name
        if path.is_file():
            return path
        if finished_epochs(self.folder) is None:
            reason = f"the run isn't finished; imgclf.train(resume={str(self.folder)!r}) continues it"
        else:
            reason = "it has been deleted, or the run had no images to test"
        raise RunError(f"{path}: no such file; {reason}")

    def __repr__(self) -> str:
        lines = [f"Run in {self.folder}", f"  {self.config.dataset.name}, {self.config.model.name}"]
        try:
            epochs = len(self.history)
            lines[-1] += f", {epochs} epoch{'s' * (epochs > 1)}"
            lines += [f"  {split:<5} {_in_words(values)}" for split, values in self.metrics.items()]
        except (RunError, DataError):
            lines.append("  not finished")
        return "\n".join(lines)


def _in_words(values: Mapping[str, float]) -> str:
    return f"{format_accuracy(int(values['correct']), int(values['count']))}, loss {values['loss']:.4f}"


class Report:
    """The `path` of a report.html, which `os.fspath`, `open` and `str` take; a notebook shows the page."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Report at {self.path.as_uri()}"

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, so that its styles and the notebook's don't mix."""
        page = escape(self.path.read_text(encoding="utf-8"))
        style = "width: 100%; height: 720px; border: 1px solid #8884"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="{style}" title="report"></iframe>'


@dataclass(frozen=True)
class TopLoss:
    """A test image: its `path`, `actual` and `predicted` class, the `probability` of the latter, and the `loss`."""

    path: str
    actual: str
    predicted: str
    probability: float
    loss: float


class TopLosses(list[TopLoss]):
    """A list of `TopLoss`; `figure` shows the images side by side, and so does a notebook."""

    def __init__(self, rows: Any, run: Run) -> None:
        super().__init__(rows)
        self._run = run

    @cached_property
    def figure(self) -> "Figure":
        """The images in a grid, each titled with its prediction; raises `DataError` where the data have moved."""
        from imgclf.figures.grid import Tile, grid_figure  # here, because it loads matplotlib

        data = self._run.data
        items = data.samples["test"].items
        index = {item: number for number, item in enumerate(items)}
        if missing := [row.path for row in self if row.path not in index]:
            raise DataError(f"{missing[0]}: isn't among the test images any more; restore the data of the run")
        images = [data.image("test", index[row.path]) for row in self]
        return grid_figure(
            [
                Tile(image, row.predicted, row.probability, row.actual, note=f"loss {row.loss:.2f}")
                for image, row in zip(images, self, strict=True)
            ]
        )

    def _repr_png_(self) -> Any:
        return self.figure._repr_png_() if self else None  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        lines = (
            f"loss {row.loss:7.4f}  {row.actual} as {row.predicted} ({row.probability:.1%})  {row.path}" for row in self
        )
        return "\n".join(lines) or "no test images"


@dataclass(frozen=True, eq=False)
class _Tested:
    """What predictions_test.csv holds: `files` [N], `targets` int64 [N], `probabilities` float32 [N, K], and the classes."""

    files: list[str]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    classes: list[str]

    @classmethod
    def read(cls, path: Path) -> "_Tested":
        """Read the file; raises `DataError`."""
        classes, rows = read_predictions_csv(path)
        try:
            targets = np.array([classes.index(row[1]) for row in rows], dtype=np.int64)
            probabilities = np.array([row[3:] for row in rows], dtype=np.float32).reshape(len(rows), len(classes))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}: can't be read as predictions ({one_line(error, 160)})") from None
        return cls([row[0] for row in rows], targets, probabilities, classes)
