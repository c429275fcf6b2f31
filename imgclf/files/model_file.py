"""Reading model files without executing anything in them: safetensors, or torch's format with `weights_only=True`."""

import io
import os
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imgclf.errors import CheckpointError
from imgclf.files.pickles import check_instructions

__all__ = ["check_sums", "read_file"]

MAX_DEPTH = 50
MAX_EXPANSION = 4  # torch stores its records uncompressed: a file that grows more than this on reading is an attack
_PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)


def read_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What is in a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file: tensors and plain data.

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
    contents = _read(path, map_location)
    try:
        _check_contents(contents, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return contents


def _read(path: Path, map_location: Any) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=str(map_location or "cpu"))
        with path.open("rb") as file:  # opened once: training may replace it under its name meanwhile
            _check_before_loading(file)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # about pickles in an odd form, which then fail with an error
                return torch.load(file, map_location=map_location, weights_only=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        raise CheckpointError(f"{path}: holds more than tensors and plain data, or is damaged; it was not loaded. "
                              f"{reason[:160]}".strip()) from None  # fmt: skip
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError, MemoryError, OverflowError, UnicodeDecodeError, NotImplementedError, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: damaged, or no model file ({type(error).__name__}: {reason})") from None


def _check_before_loading(file: IO[bytes]) -> None:
    """What the file asks for, and how far it would grow; torch, too, tells its two formats by the first four bytes."""
    size, head = os.fstat(file.fileno()).st_size, file.read(4)
    file.seek(0)
    if head != b"PK\x03\x04":
        check_instructions(file, pickles=4)  # a magic number, a version, the machine's, then the contents
    else:
        with zipfile.ZipFile(file) as archive:
            names = [member.filename.lower() for member in archive.infolist()]  # torch takes capitals for the same
            declared = sum(member.file_size for member in archive.infolist())
            if declared > MAX_EXPANSION * size:
                raise CheckpointError(f"would grow from {size:,} to {declared:,} bytes; refused")
            if len(set(names)) != len(names):
                raise CheckpointError("holds two records of one name; refused")
            for member in archive.infolist():
                if member.filename.lower().endswith("data.pkl"):
                    check_instructions(io.BytesIO(archive.read(member)))
    file.seek(0)


def check_sums(path: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` if a record in torch's file doesn't have its checksum, which `torch.load` doesn't look at.

    About a second for each gigabyte. For files that imgclf wrote: others may have been saved without checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({' '.join(str(error).split())[:160]})") from None
    if damaged:
        raise CheckpointError(f"{path}: damaged: {damaged} in it doesn't have its checksum; use another checkpoint")


def _check_contents(contents: Any, size: int) -> None:
    """Tensors that are dense and no larger than their data, together and apart; beside them plain data in lists and
    dictionaries that no reader drowns in: 60 lists that each hold the one before twice are a file of 1 kB.
    """
    tensors: list[Tensor] = []
    nodes, _ = _count(contents, {}, tensors, 0)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total > MAX_EXPANSION * size:
        raise CheckpointError(f"its tensors share their data and would take over {total:,} bytes; refused")
    if nodes > MAX_EXPANSION * size:
        raise CheckpointError(f"its lists share their contents and would hold {nodes:,} values; refused")


def _count(value: Any, known: dict[int, tuple[int, int]], tensors: list[Tensor], depth: int) -> tuple[int, int]:
    """(how many values there are when all is written out, how deep they lie); tensors are gathered, and looked at."""
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
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        inner += [vars(value)] if getattr(value, "__dict__", None) else []  # torch's _metadata of a state_dict
        parts = [_count(part, known, tensors, depth + 1) for part in inner]
        known[id(value)] = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
    nodes, height = known[id(value)]
    if depth + height > MAX_DEPTH:
        raise CheckpointError(f"holds lists nested more than {MAX_DEPTH} deep; refused")
    return nodes, height


def _check_tensor(tensor: Tensor) -> None:
    """One of stride 0 looks like terabytes, and costs nothing until somebody copies it."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise CheckpointError(f"holds a tensor that isn't dense ({tensor.layout}, {tensor.device}); refused")
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not _covers_its_extent(tensor):
        raise CheckpointError(f"holds a tensor that isn't contiguous (shape {tuple(tensor.shape)}, strides "
                              f"{tensor.stride()}); refused")  # fmt: skip
    if (tensor.storage_offset() + tensor.numel()) * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError("holds a tensor larger than its data; refused")


def _covers_its_extent(tensor: Tensor) -> bool:
    """Whether it is contiguous in some order of its axes (channels_last is), without gaps and without overlaps."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != expected:
            return False
        expected *= length if length > 1 else 1
    return True
