"""Reading model files without executing anything in them: safetensors, or torch's format with `weights_only=True`."""

import os
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from imgclf.errors import CheckpointError

__all__ = ["check_sums", "read_file"]

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles in an odd form, which then fail with an error
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


def _check_tensors(contents: Any, path: Path) -> None:
    """A tensor of stride 0 looks like terabytes and costs nothing until somebody copies it; many on one storage too."""
    pending, total = [contents], 0
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
                raise CheckpointError(
                    f"{path}: holds a tensor that isn't dense ({value.layout}, {value.device}); refused"
                )
            if type(value) not in (torch.Tensor, torch.nn.Parameter) or not _covers_its_extent(value):
                raise CheckpointError(f"{path}: holds a tensor that isn't contiguous (shape {tuple(value.shape)}, strides "
                                      f"{value.stride()}); refused")  # fmt: skip
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"{path}: holds a tensor larger than its data; refused")
            total += value.numel() * value.element_size()
            if total > MAX_EXPANSION * path.stat().st_size:
                raise CheckpointError(
                    f"{path}: its tensors share their data and would take over {total:,} bytes; refused"
                )
        elif isinstance(value, dict):
            pending += list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += list(value)


def _covers_its_extent(tensor: torch.Tensor) -> bool:
    """Whether it is contiguous in some order of its axes (channels_last is), without gaps and without overlaps."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != expected:
            return False
        expected *= length if length > 1 else 1
    return True
