"""The metrics of a training, validation or test epoch, accumulated batch by batch in every process."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from imgclf.evaluation.classification import TOP, metrics_from_confusion

__all__ = ["EpochMetrics"]


class EpochMetrics(Metric):
    """Accumulate the loss, the confusion matrix [K, K] (rows true) and the hits among the five best classes.

    Each training sample counts as the network saw it, before the update. `update` never waits for the device.
    `is_reduced`: whether the states are already those of all processes. They are no buffers of a module: DDP would
    overwrite every process's buffers with those of the first.
    """

    full_state_update = False
    loss_sum: Tensor
    top5_hits: Tensor
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        # Processes meet in `reduce` alone: the first process computes metrics when the others have left.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.add_state("loss_sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("top5_hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.is_reduced = False

    def update(self, loss: Tensor, scores: Tensor, targets: Tensor, count: Tensor | int | None = None) -> None:
        """Add a batch: its mean loss, scores [B, K] (logits or probabilities) and targets int64 [B].

        The loss counts for `count` samples, by default for all of the batch. Of equal scores the lowest class wins.
        """
        num_classes = len(self.confusion)
        own = scores.gather(1, targets[:, None])  # [B, 1]
        tied_before = (scores == own) & (torch.arange(num_classes, device=scores.device) < targets[:, None])  # [B, K]
        rank = (~(scores <= own) | tied_before).sum(dim=1)  # [B], 0 is the best; NaN is never a hit
        self.top5_hits = self.top5_hits + (rank < min(TOP, num_classes)).sum()
        self.loss_sum = self._wide(self.loss_sum) + loss.float() * (len(targets) if count is None else count)
        cells = targets * num_classes + scores.argmax(dim=1)  # [B]
        # Not `bincount`, which waits for the device to learn the largest cell.
        counts = torch.zeros(num_classes**2, dtype=torch.int32, device=cells.device)
        counts.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        self.confusion = self.confusion + counts.view_as(self.confusion)

    def compute(self) -> dict[str, float]:
        """Return the metrics of the samples accumulated so far; see `metrics_from_confusion`."""
        matrix = self.confusion.cpu().numpy()
        count = max(1, int(matrix.sum()))
        return metrics_from_confusion(matrix, float(self.loss_sum) / count, int(self.top5_hits) / count)

    def reset(self) -> None:
        """Begin an epoch."""
        super().reset()
        self.is_reduced = False

    def reduce(self) -> None:
        """Replace the states by those of all processes, each of which must call this."""
        self.loss_sum = self._wide(self.loss_sum)
        if not self.is_reduced:
            with self.sync_context():
                reduced = self.metric_state
            for name, value in reduced.items():  # which the context has set back to those of this process
                setattr(self, name, value)
        self.is_reduced = True

    def compute_and_reset(self) -> dict[str, float]:
        """Return the metrics over all processes, and begin an epoch."""
        self.reduce()
        values = self.compute()
        self.reset()
        return values

    def keep_on_rank_zero(self, is_rank_zero: bool) -> None:
        """Resume an epoch from the totals of all processes: the first process keeps them, the others begin at zero."""
        if not is_rank_zero:
            self.reset()
        self.is_reduced = False

    def totals(self) -> dict[str, Any]:
        """Return the states of all processes as plain numbers, for a checkpoint; accumulation continues unchanged."""
        self.loss_sum = self._wide(self.loss_sum)
        with self.sync_context(should_sync=not self.is_reduced):
            sums = [self.loss_sum.item(), self.top5_hits.item()]
            return {"running": sums, "confusion": self.confusion.tolist()}

    def restore(self, totals: Mapping[str, Any]) -> None:
        """Take back the result of `totals`; raises KeyError, TypeError or ValueError for anything else."""
        self.reset()
        loss_sum, top5_hits = totals["running"]
        confusion = torch.tensor(totals["confusion"], device=self.device)
        if confusion.shape != self.confusion.shape:
            expected = tuple(self.confusion.shape)
            raise ValueError(f"confusion matrix of shape {tuple(confusion.shape)}, expected {expected}")
        self.loss_sum = torch.tensor(float(loss_sum), dtype=self._wide(self.loss_sum).dtype, device=self.device)
        self.confusion = confusion
        self.top5_hits = torch.tensor(int(top5_hits), device=self.device)
        self.is_reduced = True
        self._update_count = 1  # torchmetrics warns of `compute` before an update

    def _wide(self, value: Tensor) -> Tensor:
        """Return `value` as float64: an epoch's losses, float32 each, then add up to the same bits in any order. MPS has none."""
        return value if value.device.type == "mps" else value.double()
