"""CheckpointCallback on disk: whole under their final name, and read without executing anything in them."""

import io
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from imgclf.errors import RunError
from imgclf.files.atomic import write_atomically
from imgclf.models.weights import read_checkpoint

__all__ = ["AtomicCheckpointIO", "add_facts", "write_checkpoint"]


class AtomicCheckpointIO(CheckpointIO):
    """What Lightning saves and loads through: `write_checkpoint` and `read_checkpoint`, whatever its own defaults are."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, or leave what is there."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it back; raises `CheckpointError` for anything but a whole checkpoint of imgclf."""
        return read_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete it, if it is there."""
        Path(path).unlink(missing_ok=True)


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Serialise in memory, then replace `path` in one step; raises `RunError` when the disk doesn't take it.

    In memory first, because `torch.save` to a disk that fills up leaves a torn file and a cryptic error.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        free = shutil.disk_usage(Path(path).parent).free if Path(path).parent.is_dir() else 0
        raise RunError(
            f"{path}: the checkpoint of {len(buffer.getvalue()):,} bytes couldn't be written "
            f"({error.strerror or error}; {free:,} bytes free); the one before it is untouched"
        ) from error


def add_facts(path: str | Path, **facts: Any) -> None:
    """Put what was measured in the end (`metrics`, `temperature`) into a checkpoint, so that it can tell it by itself."""
    checkpoint = read_checkpoint(path)
    checkpoint["imgclf"].update(facts)
    write_checkpoint(checkpoint, path)
