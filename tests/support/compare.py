"""The first difference between the contents of two checkpoints."""

from typing import Any

import torch


def first_difference(one: Any, two: Any, name: str = "") -> str | None:
    """Where two checkpoints differ, apart from wall time and the setting that resumes; None if they are the same."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, two) else name
    if isinstance(one, dict):
        keys = {**one, **two}.keys() - {"seconds", "ckpt_path", "num_workers", "config"}
        return next(
            (found for key in keys if (found := first_difference(one.get(key), two.get(key), f"{name}.{key}"))), None
        )
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return name
        pairs = enumerate(zip(one, two, strict=True))
        return next((found for key, (a, b) in pairs if (found := first_difference(a, b, f"{name}.{key}"))), None)
    return None if one == two or (one != one and two != two) else name


def compare(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """The first difference in weights, optimizer state, history and what else a later epoch depends on."""
    parts = ("state_dict", "optimizer_states", "imgclf", "callbacks", "epoch", "global_step")
    return next((found for part in parts if (found := first_difference(one[part], two[part], part))), None)
