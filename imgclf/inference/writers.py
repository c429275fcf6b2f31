"""Output of predictions: lines on stdout, a grid of images, copies sorted by class, and saliency maps."""

import csv
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from imgclf.console import print_text
from imgclf.errors import ImageError
from imgclf.files import write_atomically
from imgclf.images import as_pixels, decode
from imgclf.inference.inputs import InputImage, RemoteImage
from imgclf.inference.prediction import Prediction
from imgclf.inference.predictor import Predictor
from imgclf.names import as_json, file_name, printable
from imgclf.report.page import shrunk
from imgclf.report.tables import predictions_header, text_cell

if TYPE_CHECKING:
    from imgclf.figures.grid import Tile

__all__ = [
    "CSVWriter",
    "GridWriter",
    "JSONWriter",
    "LineWriter",
    "SaliencyMaps",
    "Score",
    "SortedCopies",
    "TableWriter",
]

UNSURE = "unsure"
_GAP = "   "  # between the cells of the table
_NAME, _CLASS = 14, 12  # columns of a terminal that a file's name, and the name of a class, keep if they need them
MAX_TILES, TILE_SIDE = 100, 224  # of a grid: more tiles are too small to look at


def predicted_class(prediction: Prediction, classes: Sequence[str], threshold: float = 0.0) -> str:
    """Return the most probable class, or "unsure" if its probability is below `threshold`."""
    best = int(prediction.probabilities.argmax())
    return classes[best] if prediction.probabilities[best] >= threshold else UNSURE


class LineWriter(ABC):
    """Prints one line per image to stdout."""

    prints_errors = False  # otherwise an image that cannot be read has no line

    def __init__(self, classes: Sequence[str], top: int, threshold: float) -> None:
        self.classes, self.top, self.threshold = classes, top, threshold

    @abstractmethod
    def write(self, prediction: Prediction) -> None:
        """Print the line."""


class TableWriter(LineWriter):
    """Prints the most probable classes, the name, and the true class if it is known and differs.

    On a terminal each line fits: names are shortened, and where that isn't enough, the least probable classes left out.
    """

    def __init__(self, classes: Sequence[str], top: int, threshold: float) -> None:
        super().__init__(classes, min(top, len(classes)), threshold)
        self.columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.names = [printable(name) for name in classes]
        self.width = min(max(map(len, self.names)), 28)
        if self.columns:
            free = self.columns - _NAME - len(_GAP) * self.top - (len(UNSURE) + len(_GAP)) * bool(threshold)
            self.width = min(self.width, max(_CLASS, free // self.top - len(" 100.0%")))

    def write(self, prediction: Prediction) -> None:
        """Print the line, with class names padded to a column."""
        image, probabilities = prediction.image, prediction.probabilities
        best = _top_classes(prediction, self.top)
        cells = [f"{self._class(self.names[i]):<{self.width}} {probabilities[i]:6.1%}" for i in best]
        if self.threshold:
            predicted = predicted_class(prediction, self.classes, self.threshold)
            cells.insert(0, f"{UNSURE if predicted == UNSURE else '':<{len(UNSURE)}}")
        name, true = printable(image.name), image.true_class
        end = f"{_GAP}(is {self._class(printable(true))})" if true is not None and true != self.classes[best[0]] else ""
        if self.columns:
            fewest = 1 + bool(self.threshold)
            while (room := self.columns - len(_GAP.join([*cells, end]))) < min(_NAME, len(name)) and len(
                cells
            ) > fewest:
                cells.pop()
            name = name if len(name) <= room else f"…{name[len(name) - max(room - 1, 1) :]}"
        print_text(f"{_GAP.join([*cells, name])}{end}")

    def _class(self, name: str) -> str:
        """Return a class name, on a terminal in its column: of a longer one both ends."""
        if not self.columns or len(name) <= self.width:
            return name
        head = (self.width - 1) // 3
        return f"{name[:head]}…{name[len(name) - (self.width - 1 - head) :]}"


class CSVWriter(LineWriter):
    """Prints CSV: file, predicted, then the probability of each class; names as `text_cell` writes them."""

    def __init__(self, classes: Sequence[str], top: int, threshold: float) -> None:
        super().__init__(classes, top, threshold)
        self.rows = csv.writer(sys.stdout, lineterminator="\n")
        self._write_row(["file", *predictions_header(classes)])

    def write(self, prediction: Prediction) -> None:
        """Print the row."""
        values = [f"{value:.7g}" for value in prediction.probabilities.tolist()]
        predicted = predicted_class(prediction, self.classes, self.threshold)
        self._write_row([prediction.image.name, predicted, *values])

    def _write_row(self, cells: Sequence[str]) -> None:
        """Print cells, in which names are `escaped`."""
        self.rows.writerow([text_cell(cell, sys.stdout.encoding or "utf-8") for cell in cells])


class JSONWriter(LineWriter):
    """Prints a JSON object: file, predicted, probability, top, and true if known; or file and error."""

    prints_errors = True

    def write(self, prediction: Prediction) -> None:
        """Print the object."""
        record: dict[str, object] = {"file": prediction.image.name}
        if prediction.error is not None:
            record["error"] = str(prediction.error)
        else:
            best = _top_classes(prediction, self.top)
            rounded = [round(value, 6) for value in prediction.probabilities.tolist()]
            record["predicted"] = predicted_class(prediction, self.classes, self.threshold)
            record["probability"] = rounded[best[0]]
            record["top"] = [{"class": self.classes[i], "probability": rounded[i]} for i in best]
            if prediction.image.true_class is not None:
                record["true"] = prediction.image.true_class
        print(as_json(record, ascii_only=not _is_utf8(sys.stdout)), flush=True)


class GridWriter:
    """Draws the first `MAX_TILES` images in one PNG, each titled with its prediction."""

    def __init__(self, path: Path, predictor: Predictor, threshold: float, with_maps: bool) -> None:
        self.path, self.predictor, self.threshold, self.with_maps = path, predictor, threshold, with_maps
        self.tiles: list[Tile] = []
        self.omitted = 0

    def write(self, prediction: Prediction) -> None:
        """Add a tile."""
        if len(self.tiles) >= MAX_TILES:
            self.omitted += 1
        else:
            self.tiles.append(_make_tile(prediction, self.predictor, self.threshold, self.with_maps))

    def finish(self) -> str:
        """Write the PNG, and return a summary line."""
        from imgclf.figures.grid import plot_grid  # here, because it loads matplotlib

        if not self.tiles:
            return f"{self.path}: not written, because no image could be read"
        plot_grid(self.tiles, self.path)
        omitted = f"; {self.omitted:,} more do not fit (--sample takes random ones)" if self.omitted else ""
        return f"{self.path}: {len(self.tiles)} images{omitted}"


class SortedCopies:
    """Copies each image into a folder of its predicted class below `folder`; never overwrites a file."""

    def __init__(self, folder: Path, classes: Sequence[str], threshold: float) -> None:
        self.folder, self.classes, self.threshold, self.count = folder, classes, threshold, 0

    def write(self, prediction: Prediction) -> None:
        """Copy the image."""
        image, source = prediction.image, prediction.image.source
        name = image.name.rstrip("/").rpartition("/")[2]
        if isinstance(source, (str, Path)):
            try:
                data = Path(source).read_bytes()
            except OSError as error:
                raise ImageError(
                    f"{image.name}: not copied ({error.strerror}): it was there when it was read"
                ) from None
        elif isinstance(source, RemoteImage):
            data, name = source.read(), name.partition("?")[0]
        else:
            _, encoded = cv2.imencode(".png", np.ascontiguousarray(as_pixels(source)[:, :, ::-1]))
            data, name = encoded.tobytes(), f"{name}.png"
        folder = file_name(predicted_class(prediction, self.classes, self.threshold), distinct=True)
        write_atomically(_unused_path(self.folder / folder, file_name(name.lstrip(".") or "image")), data)
        self.count += 1

    def finish(self) -> str:
        """Return a summary line."""
        return f"{self.folder}: {self.count:,} copies, sorted by class"


class SaliencyMaps:
    """Writes one PNG per image to `folder`: the image as the network saw it, next to the saliency map of its prediction,
    which is in its name: `ace_of_hearts_0.93__photo.jpg.png`.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self.predictor, self.count = folder, predictor, 0

    def write(self, prediction: Prediction) -> None:
        """Write the PNG."""
        from imgclf.figures.grid import plot_grid

        best = predicted_class(prediction, self.predictor.classes)
        label = file_name(best, 80, keep="start").replace(" ", "_")
        file = re.split(r"[/\\]", prediction.image.name.rstrip("/"))[-1]
        if isinstance(prediction.image.source, RemoteImage):
            file = file.partition("?")[0]
        file = file_name(file, 120).replace(" ", "_")
        tile = _make_tile(prediction, self.predictor, threshold=0.0, with_map=True)
        name = f"{label}_{prediction.probabilities.max():.2f}__{file}.png"
        plot_grid([tile], _unused_path(self.folder, name))
        self.count += 1

    def finish(self) -> str:
        """Return a summary line."""
        return f"{self.folder}: {self.count:,} saliency maps"


class Score:
    """Counts the correct predictions of the images whose true class is known."""

    def __init__(self, classes: Sequence[str], threshold: float) -> None:
        self.classes, self.threshold = classes, threshold
        self.correct = self.judged = self.others = self.unsure = 0

    def write(self, prediction: Prediction) -> None:
        """Count the image; one that is "unsure" is not correct."""
        true = prediction.image.true_class
        self.judged += true is not None
        self.others += true is None
        predicted = predicted_class(prediction, self.classes, self.threshold)
        self.correct += true is not None and predicted == true
        self.unsure += true is not None and predicted == UNSURE

    def finish(self) -> str:
        """Return a summary line; an empty one where fewer than two images can be judged."""
        if self.judged < 2:
            return ""
        others = f" ({self.others:,} whose folder is not a class are not judged)" if self.others else ""
        unsure = f", {self.unsure:,} unsure" if self.unsure else ""
        return f"{self.correct:,} of {self.judged:,} correct{unsure}{others}"


Collector: TypeAlias = GridWriter | SortedCopies | SaliencyMaps | Score
"""What takes each prediction, and ends with a summary line."""


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"


def _top_classes(prediction: Prediction, count: int) -> list[int]:
    return [int(index) for index in np.argsort(-prediction.probabilities, kind="stable")[:count]]


def _make_tile(prediction: Prediction, predictor: Predictor, threshold: float, with_map: bool) -> "Tile":
    from imgclf.figures.grid import Tile

    if with_map:
        assert prediction.pixels is not None
        best = int(prediction.probabilities.argmax())
        pixels, saliency = prediction.pixels, predictor.runner.saliency(prediction.pixels, best)
    else:
        pixels, saliency = shrunk(_original_pixels(prediction.image, predictor.model.preprocess.bits), TILE_SIDE), None
    predicted = predicted_class(prediction, predictor.classes, threshold)
    return Tile(pixels, predicted, float(prediction.probabilities.max()), prediction.image.true_class, saliency)


def _original_pixels(image: InputImage, bits: int) -> NDArray[np.uint8]:
    """Return the image at its own size: uint8 [H, W, 3]."""
    source = image.source
    if isinstance(source, (str, Path, bytes)):
        return decode(source, image.name, bits)
    return decode(source.read(), image.name, bits) if isinstance(source, RemoteImage) else as_pixels(source, bits)


def _unused_path(folder: Path, name: str) -> Path:
    """Return a path in `folder` that does not exist: `name`, or with -2, -3, ... before its suffix."""
    path = folder / name
    number = 2
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return path
