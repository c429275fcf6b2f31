"""Rows of numbers on disk, found by what they were made from: appended under a lock, mapped for reading, never half there.

A store is a folder. `rows-<generation>.bin` holds the rows, one behind the other; `index.bin` says which rows count: a
16-byte key and the CRC-32 of each, behind a checksum of the whole. Rows reach the disk before the index does, and the index
is replaced in one step, so that whatever a crash leaves behind is not used: rows without an index entry, an index without its
rows, or an index that isn't whole, all of which are made anew.
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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from imgclf.files.atomic import sweep_leftovers, write_atomically

__all__ = ["KEY_BYTES", "DiskStore", "MappedRows", "MemoryStore", "RowStore", "Rows", "key_of", "list_stores"]

KEY_BYTES = 16
KINDS = ("features", "pixels")  # folders of the cache folder that hold stores
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("crc", "<u4")])
_MAGIC = b"imgclf rows 1\n"
_SPARE = 2**28  # bytes of the disk that no store fills

Indices = npt.NDArray[np.int64]


def key_of(*parts: bytes) -> bytes:
    """16 bytes that only the same parts in the same order share (BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class Rows(Protocol):
    """What rows are read by, in any process; two with the same `token` read the same."""

    token: str

    def take(self, numbers: Indices) -> npt.NDArray[Any]:
        """A copy of the rows with these numbers: [n, ...]."""


class RowStore(Protocol):
    """Where rows of one shape and dtype are kept; numbers of rows stay valid with the `rows` of the same moment.

    `lock` is held from `find` to `commit`, so that no two processes make the same rows.
    """

    lock: AbstractContextManager[Any]
    row_bytes: int

    @property
    def rows(self) -> Rows:
        """What other processes read by."""

    def find(self, keys: Sequence[bytes]) -> Indices:
        """The number of each key's row, -1 for one that isn't there, or isn't whole: int64 [n]."""

    def add(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> Indices:
        """Keep `rows` [n, ...] under `keys`, and return their numbers; raises `OSError` when there is no room."""

    def commit(self) -> None:
        """Let the rows that were added outlive the process."""

    def room(self, rows: int) -> str | None:
        """Why so many more rows don't fit, in words; None when they do."""


class MappedRows:
    """Read-only rows of one store's file, for any process: it is mapped when first read, and again when it has grown."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.token = str(path)
        self._map: npt.NDArray[Any] | None = None

    def take(self, numbers: Indices) -> npt.NDArray[Any]:
        """A copy of the rows with these numbers: [n, ...]."""
        if self._map is None or (len(numbers) and numbers.max() >= len(self._map)):
            size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
            count = self.path.stat().st_size // size
            self._map = np.memmap(self.path, self.dtype, "r", shape=(count, *self.shape)) if count else None
        return np.empty((0, *self.shape), self.dtype) if self._map is None else self._map[numbers]


class DiskStore:
    """The rows in `folder`; `about` is what a person should know of them, kept beside them as JSON.

    `budget_bytes`: what all stores beside this one may take together. Several processes may use a store at a time: hold
    `lock` from `find` to `commit`, so that no two make the same rows.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str, about: Mapping[str, Any],
                 budget_bytes: float) -> None:  # fmt: skip
        self.folder, self.shape, self.dtype, self.budget_bytes = folder, shape, dtype, budget_bytes
        self.about = dict(about)
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.lock: AbstractContextManager[Any] = FileLock(str(folder) + ".lock")
        self._generation = ""
        self._rows: MappedRows | None = None
        self._numbers: dict[bytes, int] = {}
        self._crcs: list[int] = []
        self._checked: set[int] = set()

    @property
    def rows(self) -> MappedRows:
        """What other processes read by; it stays valid when the store is cleared."""
        if self._rows is None or self._rows.path != self._path:
            self._rows = MappedRows(self._path, self.shape, self.dtype)
        return self._rows

    @property
    def _path(self) -> Path:
        return self.folder / f"rows-{self._generation}.bin"

    def find(self, keys: Sequence[bytes]) -> Indices:
        """The number of each key's row, -1 for one that isn't there, or isn't whole: int64 [n].

        A row is compared with its checksum when it is found for the first time.
        """
        self._refresh()
        numbers = np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)
        rows = self.rows
        for start in range(0, len(numbers), 256):  # 256 pictures of 224 x 224 take 38 MB
            part = numbers[start : start + 256]
            fresh = np.array([n for n in part.tolist() if n >= 0 and n not in self._checked], dtype=np.int64)
            for number, row in zip(fresh.tolist(), rows.take(fresh), strict=True):
                if zlib.crc32(row) == self._crcs[number]:
                    self._checked.add(number)
                else:
                    part[part == number] = -1
        return numbers

    def add(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> Indices:
        """Append `rows` [n, ...]; they count from the next `commit` on. Raises `OSError` when the disk is full."""
        assert rows.shape[1:] == self.shape and rows.dtype == np.dtype(self.dtype) and len(keys) == len(rows)
        first, rows = len(self._crcs), np.ascontiguousarray(rows)
        with open(self._path, "r+b") as file:  # never made anew here: somebody may have cleared the cache meanwhile
            file.truncate(first * self.row_bytes)  # behind the last row that counts lies what a crash left
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
        for key, number in self._numbers.items():  # a row that was made anew has lost its key to the new one
            entries["key"][number] = np.void(key)
        body = self._generation.encode() + b"\n" + entries.tobytes()
        write_atomically(self.folder / "index.bin", _MAGIC + hashlib.blake2b(body).digest() + body)

    def room(self, rows: int) -> str | None:
        """Why so many more rows don't fit, in words; None when they do."""
        needed = rows * self.row_bytes
        used = sum(size for _, _, size in list_stores(self.folder.parents[1]))
        free = shutil.disk_usage(_existing(self.folder)).free - _SPARE
        if used + needed > self.budget_bytes:
            return (f"{needed / 1e9:.2f} GB more than the {used / 1e9:.2f} GB that are kept would be beyond "
                    f"cache_gb={self.budget_bytes / 1e9:g}")  # fmt: skip
        return f"{needed / 1e9:.2f} GB are needed, {max(free, 0) / 1e9:.2f} GB are free" if needed > free else None

    def _refresh(self) -> None:
        """Take over what other processes have added, or begin anew where nothing can be used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self._read_index()
        if found is None:
            sweep_leftovers(self.folder)
            for path in self.folder.glob("rows-*.bin"):
                path.unlink(missing_ok=True)
            self._generation, found = os.urandom(8).hex(), np.zeros(0, _ENTRY)
            self._numbers, self._crcs, self._checked = {}, [], set()
            self._path.touch()
            write_atomically(self.folder / "about.json", json.dumps(self.about, indent=2) + "\n")
            self.commit()
        if len(found) > len(self._crcs):
            self._crcs = found["crc"].tolist()
            empty = bytes(KEY_BYTES)
            keys = (entry.tobytes() for entry in found["key"])
            self._numbers = {key: number for number, key in enumerate(keys) if key != empty}

    def _read_index(self) -> npt.NDArray[Any] | None:
        """The index on disk, None when there is none that is whole and has its rows."""
        try:
            data = (self.folder / "index.bin").read_bytes()
        except FileNotFoundError:
            return None
        start = len(_MAGIC) + 64
        body = data[start:]
        if data[:start] != _MAGIC + hashlib.blake2b(body).digest():
            return None
        name, _, rest = body.partition(b"\n")
        entries = np.frombuffer(rest, _ENTRY)
        path = self.folder / f"rows-{name.decode()}.bin"
        if not path.is_file() or path.stat().st_size < len(entries) * self.row_bytes:
            return None
        if name.decode() != self._generation:  # another process began anew, or this one begins
            self._generation = name.decode()
            self._numbers, self._crcs, self._checked = {}, [], set()
        return entries


class MemoryStore:
    """The same in this process's memory, for as long as it lives: up to `capacity` rows, which take memory as they come."""

    def __init__(self, shape: tuple[int, ...], dtype: str, capacity: int, budget_bytes: float) -> None:
        self.shape, self.dtype, self.capacity, self.budget_bytes = shape, dtype, capacity, budget_bytes
        self.row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # Shared with the processes that fork later, so that they see what is added; pages come as they are written.
        self._memory = mmap.mmap(-1, max(1, capacity * self.row_bytes))
        self.array: npt.NDArray[Any] = np.frombuffer(self._memory, dtype, capacity * int(np.prod(shape)))
        self.array = self.array.reshape(capacity, *shape)
        self.lock: AbstractContextManager[Any] = nullcontext()
        self.token = ""
        self._numbers: dict[bytes, int] = {}

    @property
    def rows(self) -> "MemoryStore":
        """What processes that fork from this one read by."""
        return self

    def find(self, keys: Sequence[bytes]) -> Indices:
        """The number of each key's row, -1 for one that isn't there: int64 [n]."""
        return np.array([self._numbers.get(key, -1) for key in keys], dtype=np.int64)

    def add(self, keys: Sequence[bytes], rows: npt.NDArray[Any]) -> Indices:
        """Keep `rows` [n, ...] under `keys`, and return their numbers."""
        first = len(self._numbers)
        self.array[first : first + len(rows)] = rows
        numbers = np.arange(first, first + len(rows), dtype=np.int64)
        self._numbers.update(zip(keys, numbers.tolist(), strict=True))
        return numbers

    def commit(self) -> None:
        """Nothing outlives the process."""

    def take(self, numbers: Indices) -> npt.NDArray[Any]:
        """A copy of the rows with these numbers: [n, ...]."""
        return self.array[numbers]

    def room(self, rows: int) -> str | None:
        """Why so many more rows don't fit, in words; None when they do."""
        needed = (len(self._numbers) + rows) * self.row_bytes
        if needed <= self.budget_bytes:
            return None
        return f"{needed / 1e9:.2f} GB would be beyond cache_gb={self.budget_bytes / 1e9:g}"


def list_stores(root: Path) -> list[tuple[Path, dict[str, Any], int]]:
    """(folder, about, bytes) of every store in the cache folder `root`, in the order of their names."""
    stores = []
    for path in sorted(path for kind in KINDS for path in root.glob(f"{kind}/*/about.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            about = {}
        stores.append((path.parent, about, sum(map(_size, path.parent.glob("*.bin")))))
    return stores


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a run may be clearing or renewing it
        return 0


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
