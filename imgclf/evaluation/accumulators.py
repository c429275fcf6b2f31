"""What is measured during training: torchmetrics, averaged over an epoch."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from imgclf.report.tables import metrics_of

__all__ = ["MONITORS", "EpochSums", "SplitMetrics"]

# What early stopping and the best checkpoint may watch, and which way is better.
MONITORS: dict[str, Literal["min", "max"]] = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_top5": "max",
    "val_macro_f1": "max",
}


class SplitMetrics(nn.Module):
    """loss, accuracy, top5 and macro_f1 of a split, gathered batch by batch, over all processes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        scores: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
            "macro_f1": MulticlassF1Score(num_classes, average="macro"),
        }
        self.scores = MetricCollection(scores)
        # Two sums, because torchmetrics 1.9's MeanMetric loses the weights when it lets NaNs through, and they are to be seen.
        self.loss, self.count = SumMetric(nan_strategy="disable"), SumMetric()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss, logits [B, K] and targets int64 [B]."""
        self.loss.update(loss * len(targets))
        self.count.update(len(targets))
        self.scores.update(logits, targets)

    def close(self) -> dict[str, Tensor]:
        """The metrics by name; the next batch begins anew."""
        values = {"loss": self.loss.compute() / self.count.compute(), **self.scores.compute()}
        for metric in (self.loss, self.count, self.scores):
            metric.reset()
        return values


class EpochSums:
    """What the training metrics of an epoch are made of: the loss, the hits among the top five and the confusion matrix,
    summed over the pictures met so far, each by the network as it then was.

    No buffers of a module: a distributed run would overwrite every process's with those of the first.
    """

    def __init__(self, num_classes: int) -> None:
        self.sums = torch.zeros(2)  # of the loss, and of the hits
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # [K, K], rows true
        self.whole = True  # whether they are those of all processes; of a single one they always are

    def clear(self) -> None:
        """Begin an epoch."""
        self.whole = False
        self.sums, self.confusion = torch.zeros_like(self.sums), torch.zeros_like(self.confusion)

    def to(self, device: torch.device) -> None:
        """Go on on `device`."""
        self.sums, self.confusion = self.sums.to(device), self.confusion.to(device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, count: Tensor | int) -> None:
        """Add a batch: its mean loss, which counts for `count` pictures, logits [B, K] and targets int64 [B]; nothing waits
        for the device.
        """
        classes = len(self.confusion)
        top = logits.topk(min(5, classes), dim=1).indices  # [B, 5], the best first
        hits = (top == targets[:, None]).sum()
        self.sums += torch.stack([loss.float() * count, hits.float()])
        cells = torch.bincount(targets * classes + top[:, 0], minlength=classes**2)  # [K * K]
        self.confusion += cells.view_as(self.confusion)

    def reduce(self, total: Callable[[Tensor], Any]) -> None:
        """Replace each sum by `total` of it: that of all processes."""
        self.sums, self.confusion = self._totals(total)
        self.whole = True

    def share(self, first: bool) -> None:
        """Go on with an epoch's sums that were those of all processes: the `first` alone keeps them."""
        if not first:
            self.sums, self.confusion = torch.zeros_like(self.sums), torch.zeros_like(self.confusion)
        self.whole = False

    def _totals(self, total: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
        return (self.sums, self.confusion) if self.whole else (total(self.sums.clone()), total(self.confusion.clone()))

    def metrics(self) -> dict[str, float | int]:
        """The metrics of the pictures met so far."""
        count, (loss, hits) = max(1, int(self.confusion.sum())), self.sums.tolist()
        return metrics_of(self.confusion.cpu().numpy(), loss=loss / count, top5=hits / count)

    def state(self, total: Callable[[Tensor], Any]) -> dict[str, Any]:
        """Plain numbers, those of all processes, for a checkpoint; the sums themselves go on as they are."""
        sums, confusion = self._totals(total)
        return {"running": sums.tolist(), "confusion": confusion.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; raises KeyError, TypeError or ValueError for anything else."""
        self.sums, confusion = torch.tensor(state["running"]), torch.tensor(state["confusion"])
        if confusion.shape != self.confusion.shape or self.sums.shape != (2,):
            raise ValueError(f"sums of {tuple(confusion.shape)} classes, expected {tuple(self.confusion.shape)}")
        self.confusion = confusion
