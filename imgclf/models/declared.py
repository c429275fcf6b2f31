"""Whether the network that a checkpoint declares is the one that it holds, before memory is spent on it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from imgclf.errors import CheckpointError

__all__ = ["check_facts", "check_numbers", "check_shapes", "declared_within"]

_SPARE = 1000  # parts that a network may have beyond some times the tensors in the file: timm's own heads
_PARTS = 20  # modules and parameters for each tensor in the file; timm's networks have 1 to 4
_EXTRA_BYTES = 2**28  # that a network may need beside its tensors: positions and masks that timm makes anew


@contextmanager
def declared_within(state: Mapping[str, Any]) -> Iterator[None]:
    """Networks built inside are of torch's meta device: they have shapes and no memory. One that goes on making
    parts far beyond those in `state` raises `CheckpointError`: a depth of a thousand million would never end.
    """
    made, most = 0, _PARTS * len(state) + _SPARE

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise CheckpointError(
                f"declares a network of more than {most:,} parts and holds {len(state):,} tensors; refused"
            )

    with ExitStack() as stack:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        stack.enter_context(torch.device("meta"))
        yield


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
            raise CheckpointError(f"{what} {name!r}; refused")
        if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
            raise CheckpointError(f"{name} is {theirs.dtype} {list(theirs.shape)}, but the network that the file declares has "
                                  f"{ours.dtype} {list(ours.shape)}; refused")  # fmt: skip
    needed = sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))
    held = sum(tensor.nbytes for tensor in state.values())
    if needed > 4 * held + _EXTRA_BYTES:
        raise CheckpointError(f"declares a network of {needed:,} bytes and holds {held:,}; refused")


def check_facts(checkpoint: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless what stands beside the tensors is of the kind that every reader relies on."""
    hparams, extra = checkpoint["hyper_parameters"], checkpoint["imgclf"]
    classes, config, data = extra.get("classes"), extra.get("config"), extra.get("data", {})
    count = len(classes) if isinstance(classes, list) else 0
    temperature = extra.get("temperature", 1.0)
    seed = config.get("seed") if isinstance(config, dict) else 0
    dataset = config.get("dataset") if isinstance(config, dict) else {"name": ""}
    right = {
        "hyper_parameters": all(isinstance(key, str) for key in hparams) and isinstance(hparams.get("model"), dict),
        "classes": count and all(isinstance(name, str) for name in classes or ()) and len(set(classes or ())) == count
        and list(hparams.get("classes") or ()) == classes,
        "preprocess": isinstance(extra.get("preprocess"), dict) and isinstance(hparams.get("preprocess"), dict),
        "history": _are(extra.get("history"), dict),
        "running": _are(extra.get("running"), (int, float)) and len(extra["running"]) == 2,
        "confusion": _are(extra.get("confusion"), list) and len(extra["confusion"]) == count
        and all(_are(row, int) and len(row) == count for row in extra["confusion"]),
        "plateau": isinstance(extra.get("plateau"), (dict, type(None))),
        "config": isinstance(dataset, dict) and isinstance(dataset.get("name"), str) and isinstance(seed, int),
        "data": isinstance(data, dict) and isinstance(data.get("root", ""), str),
        "metrics": isinstance(extra.get("metrics", {}), dict),
        "fingerprint": isinstance(extra.get("fingerprint", {}), dict),
        "temperature": isinstance(temperature, (int, float)) and 0 < temperature < 1000,
        "flips": isinstance(data, dict) and _are(data.get("flips", []), str),
    }  # fmt: skip
    if wrong := [key for key, value in right.items() if not value]:
        raise CheckpointError(f"its {wrong[0]} can't be what imgclf wrote; use another checkpoint")


def _are(values: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
