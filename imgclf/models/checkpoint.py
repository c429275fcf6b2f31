"""The checkpoint's format: what a file holds besides its tensors, how it is read, checked and written.

A checkpoint is a Lightning checkpoint whose `hyper_parameters` are the arguments of an `ImageClassifier` (classes and
preprocessing among them, as plain data) and whose key `imgclf` holds a `CheckpointMetadata`. `state_dict` has the trained
weights below `TRAINED` and, where the run averaged them, the averaged weights below `AVERAGED`.
"""

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as hooks

from imgclf.config import (
    LossConfig,
    MixingConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SchedulerConfig,
)
from imgclf.errors import CheckpointError, ConfigError, RunError, one_line
from imgclf.files.atomic import write_atomically
from imgclf.files.model_file import check_sums, read_file
from imgclf.models.metadata import CheckpointMetadata, is_list, require
from imgclf.models.network import Network, build_network
from imgclf.preprocess import Preprocess
from imgclf.schema import Settings

__all__ = [
    "AVERAGED",
    "TRAINED",
    "check_checkpoint",
    "checkpoint_errors",
    "read_checkpoint",
    "update_metadata",
    "write_checkpoint",
]

TRAINED, AVERAGED = "model.network.", "ema.module.network."  # prefixes of the two networks in `state_dict`
_KEYS = ("state_dict", "hyper_parameters", "imgclf")
_SPARE_PARTS = 1000  # modules and parameters that a network may have beyond those below: timm's own heads
_PARTS_PER_TENSOR = 20  # modules and parameters for each tensor in the file; timm's networks have 1 to 4
_SPARE_BYTES = 2**28  # that a network may need besides its tensors: positions and masks that timm computes
_MAX_NUMBER = 10_000  # of a setting that is no width or depth, such as a kernel or an image size
# What a damaged or foreign file can make the code that builds and fills a network raise.
_BUILD_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the contents of a checkpoint of imgclf; raises `CheckpointError` for any other file."""
    checkpoint = read_file(path, map_location)
    check_sums(Path(path).expanduser())
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(key), dict) for key in _KEYS):
        raise CheckpointError(f"{path}: not a checkpoint of imgclf; expected one that `imgclf train` wrote")
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Serialise in memory, then replace `path` in one step; raises `RunError` when the disk doesn't take it.

    In memory first, because `torch.save` to a disk that fills up leaves a truncated file and a cryptic error.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        free = shutil.disk_usage(Path(path).parent).free if Path(path).parent.is_dir() else 0
        reason = f"{error.strerror or error}; {free:,} bytes free"
        raise RunError(
            f"{path}: the checkpoint of {buffer.tell():,} bytes couldn't be written ({reason}); the one before it is "
            "untouched; free some space, then `imgclf resume <run folder>` continues from it"
        ) from error


def update_metadata(path: str | Path, **changes: object) -> None:
    """Replace fields of the `CheckpointMetadata` in a checkpoint, such as `metrics` and `temperature`."""
    checkpoint = read_checkpoint(path)
    checkpoint["imgclf"].update(changes)
    write_checkpoint(checkpoint, path)


@contextmanager
def checkpoint_errors(path: str | Path) -> Iterator[None]:
    """Turn what building a network from the checkpoint at `path` raises into a `CheckpointError` of one line."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {one_line(error, 400)}") from None
    except _BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise CheckpointError(f"{path}: this version of imgclf can't use the checkpoint ({reason})") from None


def check_checkpoint(checkpoint: Mapping[str, Any]) -> CheckpointMetadata:
    """Return the metadata of a checkpoint that is safe to build a network from.

    Raises `CheckpointError` or `ConfigError` for values of the wrong kind, and for a network that its settings declare
    but its tensors aren't. The comparison takes no memory: the network is built on torch's meta device.
    """
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    classes = hparams.get("classes")
    require(
        {
            "hyper_parameters": all(isinstance(key, str) for key in hparams) and isinstance(hparams.get("model"), dict),
            "classes": is_list(classes, str) and 0 < len(classes) == len(set(classes)),
            "preprocess": isinstance(hparams.get("preprocess"), dict),
        }
    )
    metadata = CheckpointMetadata.from_dict(checkpoint["imgclf"], len(classes))
    _check_hparams(hparams)
    config, preprocess = ModelConfig.from_dict(hparams["model"]), Preprocess.from_dict(hparams["preprocess"])
    _check_numbers(hparams["model"], state)
    with _meta_device(state):
        network = build_network(config, len(classes), preprocess.channels, preprocess.size)
    _check_tensors(network, state, (TRAINED, AVERAGED) if hparams.get("ema_decay") else (TRAINED,))
    return metadata


def _check_hparams(hparams: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a setting of the training that a run couldn't have; predicting uses none of these."""
    groups: tuple[type[Settings], ...] = (OptimizerConfig, SchedulerConfig, LossConfig, MixingConfig)
    for group in groups:
        group.from_dict(hparams.get(group.path))
    RunConfig.from_dict({name: hparams[name] for name in ("seed", "ema_decay") if name in hparams})


@contextmanager
def _meta_device(state: Mapping[str, Any]) -> Iterator[None]:
    """Build networks inside that have shapes and take no memory.

    Raises `CheckpointError` as soon as one has far more parts than `state` has tensors: a depth of 10^9 would never end.
    """
    made, most = 0, _PARTS_PER_TENSOR * len(state) + _SPARE_PARTS

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise CheckpointError(
                f"declares a network of more than {most:,} parts and holds {len(state):,} tensors; refused"
            )

    with ExitStack() as stack:
        stack.callback(hooks.register_module_parameter_registration_hook(count).remove)
        stack.callback(hooks.register_module_module_registration_hook(count).remove)
        stack.enter_context(torch.device("meta"))
        yield


def _check_numbers(values: object, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a whole number among a network's settings that is larger than it can need.

    A layer width is a dimension of some tensor, and a depth is at most the number of tensors;
    any other number is at most `_MAX_NUMBER`.
    """
    sides = (side for value in state.values() if isinstance(value, Tensor) for side in value.shape)
    most, pending = max(_MAX_NUMBER, len(state), *sides), [values]
    while pending:
        value = pending.pop()
        if isinstance(value, int) and abs(value) > most:
            raise CheckpointError(
                f"declares a network with the number {value:,}, and holds nothing beyond {most:,}; refused"
            )
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value


def _check_tensors(network: Network, state: Mapping[str, Any], prefixes: Sequence[str]) -> None:
    """Raise `CheckpointError` with the first difference unless `state` holds the tensors of `network` below each prefix."""
    own = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in network.state_dict().items()}
    for name in {**own, **state}:
        ours, theirs = own.get(name), state.get(name)
        if ours is None:
            raise CheckpointError(f"has {name!r}, which its network doesn't have; refused")
        if not isinstance(theirs, Tensor):
            raise CheckpointError(f"{'lacks' if theirs is None else 'has no tensor in'} {name!r}; refused")
        if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
            declared = f"the network that the file declares has {ours.dtype} {list(ours.shape)}"
            raise CheckpointError(f"{name} is {theirs.dtype} {list(theirs.shape)}, but {declared}; refused")
    needed = len(prefixes) * sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
    held = sum(tensor.nbytes for tensor in state.values())
    if needed > 4 * held + _SPARE_BYTES:
        raise CheckpointError(f"declares a network of {needed:,} bytes and holds {held:,}; refused")
