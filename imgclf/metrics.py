"""What is measured during training: torchmetrics, averaged over an epoch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from imgclf.report.tables import metrics_of

__all__ = ["MONITORS", "running_metrics", "validation_metrics"]

# What early stopping and the best checkpoint may watch, and which way is better.
MONITORS: dict[str, Literal["min", "max"]] = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_top5": "max",
    "val_macro_f1": "max",
}


def validation_metrics(num_classes: int) -> MetricCollection:
    """accuracy, top5 and macro_f1 of logits [B, K] against targets int64 [B]."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
        "macro_f1": MulticlassF1Score(num_classes, average="macro"),
    }
    return MetricCollection(metrics)


def running_metrics(confusion: NDArray[np.int64], loss_sum: float, top5_sum: float) -> dict[str, float | int]:
    """The metrics of an epoch from its sums: confusion [K, K], the loss and the top-five hits of all its pictures."""
    count = max(1, int(confusion.sum()))
    return metrics_of(confusion, loss=loss_sum / count, top5=top5_sum / count)
