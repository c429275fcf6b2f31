"""What goes into a run's report: numbers from the arrays, pictures from the data, all of bounded size."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import ConfigError
from imgclf.evaluation.calibration import accuracy_interval, reliability
from imgclf.evaluation.evaluate import Evaluation, softmax
from imgclf.evaluation.saliency import explain, overlay
from imgclf.files.atomic import write_atomically
from imgclf.report.confusion import plot_confusion
from imgclf.report.curves import plot_curves
from imgclf.report.page import results_page
from imgclf.report.tables import per_class
from imgclf.report.thumbnails import data_uri
from imgclf.training.classifier import ImageClassifier

__all__ = ["write_report"]

# Pictures of the page, and their longer sides in pixels: 400 of 104 take some 1.5 MB.
SHOWN, SIDE = 400, 104
MISTAKES = 250  # of those that are shown; the rest are hits
LISTED = 24  # in a list of the worst or the least certain
EXPLAINED = 6  # hits, and as many mistakes
SAMPLES, SAMPLE_SIDE = 120, 68

Indices = NDArray[np.int64]


def write_report(folder: Path, classifier: ImageClassifier, data: ImageDataModule, measured: Mapping[str, Evaluation],
                 environment: Mapping[str, Any]) -> None:  # fmt: skip
    """Write report.html, and the curves and confusion matrices as PNG, into `folder`; nothing where nothing was measured."""
    for split, found in measured.items():
        plot_confusion(found.matrix, classifier.classes, folder / f"confusion_{split}.png")
    if classifier.history:
        plot_curves(classifier.history, folder / "curves.png")
    if measured:
        write_atomically(folder / "report.html", results_page(_facts(classifier, data, measured, environment)))


def _facts(classifier: ImageClassifier, data: ImageDataModule, measured: Mapping[str, Evaluation],
           environment: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """What `results.js` draws, as plain data."""
    split = "test" if "test" in measured else next(iter(measured))
    found = measured[split]
    shown = _chosen(found)
    hits = found.probabilities.argmax(axis=1) == found.targets  # [N]
    sureness = found.probabilities.max(axis=1)  # [N]
    model, preprocess = classifier.model_config, classifier.preprocess
    small = found.samples.pixels is not None and found.samples.pixels.shape[1] < SIDE
    metrics = {**({"train": classifier.training_means()} if classifier.history else {}),
               **{name: {**one.metrics, "interval": accuracy_interval(one.metrics["correct"], one.metrics["count"])}
                  for name, one in measured.items()}}  # fmt: skip
    rank = {position: number for number, position in enumerate(shown)}

    def listed(mask: NDArray[np.bool_], by: NDArray[np.floating[Any]]) -> list[int]:
        order = np.flatnonzero(mask)[np.argsort(by[mask], kind="stable")]
        return [rank[position] for position in order.tolist() if position in rank][:LISTED]

    explained = _explained(classifier, data, found, hits, sureness)
    calibrated = "temperature" in found.metrics
    return {
        "title": f"{data.name}: {model.backbone}",
        "about": f"{model.backbone} on {preprocess.size} × {preprocess.size} pixels, {len(classifier.classes)} classes"
        + (f", {len(classifier.history)} epochs" if classifier.history else ""),
        "classes": list(classifier.classes),
        "split": split,
        "splits": {name: _finite(values) for name, values in metrics.items()},
        "history": [_finite(row) for row in classifier.history],
        "matrix": _cells(found.matrix),
        "pairs": sorted((cell for cell in _cells(found.matrix) if cell[0] != cell[1]), key=lambda c: -c[2])[:15],
        "per_class": per_class(found.matrix),
        "counts": {name: samples.counts().tolist() for name, samples in data.samples.items()},
        "pictures": [_picture(data, split, found, position) for position in shown],
        "tiny_pixels": small,
        "worst": listed(~hits, -sureness),
        "least": listed(hits, sureness),
        "explained": explained,
        "reliability": reliability(softmax(found.logits), found.targets),
        "reliability_calibrated": reliability(found.probabilities, found.targets) if calibrated else None,
        "data": [["data set", data.name], ["folder", str(data.root)],
                 *([name, f"{len(samples):,} pictures"] for name, samples in data.samples.items()),
                 ["augmentation", _said(data.augment) or "none"], ["notes", "; ".join(data.notes) or "none"]],
        "samples": list(_samples(data)),
        "augmented": list(_augmented(data)),
        "environment": _environment(classifier, environment),
    }  # fmt: skip


def _chosen(found: Evaluation) -> list[int]:
    """The positions of the pictures that the page holds: all of them if there are few, else first the surest mistakes, then
    hits, the least certain of each class in turn, so that no cell of the matrix on the diagonal is empty.
    """
    predicted, sureness = found.probabilities.argmax(axis=1), found.probabilities.max(axis=1)
    if len(predicted) <= SHOWN:
        return list(range(len(predicted)))
    wrong = np.flatnonzero(predicted != found.targets)
    chosen = wrong[np.argsort(-sureness[wrong], kind="stable")][:MISTAKES].tolist()
    hits = np.flatnonzero(predicted == found.targets)
    hits = hits[np.argsort(sureness[hits], kind="stable")]
    turn: Indices = np.zeros(len(hits), dtype=np.int64)  # which of its class each hit is
    for name in np.unique(predicted[hits]):
        mine = predicted[hits] == name
        turn[mine] = np.arange(mine.sum())
    return chosen + hits[np.argsort(turn, kind="stable")][: SHOWN - len(chosen)].tolist()


def _picture(data: ImageDataModule, split: str, found: Evaluation, position: int) -> dict[str, Any]:
    row, index = found.probabilities[position], int(found.order[position])
    best = np.argsort(-row, kind="stable")[:5].tolist()
    return {
        "src": data_uri(data.picture(split, index), SIDE, 75),
        "file": _short(found.samples.items[index], data.root),
        "true": int(found.targets[position]),
        "predicted": best[0],
        "probability": round(float(row[best[0]]), 5),
        "top": [[name, round(float(row[name]), 5)] for name in best],
    }


def _explained(classifier: ImageClassifier, data: ImageDataModule, found: Evaluation, hits: NDArray[np.bool_],
               sureness: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:  # fmt: skip
    """Pictures with the places that spoke for what was said: the surest mistakes, and hits of different classes."""
    wrong = np.flatnonzero(~hits)
    right = np.flatnonzero(hits)
    _, firsts = np.unique(found.targets[right], return_index=True)
    spread = (
        right[firsts][np.linspace(0, len(firsts) - 1, min(EXPLAINED, len(firsts))).astype(int)]
        if len(firsts)
        else right
    )
    positions = [*wrong[np.argsort(-sureness[wrong], kind="stable")][:EXPLAINED].tolist(), *spread.tolist()]
    split = next(name for name, samples in data.samples.items() if samples is found.samples)
    loader = data.loader(split)
    images = loader.images(0, found.order[positions])  # uint8 [B, S, S, C]
    said = found.probabilities[positions].argmax(axis=1)
    try:
        maps = explain(classifier.eval_model, torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(said))
    except ConfigError:  # a transformer: the page has no such part
        return []
    pictures = []
    for position, image, heat in zip(positions, images, maps, strict=True):
        facts = _picture(data, split, found, position)
        pictures.append({**facts, "src": data_uri(image, SIDE), "overlay": data_uri(overlay(image, heat), SIDE)})
    return pictures


def _samples(data: ImageDataModule) -> Iterable[dict[str, Any]]:
    """The first training picture of each class."""
    train = data.samples["train"]
    for target, index in _one_a_class(train.targets):
        caption = train.classes[target]
        yield {"src": data_uri(data.picture("train", index), SAMPLE_SIDE, 75), "caption": caption}


def _augmented(data: ImageDataModule) -> Iterable[dict[str, Any]]:
    """The same pictures as training's first epoch handed them to the network."""
    if not data.augment:
        return
    train = data.samples["train"]
    chosen = _one_a_class(train.targets)
    images = data.loader("train", training=True).images(0, np.array([index for _, index in chosen]))
    for (target, _), image in zip(chosen, images, strict=True):
        yield {"src": data_uri(image, SAMPLE_SIDE, 75), "caption": train.classes[target]}


def _one_a_class(targets: Indices) -> list[tuple[int, int]]:
    names, firsts = np.unique(targets, return_index=True)
    return list(zip(names.tolist(), firsts.tolist(), strict=True))[:SAMPLES]


def _environment(classifier: ImageClassifier, environment: Mapping[str, Any]) -> list[list[str]]:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in environment["seconds"].items())
    gpus = ", ".join(environment["gpus"]) or "none"
    config = classifier.metadata.config or {}
    chosen = {key: config[key] for key in ("optimizer", "scheduler", "loss", "trainer", "seed") if key in config}
    return [
        ["command", environment["command"]], ["time", seconds], ["processor", f"{environment['processor']}, "
         f"{environment['cores']} cores, {environment['torch_threads']} threads; GPU: {gpus}"],
        ["system", f"{environment['platform']}, Python {environment['python']}"], ["versions", versions],
        ["imgclf's commit", environment["git_commit"] or "installed from a package"],
        *([name, _said(value)] for name, value in chosen.items()),
    ]  # fmt: skip


def _said(value: Any) -> str:
    """Settings in one line, without what is empty."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items() if inner not in (None, {}, [], ""))
    return str(value) if value is not None else ""


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain numbers; one that isn't finite becomes null."""
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_number(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return value if not isinstance(value, float) or np.isfinite(value) else None


def _cells(matrix: NDArray[np.int64]) -> list[Sequence[int]]:
    """(true, predicted, how many) of each cell that isn't empty."""
    return [(row, column, int(matrix[row, column])) for row, column in np.argwhere(matrix).tolist()]


def _short(item: str, root: Path) -> str:
    """A file's path below the data set's folder."""
    path = Path(item)
    return str(path.relative_to(root)) if path.is_relative_to(root) else "/".join(path.parts[-3:])
