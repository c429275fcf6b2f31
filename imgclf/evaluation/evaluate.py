"""Logits of a split and their metrics: the one forward pass that train, evaluate and predict share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from imgclf.data.loader import Batch, Loader
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, RunError, not_finite
from imgclf.evaluation.calibration import calibration_error
from imgclf.models import ImageModel
from imgclf.models.engine import build_engine, choose_engine
from imgclf.models.metadata import mirror_axes

__all__ = [
    "Evaluation",
    "ForwardFn",
    "build_forward",
    "compute_metrics",
    "evaluate_split",
    "predict_logits",
]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
ForwardFn = Callable[[torch.Tensor], torch.Tensor]


def build_forward(model: ImageModel, wanted: str, count: int, precision: str = "fp32") -> ForwardFn:
    """Return the function from uint8 [B, C, S, S] to logits float32 [B, K] for `count` images in all.

    Its engine is `wanted`, or the choice of `imgclf.models.engine`; raises `ConfigError` for one that can't be used.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r}: expected fp32 or bf16")
    name = choose_engine(wanted, model.device, count)
    if (name, precision) == ("eager", "fp32"):
        return lambda images: model(images.to(model.device, non_blocking=True)).float()
    engine = build_engine(name, model, precision)
    return lambda images: torch.cat([engine(part) for part in torch.split(images, engine.batch)])


@torch.inference_mode()
def predict_logits(
    model: ImageModel,
    batches: Iterable[Batch],
    limit: int | None = None,
    forward: ForwardFn | None = None,
    flips: Sequence[str] = (),
) -> Floats:
    """Return the logits float32 [N, K] of the first `limit` batches, in their order, by `forward` (None: eager fp32).

    Cached features always go through PyTorch. With `flips` ("horizontal", "vertical") the result is the logarithm of
    the mean probabilities over an image and its mirror images.
    """
    model.eval()
    eager = build_forward(model, "eager", 0)
    logits = [np.zeros((0, len(model.classes)), dtype=np.float32)]
    for number, batch in enumerate(batches):
        if limit is not None and number >= limit:
            break
        if batch.images is None:
            assert batch.features is not None
            features = batch.features.to(model.device, non_blocking=True)
            logits.append(model.forward_features(features).float().cpu().numpy())
            continue
        chosen = forward or eager
        part = chosen(batch.images)  # [B, K]
        if flips:
            views = [part, *(chosen(batch.images.flip(axes)) for axes in mirror_axes(flips, 2, 3))]
            part = torch.stack([view.log_softmax(dim=1) for view in views]).logsumexp(dim=0) - math.log(len(views))
        logits.append(part.cpu().numpy())
    return np.concatenate(logits)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the probabilities float32 [N, K] of logits divided by `temperature`; each row sums to 1."""
    return (torch.from_numpy(logits) / temperature).softmax(dim=1).numpy()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions for a split and their metrics.

    `logits` float32 [N, K] and `probabilities` of the samples `order` int64 [N], `targets` int64 [N], and the confusion
    `matrix` int64 [K, K], rows true.
    """

    samples: Samples
    order: Indices
    logits: Floats
    probabilities: Floats
    targets: Indices
    metrics: dict[str, float]
    matrix: Indices

    @property
    def predicted(self) -> Indices:
        """The predicted class int64 [N]; of equal probabilities the lowest class wins."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> Floats:
        """The probability float32 [N] of the predicted class."""
        return self.probabilities.max(axis=1)


def evaluate_split(
    model: ImageModel,
    loader: Loader,
    limit: int | None = None,
    forward: ForwardFn | None = None,
    flips: Sequence[str] = (),
) -> Evaluation:
    """Return the predictions and metrics of the first `limit` batches of a split; see `predict_logits`."""
    logits = predict_logits(model, loader, limit, forward, flips)  # [N, K]
    return compute_metrics(model, loader.samples, loader.permutation(0)[: len(logits)], logits)


@torch.inference_mode()
def compute_metrics(model: ImageModel, samples: Samples, order: Indices, logits: Floats) -> Evaluation:
    """Return the metrics of logits [N, K] of the samples `order`.

    The loss is the mean cross-entropy plus the head's L2 term, as in validation; `ece` is the expected calibration
    error. A temperature adds `calibrated_loss` and `calibrated_ece` and calibrates the probabilities; accuracies stay.
    Raises `RunError` that names the first image for which the logits are NaN or infinite.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise RunError(not_finite(samples.items[order[broken[0]]], len(broken) - 1))
    targets = samples.targets[order]
    probabilities, penalty = softmax(logits), model.penalty().item()
    metrics, matrix = metrics_from_probabilities(probabilities, targets, _cross_entropy(logits, targets) + penalty)
    metrics["ece"] = calibration_error(probabilities, targets)
    if (temperature := model.temperature) != 1.0:
        probabilities = softmax(logits, temperature)
        metrics["temperature"] = temperature
        metrics["calibrated_loss"] = _cross_entropy(logits / temperature, targets) + penalty
        metrics["calibrated_ece"] = calibration_error(probabilities, targets)
    return Evaluation(samples, order, logits, probabilities, targets, metrics, matrix)


def metrics_from_probabilities(
    probabilities: Floats, targets: Indices, loss: float
) -> tuple[dict[str, float], Indices]:
    """Return the metrics of a split, with its mean `loss` as given, and its confusion matrix int64 [K, K].

    There is no top5 for five classes or fewer; equal probabilities rank by class, so that top-1 is accuracy.
    Raises ValueError for no samples, wrong shapes or unknown classes, RunError for probabilities that aren't finite.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not probabilities.size:
        shapes = f"probabilities {probabilities.shape} and targets {targets.shape}"
        raise ValueError(f"{shapes}: expected [N, K] and [N], N and K >= 1")
    count, num_classes = probabilities.shape
    if targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(f"targets lie in {targets.min()}..{targets.max()}: expected 0..{num_classes - 1}")
    if broken := int((~np.isfinite(probabilities)).any(axis=1).sum()):
        raise RunError(
            f"the probabilities of {broken} of {count} samples aren't finite: the network has diverged; "
            "train with a lower learning rate, or use an earlier checkpoint"
        )
    # Imported here: torchmetrics loads for a second, and predictions need none of it.
    from imgclf.evaluation.accumulators import EpochMetrics

    accumulated = EpochMetrics(num_classes)
    accumulated.update(torch.tensor(loss), torch.from_numpy(probabilities), torch.from_numpy(targets))
    metrics = {**accumulated.compute(), "loss": float(loss)}  # as given: the accumulator sums in single precision
    return metrics, accumulated.confusion.numpy()


def _cross_entropy(logits: Floats, targets: Indices) -> float:
    return functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
