"""Optimizers and learning-rate schedules by name, from timm's factories."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imgclf.errors import ConfigError
from imgclf.models.network import Network

__all__ = ["SCHEDULES", "build_optimizer", "build_schedule"]

SCHEDULES = ("none", "cosine", "step", "plateau", "poly")

# torch updates all of a parameter in one pass over memory for these, on the CPU too: 29 ms instead of 98 a step for Adam on
# 20 M parameters, 5 instead of 20 for MobileNetV3-small's 142 tensors (one core). They differ by rounding.
FUSED = ("adam", "adamw", "sgd", "momentum", "nesterov")


def build_optimizer(network: Network, options: Mapping[str, Any], include_frozen: bool) -> torch.optim.Optimizer:
    """timm's optimizer `options["name"]` with a group each for head and backbone, vectors apart and without decay.

    `options`: name, lr, weight_decay, backbone_lr (None: lr), `options` (more keywords, such as eps or momentum).
    With `include_frozen`, parameters that are frozen now take part: they are thawed later. Raises `ConfigError`.
    """
    try:
        rates = {
            key: float(options[key]) for key in ("lr", "backbone_lr", "weight_decay") if options.get(key) is not None
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}; lr, backbone_lr and weight_decay are numbers") from None
    groups = []
    for part, module in (("head", network.head), ("backbone", network.backbone)):
        lr = rates["lr"] if part == "head" else rates.get("backbone_lr", rates["lr"])
        chosen = [p for p in module.parameters() if p.requires_grad or include_frozen]
        for matrices, decay in ((True, rates.get("weight_decay", 0.0)), (False, 0.0)):
            if parameters := [p for p in chosen if (p.ndim > 1) == matrices]:
                groups.append({"params": parameters, "lr": lr, "weight_decay": decay, "name": part})
    keywords = dict(options.get("options") or {})
    if options["name"] in FUSED and not {"fused", "foreach", "differentiable"} & keywords.keys():
        keywords["fused"] = all(p.device.type in ("cpu", "cuda") for p in network.parameters())
    try:
        optimizer = create_optimizer_v2(groups, opt=options["name"], lr=rates["lr"], weight_decay=0.0, **keywords)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"optimizer.name={options['name']!r}, options {dict(options.get('options') or {})}: {reason}; "
                          "names are those of `timm.optim.list_optimizers()`") from None  # fmt: skip
    if keywords.get("fused"):
        # It offers to unscale fp16's gradients itself, and Lightning then refuses to clip them; so Lightning unscales them.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_load_state_dict_post_hook(_lay_out_states)
    return optimizer


def _lay_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Give every state its parameter's strides: torch 2.15's fused update walks memory, and mixes values up if they differ.

    Gradients have them always (`AccumulateGrad` sees to it), states that torch made too; those in a file need not.
    """
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                states[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    options: Mapping[str, Any],
    epochs: int,
    steps_per_epoch: int,
    monitor_mode: Literal["min", "max"],
) -> Scheduler | ReduceLROnPlateau | None:
    """timm's schedule `options["name"]`, a function of the step; torch's for plateau; None for a constant rate.

    `options`: name, warmup_epochs, min_lr, decay_epochs, decay_rate (for poly the power), patience_epochs.
    Raises `ConfigError` for an unknown name, or a plateau with a warm-up.
    """
    name, warmup, rate = options["name"], options.get("warmup_epochs", 0), options.get("decay_rate")
    if name not in SCHEDULES:
        raise ConfigError(f"scheduler.name={name!r}: expected one of {', '.join(SCHEDULES)}")
    if name == "plateau":  # timm's own is deprecated, and forgets its patience on a resume
        if warmup:
            raise ConfigError("scheduler.name=plateau has no warm-up; pass scheduler.warmup_epochs=0")
        return ReduceLROnPlateau(optimizer, monitor_mode, factor=0.1 if rate is None else rate,
                                 patience=options.get("patience_epochs", 5), min_lr=options.get("min_lr", 0.0))  # fmt: skip
    if name == "none" and not warmup:
        return None
    if name == "none":
        name, rate = "step", 1.0  # a schedule that never decays, for the sake of its warm-up
    slowest = min(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    schedule, _ = create_scheduler_v2(
        optimizer, sched=name, num_epochs=max(1, epochs), warmup_epochs=warmup, warmup_lr=slowest / 100,
        min_lr=options.get("min_lr", 0.0), decay_epochs=options.get("decay_epochs") or max(1, epochs / 3),
        decay_rate=rate if rate is not None else (1.0 if name == "poly" else 0.1),
        step_on_epochs=False, updates_per_epoch=max(1, steps_per_epoch),
    )  # fmt: skip
    return schedule
