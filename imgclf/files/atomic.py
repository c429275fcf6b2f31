"""The cache folder, and atomic writes: a file is whole under its final name, or it is not there."""

import os
from pathlib import Path

from imgclf.names import file_name

__all__ = ["cache_folder", "delete_leftovers", "write_atomically"]

_PREFIX, _SUFFIX = ".imgclf-", ".tmp"  # both mark a temporary file, which a killed write leaves behind


def cache_folder() -> Path:
    """Return the cache folder: `$IMGCLF_CACHE`, else `$XDG_CACHE_HOME/imgclf`, else `~/.cache/imgclf`; it may not exist."""
    if chosen := os.environ.get("IMGCLF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "imgclf"


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`; after a crash or on a full disk the file is either the old or the new one.

    A lone surrogate in a text, which a writer of names has left there, becomes its escape: `\\udce9`. An `OSError` names
    `path`: the system names no file when the disk is full.

    The temporary file is in the same folder, because a rename is atomic within one file system only. It is synced
    before the rename, because the rename may reach the disk before the data does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = file_name(path.name, distinct=True)  # with room for what is added: a name may have 255 bytes
    temporary = path.parent / f"{_PREFIX}{name}-{os.getpid()}{_SUFFIX}"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the new name itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def delete_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed writes left in `folder`."""
    for path in Path(folder).glob(f"{_PREFIX}*{_SUFFIX}"):
        if path.is_file():
            path.unlink(missing_ok=True)
