"""Unpack untrusted zip and tar archives: the folder appears whole under its final name, or not at all.

Members are written into a folder next to the destination, which is renamed at the end. Only plain files and folders are
unpacked, without their modes, owners and times. `__MACOSX/` and `.DS_Store` are skipped: a `._x.jpg` in there would be
read as an image.
"""

import io
import os
import re
import secrets
import shutil
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from lzma import LZMAError
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from imgclf.errors import DataError, one_line

__all__ = ["ArchiveError", "Limits", "Progress", "copy_tree", "extract"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: unknown)

_CHUNK_BYTES = 1 << 20
# Exceptions that the standard readers raise for damaged bytes; RuntimeError stands for encrypted members too.
_READER_ERRORS = (BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, struct.error)
_DAMAGE = (*_READER_ERRORS, ValueError, LookupError, OverflowError, RuntimeError)


class ArchiveError(DataError):
    """The archive itself is hostile or damaged: unpacking it again won't help."""


@dataclass(frozen=True)
class Limits:
    """Limits on what one archive may become on disk; an archive that crosses one is refused.

    ASL's 87,000 images take 1 GB, Open Images' largest part 46 GB; ImageNet-1k has 1,431,167 images. CSV files of
    pixels shrink 10 times, deflate bombs 1,000 times; a small archive of uniform images is harmless.
    """

    max_bytes: int = 64 << 30
    max_members: int = 2_000_000
    max_ratio: float = 200  # unpacked to packed bytes, from `ratio_from_bytes` unpacked bytes on
    ratio_from_bytes: int = 64 << 20

    def check(self, members: int, unpacked: int, packed: int | None) -> None:
        """Raise ArchiveError if `packed` bytes (None: no archive) may not become `members` of `unpacked` bytes in all."""
        if members > self.max_members:
            raise ArchiveError(f"has more than {self.max_members} members")
        if unpacked > self.max_bytes:
            raise ArchiveError(f"unpacks to more than {self.max_bytes} bytes in all")
        if packed is not None and unpacked > max(self.max_ratio * packed, self.ratio_from_bytes):
            raise ArchiveError(f"unpacks to more than {self.max_ratio} times the archive's size")


class _Member(NamedTuple):
    """A member as its archive declares it."""

    name: str
    mode: int  # stat.S_IFREG, stat.S_IFDIR, or another for what is refused
    size: int  # bytes
    open: Callable[[], IO[bytes]]


def extract(archive: Path, folder: Path, limits: Limits | None = None, progress: Progress | None = None) -> Path:
    """Unpack `archive` into `folder`, which must be absent or empty, and return `folder`.

    `progress` receives (bytes done, bytes in all): unpacked bytes of a zip, packed bytes of a tar. A failure leaves
    nothing; leftovers of a killed process are removed by the next call. Raises ArchiveError for a hostile or damaged
    archive, DataError if `folder` is in use or the disk is full.
    """
    archive, limits = Path(archive), limits or Limits()
    try:
        file = archive.open("rb")
    except OSError as error:
        raise DataError(f"{archive}: can't be read ({error.strerror}); expected a zip or a tar") from error
    with file:
        packed, report = archive.stat().st_size, progress or (lambda done, total: None)
        # The first bytes decide: zipfile.is_zipfile looks at the end, where a tar may hold a zip.
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        file.seek(0)
        members = _zip_members(file, limits, packed, report) if is_zip else _tar_members(file, packed, report)
        return _write_beside(archive, Path(folder), members, limits, packed)


def copy_tree(tree: Path, folder: Path, limits: Limits | None = None) -> Path:
    """Copy an unpacked `tree` to `folder` under the rules of `extract`; a link or device in it is refused."""
    return _write_beside(tree, Path(folder), _tree_members(Path(tree)), limits or Limits(), None)


def _zip_members(file: IO[bytes], limits: Limits, packed: int, progress: Progress) -> Iterator[_Member]:
    with ZipFile(file) as archive:
        infos, done = archive.infolist(), 0
        total = sum(info.file_size for info in infos)
        limits.check(len(infos), total, packed)  # before a byte is written
        for info in infos:
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # zipfile's memory is unbounded for the others
                raise ArchiveError(f"has a member packed by method {info.compress_type}; expected stored or deflate")
            # 0 where the packer isn't Unix
            mode = stat.S_IFMT(info.external_attr >> 16) or (stat.S_IFDIR if info.is_dir() else stat.S_IFREG)
            # orig_filename: before zipfile cuts it at a NUL
            yield _Member(info.orig_filename, mode, info.file_size, partial(archive.open, info))
            done += info.file_size
            progress(done, total)


def _tar_members(file: IO[bytes], packed: int, progress: Progress) -> Iterator[_Member]:
    if not tarfile.is_tarfile(file):
        raise ArchiveError("is neither a zip nor a tar")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for info in archive:
            is_file = info.isreg() and not info.issparse() and info.size >= 0
            mode = stat.S_IFREG if is_file else stat.S_IFDIR if info.isdir() else stat.S_IFLNK
            size = info.size if is_file else 0
            yield _Member(info.name, mode, size, partial(tarfile.ExFileObject, archive, info))
            progress(file.tell(), packed)
        stream = archive.fileobj
        if stream is file:  # no compression, no checksum: tarfile would end in silence where a header is damaged or cut
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ArchiveError("ends early: it was cut short, or a header is damaged")
        while stream and stream.read(_CHUNK_BYTES):  # to the end, where a compressed tar has its checksum
            pass
        progress(packed, packed)


def _tree_members(tree: Path) -> Iterator[_Member]:
    def fail(error: OSError) -> None:
        raise error  # os.walk would drop it, and with it the folder's files

    for folder, folders, files in os.walk(tree, onerror=fail):
        for path in (Path(folder, name) for name in sorted(folders + files)):
            status = path.lstat()
            name, mode = path.relative_to(tree).as_posix(), stat.S_IFMT(status.st_mode)
            yield _Member(name, mode, status.st_size, partial(io.FileIO, path))


def _write_beside(source: Path, folder: Path, members: Iterator[_Member], limits: Limits, packed: int | None) -> Path:
    """Write `members` into a folder next to `folder` and rename it; turn every failure into one line about `source`."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists already; remove it, or choose another folder, to unpack {source}")
    where, written = "", 0
    try:
        with _folder_beside(folder) as beside:
            for count, member in enumerate(members, start=1):
                name = member.name if len(member.name) <= 80 else f"{member.name[:40]}...{member.name[-37:]}"
                where = f"member {name!r} "
                written += member.size
                limits.check(count, written, packed)
                _write(member, beside)
                where = ""
            if not any(beside.iterdir()):
                raise ArchiveError("holds no files")
            if hasattr(os, "sync"):  # the data must reach the disk before the name: one call, not one per file
                os.sync()
            beside.replace(folder)
    except ArchiveError as error:
        raise ArchiveError(f"{source}: {where}{error}; nothing was unpacked") from error
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number: damage, by gzip and bz2
            reason = f"{error.strerror}; nothing was unpacked, make room or choose another folder"
            raise DataError(f"{source}: {where}can't be written to {folder}: {reason}") from error
        raise ArchiveError(f"{source}: {where}damaged ({one_line(error)}); nothing was unpacked") from error
    return folder


def _write(member: _Member, folder: Path) -> None:
    if member.mode not in (stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError("is a link, a device or another special file; only plain files and folders are unpacked")
    parts = _safe_parts(member.name)
    if "__MACOSX" in parts[:1] or ".DS_Store" in parts[-1:]:
        return
    path = folder.joinpath(*parts)
    try:
        (path if member.mode == stat.S_IFDIR else path.parent).mkdir(parents=True, exist_ok=True)
        if member.mode == stat.S_IFDIR:
            return
        target = path.open("xb")  # never overwrites and never follows a link
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError("appears twice, or as both a file and a folder") from None
    with target, member.open() as source:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)
        if target.tell() != member.size:
            raise ArchiveError(f"has {target.tell()} bytes, it declares {member.size}")


def _safe_parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a member's name; raise ArchiveError for a name that could leave the folder."""
    if re.search(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]", name):
        raise ArchiveError("has a control character, a backslash or bytes that are not UTF-8 in its name")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise ArchiveError("has an absolute name")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ArchiveError("leaves the folder by '..'")
    if len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise ArchiveError("has a name longer than 1024 bytes, or 255 between two slashes")
    return parts


@contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """Create a folder next to `folder`, locked while this process lives (not on Windows), and remove it unless renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".imgclf-{escape(folder.name)}-*.tmp"):
        if (lock := _lock(leftover)) is not None:  # its process is dead
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)
    beside = folder.parent / f".imgclf-{folder.name}-{secrets.token_hex(4)}.tmp"
    beside.mkdir()
    lock = _lock(beside)
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return the descriptor of a lock on `folder`; None if another process holds it, or the system has no locks."""
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
