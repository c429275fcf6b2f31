"""What becomes of answers: lines on stdout, a grid of pictures, copies sorted by class, and maps of where they come from."""

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.evaluation.saliency import explain, overlay
from imgclf.files.atomic import write_atomically
from imgclf.images import as_pixels, decode
from imgclf.inference.inputs import Picture, RemoteImage
from imgclf.inference.predictor import Prediction, Predictor
from imgclf.report.thumbnails import shrunk

__all__ = ["UNSURE", "CSVRows", "Grid", "JSONLines", "Maps", "SortedCopies", "Table", "verdict"]

UNSURE = "unsure"
TILES, TILE_SIDE = 100, 224  # of a grid: more are too small to look at


def verdict(answered: Prediction, classes: Sequence[str], threshold: float = 0.0) -> str:
    """The class that is said: the most probable one, or "unsure" where that is below `threshold`."""
    best = int(answered.probabilities.argmax())
    return classes[best] if answered.probabilities[best] >= threshold else UNSURE


def _best(answered: Prediction, count: int) -> list[int]:
    return [int(index) for index in np.argsort(-answered.probabilities, kind="stable")[:count]]


class Table:
    """A line a picture: its most probable classes, then its name, and its class where that is known and another."""

    def __init__(self, classes: Sequence[str], top: int, threshold: float) -> None:
        self.classes, self.top, self.threshold = classes, min(top, len(classes)), threshold
        self.width = min(max(map(len, classes)), 28)

    def __call__(self, answered: Prediction) -> None:
        """Print it."""
        cells = [f"{self.classes[i]:<{self.width}} {answered.probabilities[i]:6.1%}" for i in _best(answered, self.top)]
        said, true = verdict(answered, self.classes, self.threshold), answered.picture.true
        if self.threshold:
            cells.insert(0, f"{UNSURE if said == UNSURE else '':<{len(UNSURE)}}")
        truth = f"   (is {true})" if true is not None and true != self.classes[_best(answered, 1)[0]] else ""
        print(f"{'   '.join(cells)}   {answered.picture.name}{truth}", flush=True)


class CSVRows:
    """A row a picture on stdout, as it is answered: file, predicted, then a column a class."""

    def __init__(self, classes: Sequence[str], threshold: float) -> None:
        self.classes, self.threshold = classes, threshold
        self.writer = csv.writer(sys.stdout, lineterminator="\n")
        self.writer.writerow(["file", "predicted", *classes])

    def __call__(self, answered: Prediction) -> None:
        """Print it."""
        values = [f"{value:.7g}" for value in answered.probabilities.tolist()]
        self.writer.writerow([answered.picture.name, verdict(answered, self.classes, self.threshold), *values])


class JSONLines:
    """An object a picture on stdout: file, predicted, probability, top, true where it is known; or file and error."""

    def __init__(self, classes: Sequence[str], top: int, threshold: float) -> None:
        self.classes, self.top, self.threshold = classes, top, threshold

    def __call__(self, answered: Prediction) -> None:
        """Print it."""
        picture, probabilities = answered.picture, answered.probabilities
        facts: dict[str, Any] = {"file": picture.name}
        if answered.error is not None:
            facts["error"] = str(answered.error)
        else:
            best = _best(answered, self.top)
            facts["predicted"] = verdict(answered, self.classes, self.threshold)
            facts["probability"] = round(float(probabilities[best[0]]), 6)
            facts["top"] = [{"class": self.classes[i], "probability": round(float(probabilities[i]), 6)} for i in best]
            if picture.true is not None:
                facts["true"] = picture.true
        print(json.dumps(facts, ensure_ascii=False), flush=True)


class Grid:
    """The first `TILES` pictures side by side in one PNG, each titled with what was said of it."""

    def __init__(self, path: Path, predictor: Predictor, threshold: float, explained: bool) -> None:
        self.path, self.predictor, self.threshold, self.explained = path, predictor, threshold, explained
        self.tiles: list[Any] = []
        self.left_out = 0

    def __call__(self, answered: Prediction) -> None:
        """Take it in."""
        from imgclf.report.grid import Tile  # here, because it loads matplotlib

        if answered.pixels is None or len(self.tiles) >= TILES:
            self.left_out += answered.pixels is not None
            return
        heat = _map(self.predictor, answered) if self.explained else None
        image = answered.pixels if heat is not None else shrunk(_as_it_is(answered.picture), TILE_SIDE)
        said = verdict(answered, self.predictor.classes, self.threshold)
        probability = float(answered.probabilities.max())
        self.tiles.append(Tile(image, said, probability, answered.picture.true, heat))

    def finish(self) -> str:
        """Write it, and say so in a line."""
        from imgclf.report.grid import plot_grid

        if not self.tiles:
            return f"{self.path}: not written, no picture was answered"
        plot_grid(self.tiles, self.path)
        more = f"; {self.left_out:,} more don't fit (--sample takes some at random)" if self.left_out else ""
        return f"{self.path}: {len(self.tiles)} pictures{more}"


class SortedCopies:
    """A copy of each picture in a folder of its class below `folder`; nothing is overwritten."""

    def __init__(self, folder: Path, classes: Sequence[str], threshold: float) -> None:
        self.folder, self.classes, self.threshold, self.count = folder, classes, threshold, 0

    def __call__(self, answered: Prediction) -> None:
        """Copy it."""
        source = answered.picture.source
        name = re.sub(r"[^\w.()+ -]+", "_", answered.picture.name.rstrip("/").rpartition("/")[2]).lstrip(".")[-120:]
        if isinstance(source, (str, Path)):
            data = Path(source).read_bytes()
        elif isinstance(source, RemoteImage):
            data, name = source.read(), name.partition("?")[0]
        else:
            _, encoded = cv2.imencode(".png", np.ascontiguousarray(as_pixels(source)[:, :, ::-1]))
            data, name = encoded.tobytes(), f"{name}.png"
        said = re.sub(r"[/\\\0]", "_", verdict(answered, self.classes, self.threshold))
        write_atomically(_free(self.folder / (said if said not in (".", "..") else "_"), name or "picture"), data)
        self.count += 1

    def finish(self) -> str:
        """Say in a line what was done."""
        return f"{self.folder}: {self.count:,} copies, by class"


class Maps:
    """For each picture a PNG in `folder` with the picture as the network saw it, and where in it lies what speaks for what
    was said.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self.predictor, self.count = folder, predictor, 0

    def __call__(self, answered: Prediction) -> None:
        """Write it."""
        from imgclf.report.grid import Tile, plot_grid

        assert answered.pixels is not None
        said = verdict(answered, self.predictor.classes)
        tile = Tile(answered.pixels, said, float(answered.probabilities.max()), answered.picture.true,
                    _map(self.predictor, answered))  # fmt: skip
        stem = re.sub(r"[^\w()+ -]+", "_", Path(answered.picture.name).stem)[-80:] or "picture"
        plot_grid([tile], _free(self.folder, f"{self.count:05d}_{stem}.png"))
        self.count += 1

    def finish(self) -> str:
        """Say in a line what was done."""
        return f"{self.folder}: {self.count:,} maps"


Consumer = Callable[[Prediction], None]


def _map(predictor: Predictor, answered: Prediction) -> NDArray[np.uint8]:
    """The overlay uint8 [S, S, 3] for the most probable class."""
    assert answered.pixels is not None
    images = torch.from_numpy(answered.pixels[None]).permute(0, 3, 1, 2)  # [1, C, S, S]
    target = torch.tensor([int(answered.probabilities.argmax())])
    return overlay(answered.pixels, explain(predictor.trained, images, target)[0])


def _as_it_is(picture: Picture) -> NDArray[np.uint8]:
    """The picture at its own size: uint8 [H, W, 3]."""
    source = picture.source
    if isinstance(source, (str, Path, bytes)):
        return decode(source, picture.name)
    return decode(source.read(), picture.name) if isinstance(source, RemoteImage) else as_pixels(source)


def _free(folder: Path, name: str) -> Path:
    """A path in `folder` that nothing has: `name`, or `name-2`, `name-3` and so on in front of its suffix."""
    path = folder / name
    number = 2
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return path
