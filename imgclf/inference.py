"""Logits for all pictures of a split, and what they are worth: the one way that train, evaluate and predict answer."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from imgclf.data.loader import Batch, Loader
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError
from imgclf.models.engine import build_engine, choose_engine
from imgclf.report.tables import confusion_matrix, per_class_csv, predictions_csv, split_metrics
from imgclf.trained import Answering

__all__ = ["assess", "engine_for", "predict_logits", "softmax"]

Floats = NDArray[np.float32]
Answer = Callable[[torch.Tensor], torch.Tensor]


def engine_for(classifier: Answering, wanted: str, pictures: int, precision: str = "fp32") -> Answer:
    """What turns uint8 [B, C, S, S] into logits float32 [B, K] for so many pictures: by `imgclf.models.engine`'s rule, or
    the one `wanted`. Raises `ConfigError` for one that can't be had.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r}: expected fp32 or bf16")
    name = choose_engine(wanted, classifier.device, pictures)
    if (name, precision) == ("eager", "fp32"):
        return lambda images: classifier(images.to(classifier.device, non_blocking=True)).float()
    engine = build_engine(name, classifier.predictor, classifier.mean, classifier.std, classifier.preprocess.size,
                          precision)  # fmt: skip
    return lambda images: torch.cat([engine(part) for part in torch.split(images, engine.batch)])


@torch.inference_mode()
def predict_logits(classifier: Answering, batches: Iterable[Batch], limit: int | None = None,
                   answer: Answer | None = None) -> Floats:  # fmt: skip
    """Logits float32 [N, K] of the batches (the first `limit` of them), in their order, by `answer`: None is PyTorch in full
    precision. Features in place of pictures always are PyTorch's affair.
    """
    classifier.eval()
    eager = engine_for(classifier, "eager", 0)
    logits = [np.zeros((0, len(classifier.classes)), dtype=np.float32)]
    for number, batch in enumerate(batches):
        if limit is not None and number >= limit:
            break
        chosen = eager if answer is None or batch.images.is_floating_point() else answer
        logits.append(chosen(batch.images).cpu().numpy())
    return np.concatenate(logits)


def softmax(logits: Floats) -> Floats:
    """Probabilities float32 [N, K]; each row sums to 1."""
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def assess(
    classifier: Answering,
    loader: Loader,
    limit: int | None = None,
    predictions: Path | None = None,
    classes_csv: Path | None = None,
    answer: Answer | None = None,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The metrics of a split and its confusion matrix [K, K]; writes the two CSV files where paths are given.

    The loss is the mean cross-entropy a picture plus the head's L2 term, as in validation.
    """
    logits = predict_logits(classifier, loader, limit, answer)  # [N, K]
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
