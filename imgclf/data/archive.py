"""Unpacking of archives from strangers: whole under the final name or absent, and never outside it.

Nothing in an archive is trusted: names, kinds, sizes and checksums are checked while the members are written into a
folder beside the destination, which gets its name last. Bytes are counted as they come, for declared sizes lie.
Owners, modes and times are ignored, links and devices refused. `__MACOSX/` and `.DS_Store` are skipped: a `._x.jpg`
would be taken for a picture. zip (stored, deflate) and tar (plain, gz, bz2, xz) are read by the standard library.
"""

import os
import re
import secrets
import shutil
import stat
import struct
import tarfile
import unicodedata
import zlib
from bz2 import BZ2File
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from gzip import GzipFile
from io import FileIO
from lzma import LZMAError, LZMAFile
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from imgclf.errors import DataError

__all__ = ["ArchiveError", "Limits", "adopt", "extract"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_CHUNK_BYTES = 1 << 20
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_SPECIAL = {  # what a Unix mode calls a member that is neither file nor folder
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
_TAR_KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE), "a device"),
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a FIFO",
}
_BROKEN = (  # everything that the standard library's readers raise on damaged bytes; OSError is sorted out apart
    *(BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, struct.error),
    *(ValueError, LookupError, OverflowError, RuntimeError),  # RuntimeError: also NotImplemented and Recursion
)


class ArchiveError(DataError):
    """The archive itself is hostile or damaged: unpacking it once more won't help."""


class _RefusedError(Exception):
    """What is wrong with a member; `_written_aside` adds which member of which archive."""


@dataclass(frozen=True)
class Limits:
    """What one archive may become on disk; one limit crossed refuses the archive.

    `max_ratio` compares what is written with the archive's own size, from `ratio_from_bytes` on: pixel CSVs shrink 10
    times, deflate's bombs 1,000 times, and a small archive of flat pictures is nobody's bomb.
    """

    max_bytes: int = 64 << 30  # ASL's 87,000 pictures take 1 GB, Open Images' largest part 46 GB
    max_members: int = 2_000_000  # ImageNet-1k has 1,431,167 pictures
    max_ratio: float = 200
    ratio_from_bytes: int = 64 << 20


class _Member(NamedTuple):
    name: str  # as the archive has it; a folder's may end with "/"
    kind: str  # "file", "folder", or a phrase for what is refused
    size: int  # bytes, as declared
    open: Callable[[], Any]  # a readable binary file


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
        file = _GuardedFile(archive, limits.max_members)
    except OSError as error:
        raise DataError(f"{archive}: can't be read: {error.strerror}") from error
    with file:
        meter = _Meter(limits, archive.stat().st_size)
        head = file.read(6)
        file.seek(0)
        # zipfile.is_zipfile looks at the end, where a tar may hold a zip; the first bytes decide here
        read_members = _zip_members if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else _tar_members
        return _written_aside(archive, Path(folder), read_members(file, meter, progress), meter)


def adopt(tree: Path, folder: Path, limits: Limits | None = None) -> Path:
    """Copy an unpacked `tree` to `folder` under the rules of `extract`; links and devices in it are refused."""
    return _written_aside(tree, Path(folder), _tree_members(Path(tree)), _Meter(limits or Limits(), None))


def _written_aside(archive: Path, folder: Path, members: Iterator[_Member], meter: "_Meter") -> Path:
    """Write `members` into a folder beside `folder` and rename it; the one place where errors get their line."""
    names = _Names()
    try:
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists already; remove it, or choose another folder, to unpack {archive}")
        with _aside(folder) as aside:
            for member in members:
                meter.count_member()
                _write(member, names, aside, meter)
                names.current = ""
            if not names.seen:
                raise _RefusedError("holds no files")
            if hasattr(os, "sync"):  # the data must reach the disk before the name: once for all, not 87,000 times
                os.sync()
            aside.replace(folder)
    except _RefusedError as error:
        raise ArchiveError(f"{archive}: {names.where()}{error}; nothing was unpacked") from error
    except _BROKEN as error:
        raise ArchiveError(f"{archive}: {names.where()}damaged ({_line(error)}); nothing was unpacked") from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 tell of damage so
            raise ArchiveError(f"{archive}: {names.where()}damaged ({_line(error)}); nothing was unpacked") from error
        reason = f"{error.strerror}; nothing was unpacked, make room or choose another folder"
        raise DataError(f"{archive}: {names.where()}can't be written to {folder}: {reason}") from error
    return folder


def _write(member: _Member, names: "_Names", aside: Path, meter: "_Meter") -> None:
    names.current = member.name
    if member.kind not in ("file", "folder"):
        raise _RefusedError(f"is {member.kind}, only plain files and folders are unpacked")
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
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > member.size:
                raise _RefusedError(f"is larger than the {member.size} bytes it declares")
            meter.count_bytes(len(chunk))
            target.write(chunk)
    if written != member.size:
        raise _RefusedError(f"has {written} bytes, it declares {member.size}")


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


@dataclass
class _Names:
    """The names seen so far; `claim` turns a safe new one into its parts and refuses every other."""

    seen: dict[str, tuple[str, bool]] = field(default_factory=dict)  # key -> (spelling, is a folder)
    current: str = ""

    def claim(self, name: str, is_folder: bool) -> tuple[str, ...]:
        parts = _safe_parts(name)
        if not parts and not is_folder:
            raise _RefusedError("has no name")
        for depth in range(1, len(parts) + 1):
            spelling, folder = "/".join(parts[:depth]), depth < len(parts) or is_folder
            key = _key(spelling)
            if (old := self.seen.get(key)) is None:
                self.seen[key] = spelling, folder
            elif old[0] != spelling:
                raise _RefusedError(f"is the same name as {_shown(old[0])} where case or accents don't count")
            elif old[1] != folder:
                raise _RefusedError(f"needs {_shown(spelling)} to be both a file and a folder")
            elif not folder:
                raise _RefusedError("stands in the archive twice")
        return parts

    def where(self) -> str:
        return f"member {_shown(self.current)} " if self.current else ""


def _safe_parts(name: str) -> tuple[str, ...]:
    """The folders and the file of a member's name, the same on every system; _RefusedError for any other name."""
    try:
        length_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise _RefusedError("has a name that isn't UTF-8") from None
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        raise _RefusedError("has a control character in its name")
    if "\\" in name:
        raise _RefusedError("has a backslash in its name, which some systems take for a separator")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise _RefusedError("has an absolute name")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _RefusedError("leaves the folder by '..'")
    if length_bytes > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise _RefusedError("has a name longer than 1024 bytes, or 255 between two slashes")
    if any(_RESERVED.fullmatch(part) or part.endswith(".") for part in parts):
        raise _RefusedError("has a name that Windows reserves or changes")
    if os.name == "nt" and any(re.search(r'[<>:"|?*]| $', part) for part in parts):
        raise _RefusedError("has a name that Windows can't keep")
    return parts


def _key(spelling: str) -> str:
    """Equal for names that some file system takes for one: case, Unicode form, trailing dots and spaces."""
    if spelling.isascii():
        return re.sub(r"[ .]+(?=/|$)", "", spelling.lower())
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", spelling).casefold())
    return re.sub(r"[ .]+(?=/|$)", "", folded)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}")  # repr: one line whatever it holds


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass
class _Meter:
    """What has been unpacked so far, against the limits."""

    limits: Limits
    packed_bytes: int | None  # None: there is no archive, no ratio
    members: int = 0
    written: int = 0
    report: Callable[[int], None] | None = None  # hears the bytes so far

    def count_member(self) -> None:
        self.members += 1
        if self.members > self.limits.max_members:
            raise _RefusedError(f"has more than {self.limits.max_members} members")

    def count_bytes(self, count: int) -> None:
        self.written += count
        if self.written > self.limits.max_bytes:
            raise _RefusedError(f"unpacks to more than {self.limits.max_bytes} bytes in all")
        allowed = None if self.packed_bytes is None else self.limits.max_ratio * self.packed_bytes
        if allowed is not None and self.written > max(allowed, self.limits.ratio_from_bytes):
            raise _RefusedError(f"unpacks to more than {self.limits.max_ratio} times the archive's size")
        if self.report:
            self.report(self.written)


class _GuardedFile(FileIO):
    """A file whose zip directory is counted before zipfile makes an object of every entry (10 GB for 16 million)."""

    def __init__(self, path: Path, max_entries: int) -> None:
        super().__init__(path)
        self.max_entries = max_entries

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = super().read(-1 if size is None else size) or b""
        if data.count(b"PK\x01\x02") > self.max_entries:
            raise _RefusedError(f"has more than {self.max_entries} members")
        return data


def _zip_members(file: FileIO, meter: _Meter, progress: Progress | None) -> Iterator[_Member]:
    with ZipFile(file) as archive:
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        _Meter(meter.limits, meter.packed_bytes).count_bytes(total)  # an honest bomb is refused before it is lit
        if progress:
            meter.report = lambda done: progress(done, total)
        end = 0  # members that share bytes make a bomb within any ratio of one member (42.zip's successors)
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < end or (end == 0 and info.header_offset != 0):
                raise _RefusedError(
                    f"has a member {_shown(info.orig_filename)} that overlaps another or doesn't begin the file"
                )
            end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
        if end > archive.start_dir:
            raise _RefusedError("has a last member that overlaps the directory")
        for info in infos:
            longer = copy(info)
            longer.file_size += 1  # zipfile cuts a member at its declared size: let one byte more through, to be seen
            # the name before zipfile cuts it at NUL and changes its separators
            yield _Member(info.orig_filename, _zip_kind(info), info.file_size, partial(archive.open, longer))


def _zip_kind(info: ZipInfo) -> str:
    folder = info.orig_filename.endswith("/")
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the packer isn't Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return _SPECIAL.get(kind, "a special file")
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, names masked
        return "an encrypted file"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # zipfile unpacks a whole read of bzip2 or LZMA at once
        return f"a file packed by method {info.compress_type}"
    if (kind == stat.S_IFDIR) > folder or (folder and info.file_size):
        return "a folder and a file at once"
    return "folder" if folder else "file"


class _Stream:
    """The unpacked bytes of a tar, read forwards only, counted, and never more than a chunk at once.

    tarfile reads a header of any declared length into memory, and takes a tar cut between two members for whole:
    `last` tells whether it stopped at the block of zeros that ends every tar.
    """

    def __init__(self, file: Any, meter: _Meter) -> None:
        self.file, self.meter, self.position, self.last = file, meter, 0, b""

    def read(self, size: int) -> bytes:
        if size > _CHUNK_BYTES:
            raise _RefusedError(f"has a header of {size} bytes")
        self.last = self.file.read(size)
        self.position += len(self.last)
        self.meter.count_bytes(len(self.last))
        return self.last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise _RefusedError("has a header that points backwards")
        while self.position < position and self.read(min(_CHUNK_BYTES, position - self.position)):
            pass


def _unpacked(file: FileIO) -> Any:
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return BZ2File(file)
    return LZMAFile(file) if head.startswith(b"\xfd7zXZ\x00") else file


def _tar_members(file: FileIO, meter: _Meter, progress: Progress | None) -> Iterator[_Member]:
    packed = meter.packed_bytes or 0
    report = (lambda done: progress(file.tell(), packed)) if progress else None
    stream: Any = _Stream(_unpacked(file), _Meter(meter.limits, packed, report=report))
    try:
        archive: Any = tarfile.TarFile(fileobj=stream)
    except tarfile.ReadError as error:
        raise _RefusedError(f"is neither a zip nor a tar ({_line(error)})") from error
    with archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps every header: 2 GB for 2,000,000
            kind = "a sparse file" if info.issparse() else _TAR_KINDS.get(info.type, "a special file")
            yield _Member(info.name, kind, info.size, partial(archive.extractfile, info))
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise _RefusedError("ends early: it was cut short, or a header is damaged")
        while stream.read(_CHUNK_BYTES):  # to the end: the packer's checksum stands there
            pass


def _tree_members(tree: Path) -> Iterator[_Member]:
    def fail(error: OSError) -> None:
        raise error  # os.walk drops it, and with it a folder's files

    for folder, folders, files in os.walk(tree, onerror=fail):
        for path in (Path(folder, name) for name in sorted(folders + files)):
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            word = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}.get(kind) or _SPECIAL.get(kind, "a special file")
            yield _Member(path.relative_to(tree).as_posix(), word, status.st_size, partial(open, path, "rb"))
