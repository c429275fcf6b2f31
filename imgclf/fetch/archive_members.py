"""The members of a zip, a tar or a folder, one by one; what their readers can't be trusted with is checked here."""

import os
import stat
import tarfile
from bz2 import BZ2File
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from gzip import GzipFile
from io import FileIO
from lzma import LZMAFile
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from imgclf.fetch.archive_limits import Meter, RefusedError
from imgclf.fetch.archive_names import shown

__all__ = ["CHUNK_BYTES", "GuardedFile", "Member", "Progress", "one_line", "tar_members", "tree_members", "zip_members"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all

CHUNK_BYTES = 1 << 20
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


class Member(NamedTuple):
    """A member as its archive declares it."""

    name: str  # as the archive has it; a folder's may end with "/"
    kind: str  # "file", "folder", or a phrase for what is refused
    size: int  # bytes, as declared
    open: Callable[[], Any]  # a readable binary file


class GuardedFile(FileIO):
    """A file whose zip directory is counted before zipfile makes an object of every entry (10 GB for 16 million)."""

    def __init__(self, path: Path, max_entries: int) -> None:
        super().__init__(path)
        self.max_entries = max_entries

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; RefusedError for a zip's directory of too many entries."""
        data: bytes = super().read(-1 if size is None else size) or b""
        if data.count(b"PK\x01\x02") > self.max_entries:
            raise RefusedError(f"has more than {self.max_entries} members")
        return data


def zip_members(file: FileIO, meter: Meter, progress: Progress | None) -> Iterator[Member]:
    """The members of a zip in the order of its directory, which was checked for members that share bytes."""
    with ZipFile(file) as archive:
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        Meter(meter.limits, meter.packed_bytes).count_bytes(total)  # an honest bomb is refused before it is lit
        if progress:
            meter.report = lambda done: progress(done, total)
        end = 0  # members that share bytes make a bomb within any ratio of one member (42.zip's successors)
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < end or (end == 0 and info.header_offset != 0):
                raise RefusedError(
                    f"has a member {shown(info.orig_filename)} that overlaps another or doesn't begin the file"
                )
            end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
        if end > archive.start_dir:
            raise RefusedError("has a last member that overlaps the directory")
        for info in infos:
            longer = copy(info)
            longer.file_size += 1  # zipfile cuts a member at its declared size: let one byte more through, to be seen
            # the name before zipfile cuts it at NUL and changes its separators
            yield Member(info.orig_filename, _zip_kind(info), info.file_size, partial(archive.open, longer))


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

    def __init__(self, file: Any, meter: Meter) -> None:
        self.file, self.meter, self.position, self.last = file, meter, 0, b""

    def read(self, size: int) -> bytes:
        if size > CHUNK_BYTES:
            raise RefusedError(f"has a header of {size} bytes")
        self.last = self.file.read(size)
        self.position += len(self.last)
        self.meter.count_bytes(len(self.last))
        return self.last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise RefusedError("has a header that points backwards")
        while self.position < position and self.read(min(CHUNK_BYTES, position - self.position)):
            pass


def _unpacked(file: FileIO) -> Any:
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return BZ2File(file)
    return LZMAFile(file) if head.startswith(b"\xfd7zXZ\x00") else file


def tar_members(file: FileIO, meter: Meter, progress: Progress | None) -> Iterator[Member]:
    """The members of a tar, packed or not, as they come."""
    packed = meter.packed_bytes or 0
    report = (lambda done: progress(file.tell(), packed)) if progress else None
    stream: Any = _Stream(_unpacked(file), Meter(meter.limits, packed, report=report))
    try:
        archive: Any = tarfile.TarFile(fileobj=stream)
    except tarfile.ReadError as error:
        raise RefusedError(f"is neither a zip nor a tar ({one_line(error)})") from error
    with archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # tarfile keeps every header: 2 GB for 2,000,000
            kind = "a sparse file" if info.issparse() else _TAR_KINDS.get(info.type, "a special file")
            yield Member(info.name, kind, info.size, partial(archive.extractfile, info))
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise RefusedError("ends early: it was cut short, or a header is damaged")
        while stream.read(CHUNK_BYTES):  # to the end: the packer's checksum stands there
            pass


def tree_members(tree: Path) -> Iterator[Member]:
    """The files and folders below `tree`; OSError for a folder that can't be read."""

    def fail(error: OSError) -> None:
        raise error  # os.walk drops it, and with it a folder's files

    for folder, folders, files in os.walk(tree, onerror=fail):
        for path in (Path(folder, name) for name in sorted(folders + files)):
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            word = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}.get(kind) or _SPECIAL.get(kind, "a special file")
            yield Member(path.relative_to(tree).as_posix(), word, status.st_size, partial(open, path, "rb"))


def one_line(error: Exception) -> str:
    """What `error` says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
