"""The first difference between the contents of two checkpoints."""

from typing import Any

import torch


def first_difference(one: Any, two: Any, name: str = "") -> str | None:
    """Return where two checkpoints differ, apart from wall time and settings that may change; None if they are equal."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, two) else name
    if isinstance(one, dict):
        keys = {**one, **two}.keys() - {"seconds", "ckpt_path", "num_workers", "config"}
        differences = (first_difference(one.get(key), two.get(key), f"{name}.{key}") for key in keys)
        return next(filter(None, differences), None)
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return name
        pairs = enumerate(zip(one, two, strict=True))
        return next(filter(None, (first_difference(a, b, f"{name}.{key}") for key, (a, b) in pairs)), None)
    return None if one == two or (one != one and two != two) else name


def compare(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """Return the first difference in weights, optimizer state, history and all else that a later epoch depends on."""
    parts = ("state_dict", "optimizer_states", "imgclf", "callbacks", "epoch", "global_step")
    return next(filter(None, (first_difference(one[part], two[part], part) for part in parts)), None)
