"""Reading model files without executing anything in them: safetensors, or torch's format with `weights_only=True`."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from imgclf.errors import CheckpointError

__all__ = ["read_file"]

MAX_EXPANSION = 4  # torch stores its records uncompressed: a file that grows more than this on reading is an attack


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
    _check_tensors(contents, path)
    return contents


def _read(path: Path, map_location: Any) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=str(map_location or "cpu"))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                declared = sum(member.file_size for member in archive.infolist())
            if declared > MAX_EXPANSION * path.stat().st_size:
                raise CheckpointError(f"{path}: would grow from {path.stat().st_size:,} to {declared:,} bytes; refused")
        return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        raise CheckpointError(f"{path}: holds more than tensors and plain data, or is damaged; it was not loaded. "
                              f"{reason[:160]}".strip()) from None  # fmt: skip
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError, MemoryError, OverflowError, UnicodeDecodeError, zipfile.BadZipFile) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: damaged, or no model file ({type(error).__name__}: {reason})") from None


def _check_tensors(contents: Any, path: Path) -> None:
    """A tensor of stride 0 looks like terabytes and costs nothing until somebody copies it."""
    pending = [contents]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized:
                raise CheckpointError(f"{path}: holds a tensor that isn't dense ({value.layout}); refused")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"{path}: holds a tensor larger than its data; refused")
        elif isinstance(value, dict):
            pending += list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += list(value)
