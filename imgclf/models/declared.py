"""Whether the network that a checkpoint declares is the one that it holds, before memory is spent on it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from imgclf.errors import CheckpointError

__all__ = ["check_numbers", "check_shapes", "declared_within"]

_SPARE = 1000  # parameters that a network may make beyond twice those in the file, and drop: timm's own heads


@contextmanager
def declared_within(state: Mapping[str, Any]) -> Iterator[None]:
    """Networks built inside are of torch's meta device: they have shapes and no memory. One that goes on making
    parameters far beyond those in `state` raises `CheckpointError`: a depth of a thousand million would never end.
    """
    made, most = 0, 2 * len(state) + _SPARE

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise CheckpointError(
                f"declares a network of more than {most:,} parameter tensors and holds {len(state):,}; refused"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()


def check_numbers(values: Any, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if a whole number among the settings `values` of a network is larger than it can need.

    A width is a side of one of its tensors and a depth at most their number; all else, such as a kernel or an image size,
    stays below 10,000.
    """
    sides = (side for value in state.values() if isinstance(value, Tensor) for side in value.shape)
    most, pending = max(10_000, len(state), *sides), [values]
    while pending:
        value = pending.pop()
        if isinstance(value, int) and abs(value) > most:
            raise CheckpointError(
                f"declares a network with the number {value:,}, and holds nothing beyond {most:,}; refused"
            )
        pending += (
            list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
        )


def check_shapes(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` with the first difference unless `state` has the names, shapes and kinds of `module`'s."""
    own = module.state_dict()
    for name in {**own, **state}:
        ours, theirs = own.get(name), state.get(name)
        if not isinstance(theirs, Tensor) or ours is None:
            what = "lacks" if theirs is None else "has, beyond its network," if ours is None else "has no tensor in"
            raise CheckpointError(f"{what} {name}; refused")
        if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
            raise CheckpointError(f"{name} is {theirs.dtype} {list(theirs.shape)}, but the network that the file declares has "
                                  f"{ours.dtype} {list(ours.shape)}; refused")  # fmt: skip
