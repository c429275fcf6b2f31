"""Append-only, content-addressed row store: crash-safe writes, memory-mapped reads.

A store is a folder. `rows-<generation>.bin` holds the rows; `index.bin` lists the valid ones: a 16-byte key and the CRC-32
of each, preceded by a checksum of the whole index. Rows are synced before the index is replaced atomically, so a crash
leaves only data that is never used: rows without an index entry, an index without its rows, or a damaged index. All three
are written again.
"""

import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from imgclf.files.atomic import delete_leftovers, write_atomically

__all__ = ["KEY_BYTES", "DiskStore", "MappedRows", "MemoryStore", "RowStore", "Rows", "key_of", "list_stores"]

KEY_BYTES = 16
KINDS = ("features", "pixels")  # folders of the cache folder that hold stores
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4")])
_MAGIC = b"imgclf rows 1\n"
_RESERVED_BYTES = 2**28  # of the disk, left free
_CHECKED_AT_ONCE = 256  # rows; 256 images of 224 x 224 take 38 MB

Array = NDArray[Any]  # rows are uint8 or float32
Indices = NDArray[np.int64]


def key_of(*parts: bytes) -> bytes:
    """Return the 16-byte digest (BLAKE2b) of `parts`, which depends on their order and boundaries."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class MappedRows:
    """Read-only rows of a store's file, for any process; mapped at the first read, and again after the file has grown.

    Two with the same `token` read the same rows.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.token = str(path)
        self._map: Array | None = None

    def take(self, numbers: Indices) -> Array:
        """Return a copy of the rows `numbers`: [n, ...]."""
        if self._map is None or (len(numbers) and numbers.max() >= len(self._map)):
            size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
            count = self.path.stat().st_size // size
            self._map = np.memmap(self.path, self.dtype, "r", shape=(count, *self.shape)) if count else None
        return np.empty((0, *self.shape), self.dtype) if self._map is None else self._map[numbers]


class DiskStore:
    """Rows of one shape and dtype in `folder`, with `metadata` for people next to them as JSON.

    `budget_bytes` limits all stores of the cache folder together. Several processes may use a store: hold `lock` from
    `find` to `commit`, so that no two compute the same rows. Row numbers are valid with the `rows` of the same moment.
    """

    _generation: str
    _numbers: dict[bytes, int]
    _crcs: list[int]
    _checked: set[int]

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: str, metadata: Mapping[str, str], budget_bytes: float
    ) -> None:
        self.folder, self.shape, self.dtype, self.budget_bytes = folder, shape, dtype, budget_bytes
        self.metadata = dict(metadata)
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.lock: AbstractContextManager[object] = FileLock(str(folder) + ".lock")
        self._rows: MappedRows | None = None
        self._reset("")

    @property
    def rows(self) -> MappedRows:
        """The rows, to hand to other processes; they stay readable after the store is cleared."""
        if self._rows is None or self._rows.path != self._path:
            self._rows = MappedRows(self._path, self.shape, self.dtype)
        return self._rows

    @property
    def _path(self) -> Path:
        return self.folder / f"rows-{self._generation}.bin"

    def find(self, keys: Sequence[bytes]) -> Indices:
        """Return the row number of each key, -1 for a missing or damaged row: int64 [n].

        A row is compared with its CRC the first time it is looked up.
        """
        self._refresh()
        numbers = np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)
        rows = self.rows
        for start in range(0, len(numbers), _CHECKED_AT_ONCE):
            part = numbers[start : start + _CHECKED_AT_ONCE]
            unchecked = np.array([n for n in part.tolist() if n >= 0 and n not in self._checked], dtype=np.int64)
            for number, row in zip(unchecked.tolist(), rows.take(unchecked), strict=True):
                if zlib.crc32(row) == self._crcs[number]:
                    self._checked.add(number)
                else:
                    part[part == number] = -1
        return numbers

    def add(self, keys: Sequence[bytes], rows: Array) -> Indices:
        """Append `rows` [n, ...], valid after the next `commit`, and return their numbers.

        Raises `OSError` if the disk is full or the store has been cleared.
        """
        assert rows.shape[1:] == self.shape and rows.dtype == np.dtype(self.dtype) and len(keys) == len(rows)
        first, rows = len(self._crcs), np.ascontiguousarray(rows)
        with open(self._path, "r+b") as file:  # not created here: another process may have cleared the cache
            file.truncate(first * self.row_bytes)  # drops what a crash left after the last valid row
            file.seek(first * self.row_bytes)
            file.write(rows.data)
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        self._crcs += [zlib.crc32(row) for row in rows]
        self._checked.update(numbers.tolist())
        return numbers

    def commit(self) -> None:
        """Sync the rows, then replace the index."""
        with open(self._path, "r+b") as file:
            os.fsync(file.fileno())
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
        if generation != self._generation:
            self._reset(generation)
        return entries

    def _start_generation(self) -> None:
        delete_leftovers(self.folder)
        for path in self.folder.glob("rows-*.bin"):
            path.unlink(missing_ok=True)
        self._reset(os.urandom(8).hex())
        self._path.touch()
        write_atomically(self.folder / "about.json", json.dumps(self.metadata, indent=2) + "\n")
        self.commit()

    def _reset(self, generation: str) -> None:
        self._generation = generation
        self._numbers, self._crcs, self._checked = {}, [], set()


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

    def add(self, keys: Sequence[bytes], rows: Array) -> Indices:
        """Store `rows` [n, ...] under `keys`, and return their numbers."""
        first = len(self._numbers)
        self.array[first : first + len(rows)] = rows
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        return numbers

    def commit(self) -> None:
        """Do nothing: the rows end with the process."""

    def take(self, numbers: Indices) -> Array:
        """Return a copy of the rows `numbers`: [n, ...]."""
        return self.array[numbers]

    def shortage(self, count: int) -> str | None:
        """Return why `count` more rows do not fit; None if they fit."""
        needed = (len(self._numbers) + count) * self.row_bytes
        if needed <= self.budget_bytes:
            return None
        return f"{needed / 1e9:.2f} GB would exceed cache_gb={self.budget_bytes / 1e9:g}"


RowStore: TypeAlias = DiskStore | MemoryStore
Rows: TypeAlias = MappedRows | MemoryStore


def list_stores(root: Path) -> list[tuple[Path, dict[str, str], int]]:
    """Return (folder, metadata, bytes) of each store in the cache folder `root`, sorted by folder."""
    stores = []
    for path in sorted(path for kind in KINDS for path in root.glob(f"{kind}/*/about.json")):
        try:
            metadata = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            metadata = {}
        stores.append((path.parent, metadata, sum(map(_size, path.parent.glob("*.bin")))))
    return stores


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process may be clearing or renewing the store
        return 0
