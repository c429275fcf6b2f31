"""The report of a run or an evaluation: report.html, the curves and the confusion matrices, all of bounded size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import ConfigError
from imgclf.evaluation import Evaluation
from imgclf.evaluation.calibration import accuracy_interval, reliability
from imgclf.evaluation.classification import per_class
from imgclf.evaluation.evaluate import softmax
from imgclf.evaluation.saliency import explain, overlay
from imgclf.figures.plots import plot_curves
from imgclf.files.atomic import write_atomically
from imgclf.models.image_model import ImageModel
from imgclf.models.network import Network
from imgclf.report.confusion import plot_confusion
from imgclf.report.facts import data_rows, environment_rows, measuring_notes
from imgclf.report.page import data_uri, results_page
from imgclf.report.summary import network_rows
from imgclf.report.tables import score_rows

__all__ = ["ReportInputs", "write_report"]

# Images of the page, and their longer sides in pixels: 400 of 104 take some 1.5 MB.
SHOWN, SIDE = 400, 104
ERRORS = 250  # of those that are shown; the rest are correct predictions
LISTED = 24  # in a list of errors, or of the least confident predictions
SALIENCY = 6  # maps of errors, and as many of correct predictions
PAIRS = 15  # of classes that are most confused
SAMPLES, SAMPLE_SIDE = 120, 68

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a report shows: a model, its data, and its evaluations by split.

    `environment` is that of `describe_environment`, with the wall time of each part in "seconds". `config` are the
    settings of the run, `history` its epochs, `train_metrics` those of its last epoch; all three may be empty.
    `best_epoch`, from 1 on, is that of the evaluations of a run that has just been trained, else None.
    """

    model: ImageModel
    data: ImageDataModule
    evaluations: Mapping[str, Evaluation]
    environment: Mapping[str, Any]
    config: Mapping[str, object] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int | None = None

    @property
    def backbone(self) -> str:
        """timm's name of the network."""
        network = self.model.network
        return network.backbone.name if isinstance(network, Network) else type(network).__name__

    @property
    def split(self) -> str:
        """The split that the page is about: test, where it was evaluated."""
        return "test" if "test" in self.evaluations else next(iter(self.evaluations))


def write_report(folder: Path, inputs: ReportInputs) -> None:
    """Write report.html, and the curves and confusion matrices as PNG, into `folder`; no page without an evaluation.

    `imgclf.report.tables.report_files` names the files.
    """
    for split, evaluation in inputs.evaluations.items():
        plot_confusion(evaluation.matrix, inputs.model.classes, folder / f"confusion_{split}.png")
    if inputs.history:
        plot_curves(inputs.history, folder / "curves.png")
    if inputs.evaluations:
        listed = f"predictions_{inputs.split}.csv"
        content = _page_data(inputs, listed if (folder / listed).exists() else None)
        write_atomically(folder / "report.html", results_page(content))


def _page_data(inputs: ReportInputs, listed: str | None) -> dict[str, object]:
    """Return the content of the page, as `results.js` draws it; `listed` is the file with all predictions, if there is one."""
    model, data, evaluation = inputs.model, inputs.data, inputs.evaluations[inputs.split]
    shown, pixels, size = _choose_images(evaluation), evaluation.samples.pixels, model.preprocess.size
    correct = evaluation.predicted == evaluation.targets  # [N]
    splits: dict[str, Mapping[str, object]] = {"train": inputs.train_metrics} if inputs.train_metrics else {}
    for name, one in inputs.evaluations.items():
        interval = accuracy_interval(int(one.metrics["correct"]), int(one.metrics["count"]))
        splits[name] = {**one.metrics, "interval": interval}
    count = len(inputs.history)
    epochs = f", {count} epoch{'s' * (count > 1)}" if count else ""
    cells = _cells(evaluation.matrix)
    measured = (model.network, inputs.evaluations, inputs.config, count, inputs.best_epoch)
    notes = measuring_notes(*measured, with_train=bool(inputs.train_metrics))
    calibrated = (
        reliability(evaluation.probabilities, evaluation.targets) if "temperature" in evaluation.metrics else None
    )
    return {
        "title": f"{data.name}: {inputs.backbone}",
        "description": f"{inputs.backbone} on {size} × {size} pixels, {len(model.classes)} classes{epochs}",
        "classes": list(model.classes),
        "split": inputs.split,
        "splits": splits,
        "notes": list(notes),
        "best_epoch": inputs.best_epoch,
        "listed": listed,
        "history": list(inputs.history),
        "matrix": cells,
        "confused": sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:PAIRS],
        "per_class": per_class(evaluation.matrix),
        "averages": _averages(evaluation.matrix),
        "counts": {name: samples.counts().tolist() for name, samples in data.samples.items() if len(samples)},
        "images": [_image(inputs, evaluation, position) for position in shown],
        "tiny_pixels": pixels is not None and pixels.shape[1] < SIDE,
        "errors": _list_images(shown, ~correct, -evaluation.confidence),
        "least_confident": _list_images(shown, correct, evaluation.confidence),
        "saliency": _saliency(inputs, evaluation, correct),
        "reliability": reliability(softmax(evaluation.logits), evaluation.targets),
        "reliability_calibrated": calibrated,
        "network": network_rows(model.network, model.preprocess) if isinstance(model.network, Network) else [],
        "data": data_rows(data),
        "samples": list(_samples(data)) if _is_own_data(inputs) else [],
        "augmented": list(_augmented(data)) if inputs.best_epoch else [],
        "environment": environment_rows(inputs.environment, inputs.config),
    }


def _is_own_data(inputs: ReportInputs) -> bool:
    """Return whether the network was trained on the data's training images, as far as the checkpoint says."""
    trained = inputs.model.metadata.data
    return not trained.name or (trained.name, trained.root) == (inputs.data.name, str(inputs.data.root))


def _averages(matrix: Indices) -> list[list[str]]:
    """Return the rows below the table of the classes: accuracy and the averages."""
    rows = list(score_rows([""] * len(matrix), matrix, digits=3))[len(matrix) :]
    return [[name, *cells, f"{scores['support']:,}"] for name, scores, cells in rows]


def _choose_images(evaluation: Evaluation) -> list[int]:
    """Return the positions of the images that the page holds.

    All of them if they are few; else first the most confident errors, then correct predictions, the least confident of
    each class in turn, so that no cell on the diagonal of the matrix is without an image.
    """
    predicted, confidence = evaluation.predicted, evaluation.confidence
    if len(predicted) <= SHOWN:
        return list(range(len(predicted)))
    wrong = np.flatnonzero(predicted != evaluation.targets)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:ERRORS].tolist()
    correct = np.flatnonzero(predicted == evaluation.targets)
    correct = correct[np.argsort(confidence[correct], kind="stable")]
    turn: Indices = np.zeros(len(correct), dtype=np.int64)  # the rank of each within its class
    for target in np.unique(predicted[correct]):
        own = predicted[correct] == target
        turn[own] = np.arange(own.sum())
    return chosen + correct[np.argsort(turn, kind="stable")][: SHOWN - len(chosen)].tolist()


def _list_images(shown: Sequence[int], mask: NDArray[np.bool_], key: NDArray[np.floating[Any]]) -> list[int]:
    """Return the indices into `shown` of the first images in `mask`, sorted by `key`."""
    index = {position: number for number, position in enumerate(shown)}
    order = np.flatnonzero(mask)[np.argsort(key[mask], kind="stable")]
    return [index[position] for position in order.tolist() if position in index][:LISTED]


def _image(inputs: ReportInputs, evaluation: Evaluation, position: int) -> dict[str, object]:
    probabilities, index = evaluation.probabilities[position], int(evaluation.order[position])
    best = np.argsort(-probabilities, kind="stable")[:5].tolist()
    return {
        "src": data_uri(inputs.data.image(inputs.split, index), SIDE, 75),
        "file": _short_path(evaluation.samples.items[index], inputs.data.root),
        "true": int(evaluation.targets[position]),
        "predicted": best[0],
        "probability": round(float(probabilities[best[0]]), 5),
        "top": [[target, round(float(probabilities[target]), 5)] for target in best],
    }


def _saliency(inputs: ReportInputs, evaluation: Evaluation, correct: NDArray[np.bool_]) -> list[dict[str, object]]:
    """Return images with saliency maps: the most confident errors, and correct predictions of different classes."""
    wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:SALIENCY]
    _, firsts = np.unique(evaluation.targets[right], return_index=True)  # one per class
    if len(firsts) > SALIENCY:
        firsts = firsts[np.linspace(0, len(firsts) - 1, SALIENCY).astype(int)]
    positions = np.concatenate([wrong, right[firsts]])
    images = inputs.data.loader(inputs.split).images(0, evaluation.order[positions])  # uint8 [B, S, S, C]
    pixels, predicted = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(evaluation.predicted[positions])
    try:
        maps = explain(inputs.model, pixels, predicted)
    except ConfigError:  # the network has no feature map: the page has no such part
        return []
    return [
        _image(inputs, evaluation, position)
        | {"src": data_uri(image, SIDE), "overlay": data_uri(overlay(image, heat), SIDE)}
        for position, image, heat in zip(positions.tolist(), images, maps, strict=True)
    ]


def _samples(data: ImageDataModule) -> Iterator[dict[str, str]]:
    """Yield the first training image of each class."""
    train = data.samples["train"]
    for target, index in _one_per_class(train.targets):
        yield {"src": data_uri(data.image("train", index), SAMPLE_SIDE, 75), "caption": train.classes[target]}


def _augmented(data: ImageDataModule) -> Iterator[dict[str, str]]:
    """Yield the same images as the network saw them in the first epoch."""
    if not data.augment:
        return
    train = data.samples["train"]
    chosen = _one_per_class(train.targets)
    images = data.loader("train", training=True).images(0, np.array([index for _, index in chosen]))
    for (target, _), image in zip(chosen, images, strict=True):
        yield {"src": data_uri(image, SAMPLE_SIDE, 75), "caption": train.classes[target]}


def _one_per_class(targets: Indices) -> list[tuple[int, int]]:
    classes, firsts = np.unique(targets, return_index=True)
    return list(zip(classes.tolist(), firsts.tolist(), strict=True))[:SAMPLES]


def _cells(matrix: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return (true, predicted, count) of each cell that isn't empty."""
    return [(row, column, int(matrix[row, column])) for row, column in np.argwhere(matrix).tolist()]


def _short_path(item: str, root: Path) -> str:
    """Return a file's path below the data set's folder."""
    path = Path(item)
    return str(path.relative_to(root)) if path.is_relative_to(root) else "/".join(path.parts[-3:])
