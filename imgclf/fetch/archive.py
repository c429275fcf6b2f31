"""Unpacking of archives from strangers: whole under the final name or absent, and never outside it.

Nothing in an archive is trusted: names, kinds, sizes and checksums are checked while the members are written into a
folder beside the destination, which gets its name last. Bytes are counted as they come, for declared sizes lie.
Owners, modes and times are ignored, links and devices refused. `__MACOSX/` and `.DS_Store` are skipped: a `._x.jpg`
would be taken for a picture. zip (stored, deflate) and tar (plain, gz, bz2, xz) are read by the standard library.
"""

import os
import secrets
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile

from imgclf.errors import DataError
from imgclf.fetch.archive_limits import Limits, Meter, RefusedError
from imgclf.fetch.archive_members import (
    CHUNK_BYTES,
    GuardedFile,
    Member,
    Progress,
    one_line,
    tar_members,
    tree_members,
    zip_members,
)
from imgclf.fetch.archive_names import Names

__all__ = ["ArchiveError", "Limits", "adopt", "extract"]

_BROKEN = (  # everything that the standard library's readers raise on damaged bytes; OSError is sorted out apart
    *(BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, struct.error),
    *(ValueError, LookupError, OverflowError, RuntimeError),  # RuntimeError: also NotImplemented and Recursion
)


class ArchiveError(DataError):
    """The archive itself is hostile or damaged: unpacking it once more won't help."""


def extract(archive: Path, folder: Path, limits: Limits | None = None, progress: Progress | None = None) -> Path:
    """Unpack `archive` into `folder`, which must be absent or empty, and return `folder`.

    `progress` hears (bytes done, bytes in all): unpacked bytes of a zip, packed bytes of a tar. On any failure nothing
    is left; what a killed process left beside `folder` goes at the next call. Raises ArchiveError for a hostile or
    damaged archive, DataError when `folder` is in use or the disk is full.
    """
    archive, limits = Path(archive), limits or Limits()
    if not archive.is_file():
        raise DataError(f"{archive}: no such file; expected a zip or a tar")
    try:
        file = GuardedFile(archive, limits.max_members)
    except OSError as error:
        raise DataError(f"{archive}: can't be read: {error.strerror}") from error
    with file:
        meter = Meter(limits, archive.stat().st_size)
        head = file.read(6)
        file.seek(0)
        # zipfile.is_zipfile looks at the end, where a tar may hold a zip; the first bytes decide here
        read_members = zip_members if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else tar_members
        return _written_aside(archive, Path(folder), read_members(file, meter, progress), meter)


def adopt(tree: Path, folder: Path, limits: Limits | None = None) -> Path:
    """Copy an unpacked `tree` to `folder` under the rules of `extract`; links and devices in it are refused."""
    return _written_aside(tree, Path(folder), tree_members(Path(tree)), Meter(limits or Limits(), None))


def _written_aside(archive: Path, folder: Path, members: Iterator[Member], meter: Meter) -> Path:
    """Write `members` into a folder beside `folder` and rename it; the one place where errors get their line."""
    names = Names()
    try:
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists already; remove it, or choose another folder, to unpack {archive}")
        with _aside(folder) as aside:
            for member in members:
                meter.count_member()
                _write(member, names, aside, meter)
                names.current = ""
            if not names.seen:
                raise RefusedError("holds no files")
            if hasattr(os, "sync"):  # the data must reach the disk before the name: once for all, not 87,000 times
                os.sync()
            aside.replace(folder)
    except RefusedError as error:
        raise ArchiveError(f"{archive}: {names.where()}{error}; nothing was unpacked") from error
    except _BROKEN as error:
        raise ArchiveError(f"{archive}: {names.where()}damaged ({one_line(error)}); nothing was unpacked") from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 tell of damage so
            raise ArchiveError(
                f"{archive}: {names.where()}damaged ({one_line(error)}); nothing was unpacked"
            ) from error
        reason = f"{error.strerror}; nothing was unpacked, make room or choose another folder"
        raise DataError(f"{archive}: {names.where()}can't be written to {folder}: {reason}") from error
    return folder


def _write(member: Member, names: Names, aside: Path, meter: Meter) -> None:
    names.current = member.name
    if member.kind not in ("file", "folder"):
        raise RefusedError(f"is {member.kind}, only plain files and folders are unpacked")
    parts = names.claim(member.name, member.kind == "folder")
    if not parts or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store":
        return
    path = aside.joinpath(*parts)
    if member.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    # "x" never follows a link and never overwrites, whatever a file system takes for the same name
    with member.open() as source, open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as target:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > member.size:
                raise RefusedError(f"is larger than the {member.size} bytes it declares")
            meter.count_bytes(len(chunk))
            target.write(chunk)
    if written != member.size:
        raise RefusedError(f"has {written} bytes, it declares {member.size}")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, locked while its maker lives (no lock on Windows), removed unless renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".imgclf-{escape(folder.name)}-*.tmp"):
        if (lock := _lock(leftover)) is not None:  # its maker is dead
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)
    aside = folder.parent / f".imgclf-{folder.name}-{secrets.token_hex(4)}.tmp"
    aside.mkdir()
    lock = _lock(aside)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return None
