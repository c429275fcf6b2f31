"""Stops a run whose numbers are no longer numbers, before anything of it is saved."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from imgclf.errors import RunError
from imgclf.files.atomic import write_atomically

__all__ = ["StopOnNonFinite", "first_non_finite"]

_SHOWN = 4  # files that the message names; all are in non_finite_batch.txt


class StopOnNonFinite(Callback):
    """Raises `RunError` when a loss, a gradient or a weight is NaN or infinite; it names the step, the learning rate and
    the batch, whose files it writes to `folder`/non_finite_batch.txt.

    On a GPU the loss is looked at one step later, when it is there without waiting, and gradients in what is saved only.
    Under fp16 a gradient may overflow: the scaler then leaves the step out by itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loss: Tensor | None = None
        self._indices: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        """Judge the last loss where it was too early then, and remember the batch."""
        if self._loss is not None and not torch.isfinite(self._loss):
            self._stop(trainer, "the loss became not a number")
        self._loss, self._indices = None, batch.indices

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        """Judge the loss, before it spoils anything."""
        if loss.device.type != "cpu":
            self._loss = loss.detach()
        elif not torch.isfinite(loss):
            self._stop(trainer, f"the loss became {loss.item():g}")

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Judge the gradients."""
        if trainer.precision == "16-mixed" or module.device.type != "cpu":
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # One number for all of them: a sum is finite only if all its terms are, or if they overflow together, which the
        # look at each one then settles.
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients, 1)).sum()):
            for name, parameter in module.named_parameters():
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    self._stop(trainer, f"the gradient of {name} isn't finite")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Judge every tensor that is about to be saved."""
        if name := first_non_finite(checkpoint):
            self._stop(trainer, f"{name} is no longer finite")

    def _stop(self, trainer: Trainer, what: str) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        files: list[str] = []
        if self._indices is not None:
            loader: Any = trainer.train_dataloader
            files = [loader.samples.items[index] for index in self._indices.tolist()]
            write_atomically(self.folder / "non_finite_batch.txt", "\n".join(files) + "\n")
        shown = ", ".join(files[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
        raise RunError(f"{what} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}, learning rate {rate:g}, "
                       f"in the batch of {shown} (all in {self.folder / 'non_finite_batch.txt'}); nothing of it was saved: "
                       "pass a smaller optimizer.lr, or look at these pictures")  # fmt: skip


def first_non_finite(values: Any, name: str = "") -> str | None:
    """The path, such as `state_dict.head.weight`, of the first tensor that holds NaN or infinity; None if none does."""
    if isinstance(values, Tensor):
        return None if not values.is_floating_point() or torch.isfinite(values).all() else name
    pairs = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, (list, tuple)) else ()
    )
    return next(
        (found for key, value in pairs if (found := first_non_finite(value, f"{name}.{key}".lstrip(".")))), None
    )
