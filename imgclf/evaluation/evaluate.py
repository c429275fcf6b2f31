"""Logits for all pictures of a split, and what they are worth: the one way that train, evaluate and predict answer."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from imgclf.data.loader import Batch, Loader
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError
from imgclf.evaluation.calibration import calibration_error
from imgclf.models import ImageModel
from imgclf.models.engine import build_engine, choose_engine
from imgclf.report.tables import confusion_matrix, per_class_csv, predictions_csv, split_metrics

__all__ = ["Evaluation", "build_forward", "compute_metrics", "evaluate_split", "predict_logits", "softmax"]

Floats = NDArray[np.float32]
Answer = Callable[[torch.Tensor], torch.Tensor]


def build_forward(classifier: ImageModel, wanted: str, pictures: int, precision: str = "fp32") -> Answer:
    """What turns uint8 [B, C, S, S] into logits float32 [B, K] for so many pictures: by `imgclf.models.engine`'s rule, or
    the one `wanted`. Raises `ConfigError` for one that can't be had.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r}: expected fp32 or bf16")
    name = choose_engine(wanted, classifier.device, pictures)
    if (name, precision) == ("eager", "fp32"):
        return lambda images: classifier(images.to(classifier.device, non_blocking=True)).float()
    engine = build_engine(name, classifier, precision)
    return lambda images: torch.cat([engine(part) for part in torch.split(images, engine.batch)])


@torch.inference_mode()
def predict_logits(classifier: ImageModel, batches: Iterable[Batch], limit: int | None = None,
                   answer: Answer | None = None, flips: Sequence[str] = ()) -> Floats:  # fmt: skip
    """Logits float32 [N, K] of the batches (the first `limit` of them), in their order, by `answer`: None is PyTorch in full
    precision. Features in place of pictures always are PyTorch's affair. With `flips` ("horizontal", "vertical") they are
    the logarithms of the mean probabilities over a picture and its mirror images.
    """
    classifier.eval()
    eager = build_forward(classifier, "eager", 0)
    logits = [np.zeros((0, len(classifier.classes)), dtype=np.float32)]
    for number, batch in enumerate(batches):
        if limit is not None and number >= limit:
            break
        if batch.images is None:
            assert batch.features is not None
            features = batch.features.to(classifier.device, non_blocking=True)
            logits.append(classifier.forward_features(features).float().cpu().numpy())
            continue
        chosen = answer or eager
        found = chosen(batch.images)  # [B, K]
        if flips:
            views = [found, *(chosen(batch.images.flip(axes)) for axes in _mirrors(flips))]
            found = torch.stack([view.log_softmax(dim=1) for view in views]).logsumexp(dim=0) - math.log(len(views))
        logits.append(found.cpu().numpy())
    return np.concatenate(logits)


def _mirrors(flips: Sequence[str]) -> list[tuple[int, ...]]:
    """The axes of [B, C, H, W] to turn round for each mirror image; of both flips there are three."""
    axes = {"horizontal": 3, "vertical": 2}
    if unknown := sorted(set(flips) - set(axes)):
        raise ConfigError(f"dataset.flips: {unknown[0]!r}; expected horizontal or vertical")
    single: list[tuple[int, ...]] = [(axes[name],) for name in flips]
    return [*single, (2, 3)] if len(single) == 2 else single


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities float32 [N, K] of logits over `temperature`; each row sums to 1."""
    return (torch.from_numpy(logits) / temperature).softmax(dim=1).numpy()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network says of a split, and what that is worth: `logits` float32 [N, K] and `probabilities` of the samples
    `order` int64 [N], `targets` int64 [N], `metrics`, and the confusion `matrix` [K, K].
    """

    samples: Samples
    order: NDArray[np.int64]
    logits: Floats
    probabilities: Floats
    targets: NDArray[np.int64]
    metrics: dict[str, Any]
    matrix: NDArray[np.int64]

    def write(self, folder: Path, split: str, predictions: bool = True) -> None:
        """Write the per-class table and, unless told otherwise, a row a picture."""
        if predictions:
            items = [self.samples.items[index] for index in self.order]
            predictions_csv(
                folder / f"predictions_{split}.csv", items, self.targets, self.probabilities, self.samples.classes
            )
        per_class_csv(folder / f"per_class_{split}.csv", self.samples.classes, self.matrix)


def evaluate_split(classifier: ImageModel, loader: Loader, limit: int | None = None, answer: Answer | None = None,
           flips: Sequence[str] = ()) -> Evaluation:  # fmt: skip
    """What `classifier` says of the (first `limit`) batches of a split by `answer`, and what `compute_metrics` says of that."""
    logits = predict_logits(classifier, loader, limit, answer, flips)  # [N, K]
    return compute_metrics(classifier, loader.samples, loader.permutation(0)[: len(logits)], logits)


@torch.inference_mode()
def compute_metrics(classifier: ImageModel, samples: Samples, order: NDArray[np.int64], logits: Floats) -> Evaluation:
    """Measure logits [N, K] of the samples `order`. The loss is the mean cross-entropy a picture plus the head's L2 term,
    as in validation; `ece` is the expected calibration error. With a temperature, `calibrated_loss` and `calibrated_ece` say
    what it did, and the probabilities are the calibrated ones; accuracies are the same.
    """
    targets = samples.targets[order]
    probabilities, penalty = softmax(logits), classifier.penalty().item()
    metrics = split_metrics(probabilities, targets, _cross_entropy(logits, targets) + penalty)
    metrics["ece"] = calibration_error(probabilities, targets)
    if (temperature := classifier.temperature) != 1.0:
        probabilities = softmax(logits, temperature)
        metrics["temperature"] = temperature
        metrics["calibrated_loss"] = _cross_entropy(logits / temperature, targets) + penalty
        metrics["calibrated_ece"] = calibration_error(probabilities, targets)
    matrix = confusion_matrix(probabilities.argmax(axis=1), targets, len(classifier.classes))
    return Evaluation(samples, order, logits, probabilities, targets, metrics, matrix)


def _cross_entropy(logits: Floats, targets: NDArray[np.int64]) -> float:
    return functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
