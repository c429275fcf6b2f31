"""Append-only, content-addressed row store: crash-safe writes, and reads that are checked.

A store is a folder. `rows-<generation>.bin` holds the rows; `index.bin` lists the valid ones: a 16-byte key and the CRC-32
of each, preceded by a checksum of the whole index. Rows are synced before the index is replaced atomically, so a crash
leaves only data that is never used: rows without an index entry, an index without its rows, or a damaged index. All three
are written again.

Other programs may clear, truncate or overwrite the files at any time, also while a run uses them. A run keeps its file open,
reads rows by `pread`, and compares each with its CRC each time: a row is right, or it counts as missing. A memory map would
be 0.07 ms faster for an image of 224 x 224, but a process that reads one of a truncated file is killed by SIGBUS.
"""

import hashlib
import json
import mmap
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from imgclf.files.atomic import delete_leftovers, write_atomically

__all__ = ["KEY_BYTES", "DiskStore", "MemoryStore", "RowStore", "Rows", "StoredRows", "key_of", "list_stores"]

KEY_BYTES = 16
KINDS = ("features", "pixels")  # folders of the cache folder that hold stores
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4")])
_MAGIC = b"imgclf rows 1\n"
_RESERVED_BYTES = 2**28  # of the disk, left free
_CHECKED_AT_ONCE = 256  # rows; 256 images of 224 x 224 take 38 MB

Array = NDArray[Any]  # rows are uint8 or float32
Indices = NDArray[np.int64]
Checksums = NDArray[np.uint32]
Flags = NDArray[np.bool_]


def key_of(*parts: bytes) -> bytes:
    """Return the 16-byte digest (BLAKE2b) of `parts`, which depends on their order and boundaries."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class StoredRows:
    """The rows in a store's file, for any process; two with the same `token` read the same rows.

    The file stays open, so that its rows are there after the store has been cleared. A process that forks from this one
    has it open too; one that is spawned opens it by its path.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.token = str(path)
        self._file: int | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.shape, self.dtype)

    def open(self, flags: int = os.O_RDONLY) -> int:
        """Return the file's descriptor, opened if it isn't yet; raises `OSError`."""
        if self._file is None:
            with self._lock:
                if self._file is None:
                    self._file = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o666)
                    weakref.finalize(self, os.close, self._file)
        return self._file

    def take(self, numbers: Indices, checksums: Checksums) -> tuple[Array, Flags]:
        """Return a copy of the rows `numbers` [n, ...], and whether each is whole: bool [n].

        A row isn't whole if its number is -1, its checksum differs, or it can't be read; its content means nothing.
        """
        rows, whole = np.empty((len(numbers), *self.shape), self.dtype), np.zeros(len(numbers), np.bool_)
        content = rows.reshape(-1).view(np.uint8).reshape(len(numbers), self.row_bytes)
        for position, (number, checksum) in enumerate(zip(numbers.tolist(), checksums.tolist(), strict=True)):
            row = content[position]
            whole[position] = number >= 0 and self._read(row, number) and zlib.crc32(row) == checksum
        return rows, whole

    def _read(self, row: Array, number: int) -> bool:
        """Read a row into the bytes `row`; return whether it is there."""
        try:
            file = self.open()
            if hasattr(os, "preadv"):  # leaves the file's position alone, which processes that fork share
                return os.preadv(file, [row.data], number * self.row_bytes) == self.row_bytes
            with self._lock:
                os.lseek(file, number * self.row_bytes, os.SEEK_SET)
                data = os.read(file, self.row_bytes)
        except OSError:
            return False
        if len(data) == self.row_bytes:
            row[:] = np.frombuffer(data, np.uint8)
        return len(data) == self.row_bytes

    def append(self, first: int, rows: Array) -> None:
        """Write `rows` behind the first `first` rows; what a crash left there is dropped. Raises `OSError`."""
        file, rest = self.open(), np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        with self._lock:
            os.ftruncate(file, first * self.row_bytes)
            os.lseek(file, first * self.row_bytes, os.SEEK_SET)
            while len(rest):
                rest = rest[os.write(file, rest) :]

    def sync(self) -> None:
        """Sync the file."""
        os.fsync(self.open())

    def in_place(self) -> bool:
        """Return whether the open file is still the one at its path, where other processes find it."""
        try:
            return os.path.samestat(os.fstat(self.open()), self.path.stat())
        except FileNotFoundError:
            return False


class DiskStore:
    """Rows of one shape and dtype in `folder`, with `metadata` for people next to them as JSON.

    `budget_bytes` limits all stores of the cache folder together. Several processes may use a store: hold `lock` from
    `find` to `commit`, so that no two compute the same rows. Row numbers are valid with the `rows` of the same moment.
    """

    rows: StoredRows
    _generation: str
    _numbers: dict[bytes, int]
    _crcs: list[int]

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: str, metadata: Mapping[str, str], budget_bytes: float
    ) -> None:
        self.folder, self.shape, self.dtype, self.budget_bytes = folder, shape, dtype, budget_bytes
        self.metadata = dict(metadata)
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.lock: AbstractContextManager[object] = FileLock(str(folder) + ".lock")
        self._reset("")

    def find(self, keys: Sequence[bytes]) -> Indices:
        """Return the row number of each key, -1 for a missing or damaged row: int64 [n]."""
        self._refresh()
        numbers = np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)
        for start in range(0, len(numbers), _CHECKED_AT_ONCE):
            part = numbers[start : start + _CHECKED_AT_ONCE]
            _, whole = self.rows.take(part, self.checksums(part))
            part[~whole] = -1
        return numbers

    def checksums(self, numbers: Indices) -> Checksums:
        """Return the CRC-32 of the rows `numbers`, 0 for -1: uint32 [n]."""
        return np.array([self._crcs[number] if number >= 0 else 0 for number in numbers.tolist()], dtype=np.uint32)

    def add(self, keys: Sequence[bytes], rows: Array) -> Indices:
        """Append `rows` [n, ...], valid after the next `commit`, and return their numbers; raises `OSError` on a full disk."""
        assert rows.shape[1:] == self.shape and rows.dtype == np.dtype(self.dtype) and len(keys) == len(rows)
        first = len(self._crcs)
        self.rows.append(first, rows)
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        self._crcs += [zlib.crc32(row) for row in np.ascontiguousarray(rows)]
        return numbers

    def commit(self) -> None:
        """Sync the rows, then replace the index; rows whose store was cleared meanwhile are for this process only."""
        self.rows.sync()
        if not self.rows.in_place():
            return
        entries = np.zeros(len(self._crcs), _ENTRY)
        entries["crc"] = self._crcs
        for key, number in self._numbers.items():  # a replaced row keeps an empty key
            entries["key"][number] = np.void(key)
        body = self._generation.encode() + b"\n" + entries.tobytes()
        write_atomically(self.folder / "index.bin", _MAGIC + hashlib.blake2b(body).digest() + body)

    def shortage(self, count: int) -> str | None:
        """Return why `count` more rows do not fit; None if they fit."""
        needed = count * self.row_bytes
        used = sum(size for _, _, size in list_stores(self.folder.parents[1]))
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = max(shutil.disk_usage(existing).free - _RESERVED_BYTES, 0)
        if used + needed > self.budget_bytes:
            limit = f"cache_gb={self.budget_bytes / 1e9:g}"
            return f"{needed / 1e9:.2f} GB more than the {used / 1e9:.2f} GB in use would exceed {limit}"
        return f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free" if needed > free else None

    def _refresh(self) -> None:
        """Read the rows that other processes have added; start an empty generation if the index is unusable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = self._read_index()
        if entries is None:
            self._start_generation()
        elif len(entries) > len(self._crcs):
            self._crcs = entries["crc"].tolist()
            keys = (entry.tobytes() for entry in entries["key"])
            self._numbers = {key: number for number, key in enumerate(keys) if key != bytes(KEY_BYTES)}

    def _read_index(self) -> Array | None:
        """Return the index on disk; None unless it is whole and all of its rows exist."""
        try:
            data = (self.folder / "index.bin").read_bytes()
        except FileNotFoundError:
            return None
        start = len(_MAGIC) + 64  # bytes of a BLAKE2b digest
        body = data[start:]
        if data[:start] != _MAGIC + hashlib.blake2b(body).digest():
            return None
        name, _, rest = body.partition(b"\n")
        generation, entries = name.decode(), np.frombuffer(rest, _ENTRY)
        path = self.folder / f"rows-{generation}.bin"
        if not path.is_file() or path.stat().st_size < len(entries) * self.row_bytes:
            return None
        if generation != self._generation or not self.rows.in_place():
            self._reset(generation)
            self.rows.open(os.O_RDWR)
        return entries

    def _start_generation(self) -> None:
        delete_leftovers(self.folder)
        for path in self.folder.glob("rows-*.bin"):
            path.unlink(missing_ok=True)
        self._reset(os.urandom(8).hex())
        self.rows.open(os.O_RDWR | os.O_CREAT)
        write_atomically(self.folder / "about.json", json.dumps(self.metadata, indent=2) + "\n")
        self.commit()

    def _reset(self, generation: str) -> None:
        self._generation = generation
        self._numbers, self._crcs = {}, []
        self.rows = StoredRows(self.folder / f"rows-{generation}.bin", self.shape, self.dtype)


class MemoryStore:
    """The same interface in this process's memory: up to `capacity` rows, whose memory is allocated as they are added."""

    def __init__(self, shape: tuple[int, ...], dtype: str, capacity: int, budget_bytes: float) -> None:
        self.shape, self.dtype, self.capacity, self.budget_bytes = shape, dtype, capacity, budget_bytes
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # A shared mapping: processes that fork later see the rows that are added.
        self._memory = mmap.mmap(-1, max(1, capacity * self.row_bytes))
        self.array: Array = np.frombuffer(self._memory, dtype, capacity * int(np.prod(shape)))
        self.array = self.array.reshape(capacity, *shape)
        self.lock: AbstractContextManager[object] = nullcontext()
        self.token = ""
        self._numbers: dict[bytes, int] = {}

    @property
    def rows(self) -> "MemoryStore":
        """The rows, for processes that fork from this one."""
        return self

    def find(self, keys: Sequence[bytes]) -> Indices:
        """Return the row number of each key, -1 for a missing row: int64 [n]."""
        return np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)

    def checksums(self, numbers: Indices) -> Checksums:
        """Return 0 for each row: memory isn't checked."""
        return np.zeros(len(numbers), np.uint32)

    def add(self, keys: Sequence[bytes], rows: Array) -> Indices:
        """Store `rows` [n, ...] under `keys`, and return their numbers."""
        first = len(self._numbers)
        self.array[first : first + len(rows)] = rows
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        return numbers

    def commit(self) -> None:
        """Do nothing: the rows end with the process."""

    def take(self, numbers: Indices, checksums: Checksums) -> tuple[Array, Flags]:
        """Return a copy of the rows `numbers` [n, ...], and whether each is there: bool [n]."""
        return self.array[numbers], numbers >= 0

    def shortage(self, count: int) -> str | None:
        """Return why `count` more rows do not fit; None if they fit."""
        needed = (len(self._numbers) + count) * self.row_bytes
        if needed <= self.budget_bytes:
            return None
        return f"{needed / 1e9:.2f} GB would exceed cache_gb={self.budget_bytes / 1e9:g}"


RowStore: TypeAlias = DiskStore | MemoryStore
Rows: TypeAlias = StoredRows | MemoryStore


def list_stores(root: Path) -> list[tuple[Path, dict[str, str], int]]:
    """Return (folder, metadata, bytes) of each store in the cache folder `root`, sorted by folder."""
    stores = []
    for folder in sorted(path for kind in KINDS for path in root.glob(f"{kind}/*/")):
        try:
            metadata = dict(json.loads((folder / "about.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            metadata = {}
        stores.append((folder, metadata, sum(map(_size, folder.glob("*.bin")))))
    return stores


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process may be clearing or renewing the store
        return 0
