"""What a file in torch's format makes torch read, call and allocate, checked before torch reads it.

torch has two formats: a zip archive with one pickle, and an older one of five pickles in front of the tensors' data. Only
what `torch.save` writes is accepted: a file that torch's zip reader and Python's could understand differently is refused, and
so are instructions that would allocate more than the file holds.
"""

import io
import os
import pickletools
import re
import struct
import zipfile
from collections import deque
from typing import IO

from imgclf.errors import CheckpointError

__all__ = ["MAX_EXPANSION", "check_torch_file"]

MAX_EXPANSION = 4  # torch stores its records uncompressed: a file that grows more than this on reading is an attack
_MAX_OBJECTS_BYTES = 2**28  # of memory for a pickle's objects besides the tensors' data; a large network needs 2**23
_MAX_DIRECTORY_BYTES = 2**23  # of a zip's list of records, about 100,000 of them; Python needs ten times as much for it
# What torch writes for tensors and plain data. `weights_only=True` calls more, some of which allocates as much memory as
# the file asks for (`bytearray(10**12)`; a tensor of stride 0 converted to another dtype), and any library may add to its
# list.
_ALLOWED = re.compile(
    r"collections OrderedDict|(__builtin__|builtins) set|torch (Size|device|bool|b?float\w+|u?int\d+|complex\d+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)|torch(\.cuda)? [A-Z][A-Za-z0-9]*Storage"
    r"|torch\.storage UntypedStorage"
)
_ITEM_BYTES = {  # of one number in each kind of storage
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
# Upper bounds of the memory in bytes that one instruction takes, in torch's reader and in the checks that follow it.
_OBJECT_BYTES = {
    **dict.fromkeys(("BININT1", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "BINGET", "LONG_BINGET"), 9),
    "BININT2": 40,
    **dict.fromkeys(("BININT", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), 100),
    **dict.fromkeys(("MARK", "BINPUT", "LONG_BINPUT", "GLOBAL"), 100),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 400),
    **dict.fromkeys(("BINPERSID", "REDUCE", "NEWOBJ", "BUILD"), 1500),
}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "NONE", "BINUNICODE", "SHORT_BINSTRING", "GLOBAL")
_END = struct.Struct("<4s4H2LH")  # the end of a zip file
_LOCATOR = struct.Struct("<4sLQL")  # in front of it in a zip file that may be larger than 4 GB
_END64 = struct.Struct("<4sQ2H2L4Q")  # in front of that
_HEADER = struct.Struct("<4s5H3L2H")  # in front of each record


def check_torch_file(file: IO[bytes]) -> None:
    """Check what torch would do with the file, without executing anything, and rewind it.

    torch, too, tells its two formats by the first four bytes. Raises `CheckpointError` for a file that `torch.save` doesn't
    write, `ValueError`, `OSError` or `zipfile.BadZipFile` for a damaged one.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    is_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if is_zip:
        _check_zip(file, size)
    else:
        pickles = [_check_pickle(file) for _ in range(5)]  # magic number, version, machine, contents, keys of the data
        _check_growth(size, sum(sum(claims.values()) for claims in pickles))
    file.seek(0)


def _check_growth(size: int, needed: int) -> None:
    if needed > MAX_EXPANSION * size:
        raise CheckpointError(f"would grow from {size:,} to {needed:,} bytes; refused")


def _check_zip(file: IO[bytes], size: int) -> None:
    """Check the records, the instructions in data.pkl, and that each storage has a record of its own and of its size."""
    count, start = _find_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_growth(size, sum(member.file_size for member in members))
        if len({member.filename.lower() for member in members}) != len(members):  # torch ignores case
            raise CheckpointError("holds two records of one name; refused")
        if len(members) != count or any("\0" in member.orig_filename for member in members):
            raise CheckpointError("holds a list of records that can be read in two ways; refused")
        _check_records(file, members, start)
        top = members[0].filename.partition("/")[0] if members else ""  # where torch looks for all the others
        pickles = [member for member in members if member.filename.lower().endswith("data.pkl")]
        if [member.filename for member in pickles] != [f"{top}/data.pkl"]:
            raise CheckpointError(f"expected one record data.pkl, found {len(pickles)}; refused")
        claims = _check_pickle(io.BytesIO(archive.read(pickles[0])))
    held = {member.filename: member.file_size for member in members}
    for key, claimed in claims.items():
        if claimed and held.get(f"{top}/data/{key}") != claimed:
            there = f"has {held[name]:,}" if (name := f"{top}/data/{key}") in held else "isn't there"
            raise CheckpointError(f"damaged: it needs a record {key} of {claimed:,} bytes, which {there}")


def _find_directory(file: IO[bytes], size: int) -> tuple[int, int]:
    """Return the number of records and the place of their list, which must end where the end of the file begins.

    Otherwise a zip file can have two lists: Python takes the one in front of the end, torch the one at the place stated there.
    """
    file.seek(max(0, size - _END64.size - _LOCATOR.size - _END.size))
    *large, end = _split(file.read())
    signature, _, _, _, count, length, start, comment = _END.unpack(end)
    if signature != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("doesn't end as a zip file of torch's")
    place, stated = size - _END.size, (count, length, start)
    if large:
        locator, record = _LOCATOR.unpack(large[1]), _END64.unpack(large[0])
        place -= _LOCATOR.size + _END64.size
        count, length, start = record[-3:]
        short = zip(stated, (count, length, start), (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        if record[0] != b"PK\x06\x06" or locator[2] != place or any(a not in (b, most) for a, b, most in short):
            raise CheckpointError("holds two lists of its records; refused")
    if start + length != place:
        raise CheckpointError("holds two lists of its records; refused")
    if length > _MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"holds a list of records of {length:,} bytes; refused")
    return count, start


def _split(tail: bytes) -> list[bytes]:
    """Return the parts of the end of a zip file: [end], or [end of a large file, its locator, end]."""
    if len(tail) < _END.size:
        raise zipfile.BadZipFile("ends early")
    rest, end = tail[: -_END.size], tail[-_END.size :]
    if rest[-_LOCATOR.size :][:4] != b"PK\x06\x07" or len(rest) < _END64.size + _LOCATOR.size:
        return [end]
    return [rest[-_LOCATOR.size - _END64.size : -_LOCATOR.size], rest[-_LOCATOR.size :], end]


def _check_records(file: IO[bytes], members: list[zipfile.ZipInfo], end: int) -> None:
    """Raise `CheckpointError` for records that share bytes, and for one that is packed in another way than torch can read."""
    free = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(f"holds a record packed by method {member.compress_type}; refused")
        file.seek(member.header_offset)
        signature, *_, name, extra = _HEADER.unpack(file.read(_HEADER.size))
        begin, free_before = member.header_offset, free
        free = begin + _HEADER.size + name + extra + member.compress_size
        if signature != b"PK\x03\x04" or begin < free_before or free > end:
            raise CheckpointError("holds records that overlap; refused")


def _check_pickle(stream: IO[bytes]) -> dict[str, int]:
    """Check one pickle by its instructions; return the size in bytes of each storage that it asks for, by key.

    Raises `CheckpointError` for one that calls or allocates more than tensors and plain data need, `ValueError` for a damaged
    one.
    """
    texts: deque[str] = deque(maxlen=2)
    storages, memory = _Storages(), 0
    for opcode, argument, _ in pickletools.genops(stream):
        memory += _OBJECT_BYTES.get(opcode.name, 0)
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            called = " ".join(texts) if opcode.name == "STACK_GLOBAL" else str(argument)
            if not _ALLOWED.fullmatch(called):
                shown = ascii(called.replace(" ", "."))[1:-1][:80]
                raise CheckpointError(f"asks for {shown}, which is more than tensors and plain data; it was not loaded")
        elif isinstance(argument, str):
            texts.append(argument)
            memory += 4 * len(argument)
        if memory > _MAX_OBJECTS_BYTES:
            raise CheckpointError(f"its lists and values would take over {_MAX_OBJECTS_BYTES:,} bytes; refused")
        storages.follow(opcode.name, argument)
    return storages.claimed


class _Storages:
    """The storages that a pickle asks for, {key: bytes}: their descriptions, followed through its instructions.

    torch writes a description as a tuple of literals: ("storage", kind, key, device, number of items), and None behind these
    in the old format. Any other way to make one is refused, so that one record can't be read again under many keys.
    """

    def __init__(self) -> None:
        self.claimed: dict[str, int] = {}
        self._memo: dict[int, object] = {}
        self._items: deque[object] = deque(maxlen=7)  # since the last mark; Ellipsis is a value that isn't known here
        self._last: object = ...  # the value on top of the stack

    def follow(self, name: str, argument: object) -> None:
        """Take the next instruction into account; raises `CheckpointError` for a storage that torch wouldn't describe so."""
        if name in ("BINPUT", "LONG_BINPUT"):
            assert isinstance(argument, int)
            self._memo[argument] = self._last
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            self._push(self._memo.get(argument, ...))
        elif name in _LITERALS:
            self._push(argument)
        elif name == "MARK":
            self._items.clear()
            self._last = ...
        elif name == "TUPLE":
            self._last = tuple(self._items)
            self._restart()
        else:
            if name in ("BINPERSID", "PERSID"):
                self._claim(self._last)
            self._restart()
            self._last = ...

    def _push(self, value: object) -> None:
        self._items.append(value)
        self._last = value

    def _restart(self) -> None:
        """Forget the items: what lies on the stack since the last mark isn't followed."""
        self._items.clear()
        self._items.append(...)

    def _claim(self, described: object) -> None:
        values = described if isinstance(described, tuple) else ()
        word, kind, key, device, count = values[:5] if len(values) in (5, 6) else (None,) * 5
        item_bytes = _ITEM_BYTES.get(str(kind).rpartition(" ")[2].removesuffix("Storage"))
        literal = isinstance(key, str) and re.fullmatch("[0-9]+", key) and isinstance(device, str)
        if word != "storage" or values[5:] not in ((), (None,)) or not literal or item_bytes is None:
            raise CheckpointError("describes a tensor's data in a way that torch doesn't write; refused")
        if not isinstance(count, int) or count < 0 or self.claimed.get(key, count * item_bytes) != count * item_bytes:
            raise CheckpointError(f"describes a tensor's data of {str(count)[:40]} items in record {key[:40]}; refused")
        self.claimed[key] = count * item_bytes
