"""Where imgclf keeps things, and the one way it writes a file: whole under its final name, or not at all."""

import os
from pathlib import Path

__all__ = ["cache_folder", "sweep_leftovers", "write_atomically"]

_PREFIX, _SUFFIX = ".imgclf-", ".tmp"  # a leftover of a killed write is recognised by both


def cache_folder() -> Path:
    """The one cache folder: `$IMGCLF_CACHE`, else `$XDG_CACHE_HOME/imgclf`, else `~/.cache/imgclf`; not created here."""
    if chosen := os.environ.get("IMGCLF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "imgclf"


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that a reader, a crash or a full disk meets the old file or the new one.

    The temporary file stands in the same folder, because a rename is atomic within one file system only; it is synced
    before the rename, because a rename may reach the disk before the data does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_PREFIX}{path.name}-{os.getpid()}{_SUFFIX}"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the new name itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete what killed writes left in `folder`, and return the deleted paths."""
    leftovers = [path for path in Path(folder).glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers
