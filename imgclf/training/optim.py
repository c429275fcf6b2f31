"""The parts of a training step: optimizer, learning-rate schedule, moving average, class weights, MixUp and CutMix."""

from typing import Any, Literal

import numpy as np
import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imgclf.config import LossConfig, MixingConfig, OptimizerConfig, SchedulerConfig
from imgclf.errors import ConfigError, nearest, one_line
from imgclf.models import ImageModel
from imgclf.models.network import Network

__all__ = ["build_ema", "build_optimizer", "build_schedule", "check_optimizer", "class_weights", "mixup_cutmix"]

# torch updates all of a parameter in one pass over memory for these, on the CPU too: 29 ms instead of 98 per step for Adam
# on 20 M parameters, 5 instead of 20 for MobileNetV3-small's 142 tensors (one core). They differ by rounding.
FUSED = ("adam", "adamw", "sgd", "momentum", "nesterov")
_UNSUITED = {
    "adahessian": "needs second derivatives, which training doesn't compute",
    "kron": "compiles its step for every shape of tensor, which takes minutes and gigabytes",
}
# What optimizers of timm and torch raise for options that don't fit each other, some of them only in a step.
_ERRORS = (TypeError, ValueError, AttributeError, LookupError, AssertionError, RuntimeError, ImportError)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise `ConfigError` for an optimizer or an option that timm doesn't know, or with which a step can't be taken."""
    names = [str(name) for name in list_optimizers()]
    name = config.name.lower()
    if name not in names:
        raise ConfigError(f"optimizer.name={config.name}: timm has no such optimizer; {nearest(config.name, names)}")
    for unsuited, reason in _UNSUITED.items():  # timm adds a letter for a variant: kronw
        if name.startswith(unsuited):
            raise ConfigError(f"optimizer.name={config.name} {reason}; pass another, such as optimizer.name=adamw")
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,))]
    optimizer = _create(config, [{"params": [parameter]} for parameter in parameters], dict(config.options))
    if name.startswith(("bnb", "fused")) or "capturable" in config.options:
        return  # for GPUs only: a step on the CPU tells nothing

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([parameter.sum() for parameter in parameters]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    try:
        optimizer.step(closure)  # type: ignore[arg-type]  # torch's own stub wants a float
    except _ERRORS as error:
        reason = f"it can't take a step here ({one_line(error, 160)})"
        raise ConfigError(f"optimizer.name={config.name}, optimizer.options={config.options}: {reason}") from None


def build_optimizer(network: Network, config: OptimizerConfig, include_frozen: bool) -> torch.optim.Optimizer:
    """Return timm's optimizer with a group each for head and backbone, vectors apart and without weight decay.

    With `include_frozen`, parameters that are frozen now take part: they are trained later. Raises `ConfigError`.
    """
    backbone_lr = config.lr if config.backbone_lr is None else config.backbone_lr
    groups: list[dict[str, Any]] = []
    for name, module, lr in (("head", network.head, config.lr), ("backbone", network.backbone, backbone_lr)):
        trained = [p for p in module.parameters() if p.requires_grad or include_frozen]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        for parameters, decay, kind in ((matrices, config.weight_decay, ""), (vectors, 0.0, "_vectors")):
            if parameters:  # the names differ, as those of Lightning's LearningRateMonitor must
                own = {"lr": float(lr), "weight_decay": float(decay), "name": f"{name}{kind}"}
                groups.append({"params": parameters, **own})
    options = dict(config.options)
    if config.name in FUSED and not {"fused", "foreach", "differentiable"} & options.keys():
        options["fused"] = all(p.device.type in ("cpu", "cuda") for p in network.parameters())
    optimizer = _create(config, groups, options)
    if options.get("fused"):
        # It offers to unscale fp16's gradients itself, and Lightning then refuses to clip them; so Lightning unscales them.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_load_state_dict_post_hook(_restore_strides)
    return optimizer


def _create(config: OptimizerConfig, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(groups, opt=config.name, lr=float(config.lr), weight_decay=0.0, **options)
    except _ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"optimizer.name={config.name}, optimizer.options={config.options}: {reason}") from None


def _restore_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give every state its parameter's strides: torch 2.15's fused update walks memory, and mixes values up if they differ.

    Gradients always have them (`AccumulateGrad` sees to it), and states that torch made too; those in a file may not.
    """
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                states[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: SchedulerConfig,
    epochs: float,
    steps_per_epoch: int,
    monitor_mode: Literal["min", "max"],
) -> Scheduler | ReduceLROnPlateau | None:
    """Return timm's schedule, a function of the step; torch's for plateau; None for a constant rate.

    `epochs`: length of the run; a schedule with `needs_length` reaches its end there. `monitor_mode`: which way the metric
    improves that a plateau schedule watches.
    """
    name, rate = config.name, config.decay_rate
    if name == "plateau":  # timm's own is deprecated, and forgets its patience on a resume
        factor = 0.1 if rate is None else rate
        return ReduceLROnPlateau(optimizer, monitor_mode, factor, config.patience_epochs, min_lr=config.min_lr)
    if name == "none" and not config.warmup_epochs:
        return None
    if name == "none":
        name, rate = "step", 1.0  # a schedule that never decays, for the sake of its warm-up
    slowest = min(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    default_rate = 1.0 if name == "poly" else 0.1
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=epochs,  # type: ignore[arg-type]  # a fraction of an epoch works, as for the warm-up
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # a fraction of an epoch works
        warmup_lr=slowest / 100,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs or max(1, epochs / 3),
        decay_rate=default_rate if rate is None else rate,
        step_on_epochs=False,
        updates_per_epoch=max(1, steps_per_epoch),
    )
    return schedule


def build_ema(model: ImageModel, decay: float) -> ModelEmaV3:
    """Return timm's moving average of the model's weights; raises `ConfigError` unless 0 < `decay` < 1.

    As in TensorFlow the decay is at most (1 + n) / (10 + n) after n updates: pass `step=n + 2` to `update`, because timm's
    warm-up has 1 - 1 / (1 + (step - 1) / gamma).
    """
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise ConfigError(f"ema_decay={decay!r}: expected null, or a number between 0 and 1")
    ema = ModelEmaV3(model, decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
    return ema.requires_grad_(False)


def class_weights(loss: LossConfig, num_classes: int) -> Tensor | None:
    """Return the weight of each class float32 [K]; raises `ConfigError` unless there is one number for each."""
    weights = loss.class_weights
    if weights is None:
        return None
    numbers = isinstance(weights, (list, tuple)) and all(isinstance(weight, (int, float)) for weight in weights)
    if not numbers or len(weights) != num_classes:
        raise ConfigError(
            f"loss.class_weights={weights!r}: expected null, or one number for each of {num_classes} classes"
        )
    return torch.tensor(weights, dtype=torch.float32)


def mixup_cutmix(
    images: Tensor, targets: Tensor, config: MixingConfig, generator: np.random.Generator
) -> tuple[Tensor, Tensor | None, float]:
    """Mix a batch [B, C, S, S] with itself in another order: (images, the partners' targets, share of the first).

    With both on, each batch gets one of them; with both off: (images, None, 1.0). MixUp: Zhang et al. 2018,
    arXiv:1710.09412; CutMix: Yun et al. 2019, arXiv:1905.04899.
    """
    active = [(kind, alpha) for kind, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)) if alpha > 0]
    if not active:
        return images, None, 1.0
    kind, alpha = active[int(generator.integers(len(active)))]
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    if kind == "mixup":
        return images * share + images[order] * (1 - share), targets[order], share
    side = images.shape[-1]
    cut = int(side * np.sqrt(1 - share))
    centre = generator.integers(0, side, 2)
    (top, left), (bottom, right) = np.clip(centre - cut // 2, 0, side), np.clip(centre + cut // 2, 0, side)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
    return images, targets[order], 1 - float((bottom - top) * (right - left)) / side**2
