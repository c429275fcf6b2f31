"""Logits for all pictures of a split, and what they are worth: the one way that train, evaluate and predict answer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from imgclf.classifier import ImageClassifier
from imgclf.data.loader import Batch, Loader
from imgclf.data.samples import Samples
from imgclf.report.tables import confusion_matrix, per_class_csv, predictions_csv, split_metrics

__all__ = ["assess", "predict_logits", "softmax"]

Floats = NDArray[np.float32]


@torch.inference_mode()
def predict_logits(classifier: ImageClassifier, batches: Iterable[Batch], limit: int | None = None) -> Floats:
    """Logits float32 [N, K] of the batches (the first `limit` of them), in their order, in full precision."""
    classifier.eval()
    logits = [np.zeros((0, len(classifier.classes)), dtype=np.float32)]
    for number, batch in enumerate(batches):
        if limit is not None and number >= limit:
            break
        logits.append(classifier(batch.images.to(classifier.device, non_blocking=True)).float().cpu().numpy())
    return np.concatenate(logits)


def softmax(logits: Floats) -> Floats:
    """Probabilities float32 [N, K]; each row sums to 1."""
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def assess(
    classifier: ImageClassifier,
    loader: Loader,
    limit: int | None = None,
    predictions: Path | None = None,
    classes_csv: Path | None = None,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The metrics of a split and its confusion matrix [K, K]; writes the two CSV files where paths are given.

    The loss is the mean cross-entropy a picture plus the head's L2 term, as in validation.
    """
    logits = predict_logits(classifier, loader, limit)  # [N, K]
    samples: Samples = loader.samples
    order = loader.order(0)[: len(logits)]
    targets = samples.targets[order]
    with torch.inference_mode():
        loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
        loss += classifier.predictor.head.penalty().item()
    probabilities = softmax(logits)
    matrix = confusion_matrix(probabilities.argmax(axis=1), targets, len(classifier.classes))
    if predictions:
        predictions_csv(
            predictions, [samples.items[index] for index in order], targets, probabilities, classifier.classes
        )
    if classes_csv:
        per_class_csv(classes_csv, classifier.classes, matrix)
    return split_metrics(probabilities, targets, loss), matrix
