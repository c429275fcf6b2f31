"""Reading model files without executing anything in them: safetensors, or torch's format with `weights_only=True`.

The file's own claims are checked before memory is spent on them, and its contents before anybody uses them.
"""

import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imgclf.errors import CheckpointError, one_line
from imgclf.files.torch_format import MAX_EXPANSION, check_torch_file

__all__ = ["check_sums", "read_file"]

MAX_DEPTH = 50
_MAX_HEADER_BYTES = 2**22  # of a safetensors file: 40,000 tensors
_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)
# What torch, safetensors and zipfile raise for a damaged file.
_DAMAGE_ERRORS = (
    SafetensorError,
    OSError,
    RuntimeError,  # NotImplementedError too
    EOFError,
    ValueError,  # UnicodeDecodeError too
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    zlib.error,
    struct.error,
    zipfile.BadZipFile,
)


def read_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Return the contents of a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file: tensors and plain data.

    Raises `CheckpointError`, in one line, for a URL, a missing, damaged or foreign file, one that asks for code to be
    run, and tensors that are not dense or claim to be larger than what the file holds.
    """
    text = os.path.expanduser(os.fspath(path))  # noqa: PTH111, a URL is no path
    if "://" in text:
        raise CheckpointError(f"{text}: models aren't loaded from URLs; download the file, then pass its path")
    path = Path(text)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a model file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; use another checkpoint")
    try:
        contents = _load(path, map_location)
        _check_contents(contents, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return contents


def check_sums(path: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` if a record in torch's file doesn't match its checksum, which `torch.load` doesn't check.

    About a second per gigabyte. For files that imgclf wrote: others may have been saved without checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _DAMAGE_ERRORS as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({one_line(error, 160)})") from None
    if damaged:
        raise CheckpointError(f"{path}: damaged: {damaged} in it doesn't match its checksum; use another checkpoint")


def _load(path: Path, map_location: Any) -> Any:
    try:
        if path.suffix == ".safetensors":
            _check_header(path)
            return load_file(path, device=str(map_location or "cpu"))
        with path.open("rb") as file, warnings.catch_warnings():  # opened once: training may replace the file meanwhile
            check_torch_file(file)
            warnings.simplefilter("ignore", UserWarning)  # of pickles in an odd form, which then fail with an error
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
        reason = f" {lines[0][:160]}" if lines else ""
        raise CheckpointError(
            f"holds more than tensors and plain data, or is damaged; it was not loaded.{reason}"
        ) from None
    except _DAMAGE_ERRORS as error:
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise CheckpointError(f"damaged, or not a model file ({reason})") from None


def _check_header(path: Path) -> None:
    """Raise `CheckpointError` for a safetensors file that describes far more tensors than a network has.

    A million empty ones take 60 bytes each in the file, and a kilobyte in memory.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _MAX_HEADER_BYTES < length <= path.stat().st_size:  # more than the file has: damaged, as its reader reports
        raise CheckpointError(
            f"describes its tensors in {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}; refused"
        )


def _check_contents(contents: object, size: int) -> None:
    """Check that the tensors are dense and no larger than the file, and that plain data lies in lists of finite size.

    60 lists that each hold the one before twice are a file of 1 kB.
    """
    tensors: list[Tensor] = []
    values, _ = _count(contents, {}, tensors, 0)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total > MAX_EXPANSION * size:
        raise CheckpointError(f"its tensors share their data and would take over {total:,} bytes; refused")
    if values > MAX_EXPANSION * size:
        raise CheckpointError(f"its lists share their contents and would hold {values:,} values; refused")


def _count(value: object, known: dict[int, tuple[int, int]], tensors: list[Tensor], depth: int) -> tuple[int, int]:
    """Return (number of values when all is written out, depth of the nesting); check tensors and collect them."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            _check_tensor(value)
            tensors.append(value)
            known[id(value)] = 1, 0
        return 1, 0
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        if type(value) is int and abs(value) >= 2**64:
            raise CheckpointError("holds a whole number beyond 64 bits; refused")
        if type(value) not in _PLAIN:
            raise CheckpointError(f"holds a {type(value).__name__}, which is neither a tensor nor plain data; refused")
        return 1, 0
    if id(value) not in known:
        if depth > MAX_DEPTH:
            raise CheckpointError(f"holds lists nested more than {MAX_DEPTH} deep; refused")
        inner: list[object] = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        inner += [vars(value)] if getattr(value, "__dict__", None) else []  # torch's _metadata of a state_dict
        parts = [_count(part, known, tensors, depth + 1) for part in inner]
        known[id(value)] = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
    count, height = known[id(value)]
    if depth + height > MAX_DEPTH:
        raise CheckpointError(f"holds lists nested more than {MAX_DEPTH} deep; refused")
    return count, height


def _check_tensor(tensor: Tensor) -> None:
    """Raise `CheckpointError` for a tensor that isn't dense: one of stride 0 claims terabytes, and takes them when copied."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise CheckpointError(f"holds a tensor that isn't dense ({tensor.layout}, {tensor.device}); refused")
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not _covers_its_extent(tensor):
        strides = f"shape {tuple(tensor.shape)}, strides {tensor.stride()}"
        raise CheckpointError(f"holds a tensor that isn't contiguous ({strides}); refused")
    if (tensor.storage_offset() + tensor.numel()) * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError("holds a tensor larger than its data; refused")


def _covers_its_extent(tensor: Tensor) -> bool:
    """Return whether it is contiguous in some order of its axes (channels_last is), without gaps and overlaps."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != expected:
            return False
        expected *= length if length > 1 else 1
    return True
