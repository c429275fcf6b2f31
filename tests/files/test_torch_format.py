"""Files in torch's two formats that take memory, or that torch and Python read differently, are refused before they are read."""

import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.memory import in_child

from imgclf.files.model_file import read_file
from imgclf.files.torch_format import _MAX_OBJECTS_BYTES, _OBJECT_BYTES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in the POSIX way")
TRIED = pytest.mark.trust(
    "hostile model files x ways to load them", "code that ran, more than one line, or 300 MB of memory"
)
END, ORDERED = b"PK\x05\x06", b"ccollections\nOrderedDict\n"
THREE_GB = b"\x8a\x05" + (3 << 30).to_bytes(5, "little")  # as a pickle writes it
TAKE_MEMORY = b"\x80\x02c__builtin__\nbytearray\n" + THREE_GB + b"\x85R."


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def tensor(key: bytes, items: int, used: int = 4) -> bytes:
    """Return the instructions for a tensor of the first `used` of a storage's `items` numbers."""
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu")
    storage += b"J" + struct.pack("<i", items) + b"tQ"
    shape = b"K\x00J" + struct.pack("<i", used) + b"\x85K\x01\x85\x89" + ORDERED + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"tR"


def zipped(path: Path, instructions: bytes, records: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """Write a file in torch's zip format with this pickle; return its path."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + instructions + b".")
        archive.writestr("a/version", b"3\n")
        for name, data in (records or {}).items():
            archive.writestr(name, data)
    return path


def aliases(path: Path, record: str, keys: list[bytes]) -> Path:
    return zipped(path, b"](" + b"".join(tensor(key, 2**18) for key in keys) + b"e", {record: bytes(2**20)})


def old_format(path: Path, position: int, instructions: bytes) -> Path:
    """Write a file in torch's old format whose pickle number `position` has these instructions; return its path."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(4)}, buffer, _use_new_zipfile_serialization=False)
    data, starts = buffer.getvalue(), [0]
    for _ in range(5):
        buffer.seek(starts[-1])
        list(pickletools.genops(buffer))
        starts.append(buffer.tell())
    path.write_bytes(data[: starts[position]] + instructions + data[starts[position + 1] :])
    return path


def two_lists(path: Path, kind: str) -> Path:
    """Write a zip file in which torch finds {"a": "torch"} and Python's zipfile {"a": "python"}; return its path."""
    parts = []
    for word in (b"torch1", b"python"):
        data = zipped(path, b"}" + text(b"a") + text(word) + b"s", {"a/data/0": bytes(400)}).read_bytes()
        start = struct.unpack("<L", data[-6:-2])[0]
        parts.append((data[:start], data[start:-22]))
    (records, listed), (other_records, other_listed) = parts
    both, count = records + other_records, 3
    entry = struct.Struct("<4s6H3L5H2L")
    moved, place = b"", 0
    for _ in range(count):  # the second list's records lie behind those of the first; Python adds what lies between
        values = list(entry.unpack_from(other_listed, place))
        tail = values[10] + values[11] + values[12]
        values[-1] += len(records) - (len(listed) if kind == "end" else 0)
        moved += entry.pack(*values) + other_listed[place + entry.size : place + entry.size + tail]
        place += entry.size + tail
    data, first, length = both + listed + moved, len(both), len(listed)
    if kind == "end64":  # torch reads the one that the locator names, Python the one in front of the locator
        end64 = struct.Struct("<4sQ2H2L4Q")
        one = end64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, first)
        two = end64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, first + length + len(one))
        data = both + listed + one + moved + two
        data += struct.pack("<4sLQL", b"PK\x06\x07", 0, first + length, 1)
        first, length = 0xFFFFFFFF, 0xFFFFFFFF
    path.write_bytes(data + struct.pack("<4s4H2LH", END, 0, 0, count, count, length, first, 0))
    return path


def overlapping(path: Path) -> Path:
    """Write a zip file whose two records of 4 MB are the same bytes."""
    data = zipped(path, b"}", {"a/data/0": bytes(2**22), "a/data/1": b""}).read_bytes()
    first, second = (data.rindex(b"a/data/%d" % number) - 46 for number in (0, 1))
    entry = bytearray(data[second : second + 46])
    entry[16:28], entry[42:46] = data[first + 16 : first + 28], data[first + 42 : first + 46]
    path.write_bytes(data[:second] + bytes(entry) + data[second + 46 :])
    return path


def many_records(path: Path) -> Path:
    """Write a zip file with a list of 200,000 records of no bytes."""
    entry = struct.Struct("<4s6H3L5H2L")
    names = b"".join(entry.pack(b"PK\x01\x02", *[0] * 9, 6, *[0] * 6) + b"%06d" % number for number in range(200_000))
    record = struct.pack("<4s5H3L2H", b"PK\x03\x04", *[0] * 8, 6, 0) + b"000000"
    path.write_bytes(record + names + struct.pack("<4s4H2LH", END, 0, 0, 65535, 65535, len(names), len(record), 0))
    return path


def many_tensors(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    described = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(90_000))
    header = b"{" + described.encode() + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def cases_of_letters(count: int) -> list[bytes]:
    """Return `count` ways to write ten letters, which torch finds in a zip file without regard to case."""
    return [bytes(c - 32 * (i >> j & 1) for j, c in enumerate(b"abcdefghij")) for i in range(count)]


HUGE = tensor(b"0", 2**28)
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    **{
        f"3 GB in pickle {number} of the old format": (
            lambda path, number=number: old_format(path, number, TAKE_MEMORY),
            r"asks for __builtin__\.bytearray",
        )
        for number in range(5)
    },
    "a storage of 1 GB in the old format": (
        lambda path: old_format(path, 3, b"\x80\x02" + HUGE.replace(b"tQ", b"NtQ") + b"."),
        "would grow from",
    ),
    "two lists of records": (lambda path: two_lists(path, "end"), "two lists of its records"),
    "two lists of records of a large file": (lambda path: two_lists(path, "end64"), "two lists of its records"),
    "records that overlap": (overlapping, "records that overlap"),
    "200,000 records": (many_records, "a list of records of 10,400,000 bytes"),
    "90,000 tensors in safetensors": (many_tensors, "describes its tensors in"),
    "one record under 400 keys that end in a NUL": (
        lambda path: aliases(path, "a/data/0", [b"0\0%d" % number for number in range(400)]),
        "describes a tensor's data in a way",
    ),
    "one record under 400 keys that differ in case": (
        lambda path: aliases(path, "a/data/abcdefghij", cases_of_letters(400)),
        "describes a tensor's data in a way",
    ),
    "a storage larger than its record": (
        lambda path: zipped(path, tensor(b"0", 2**20), {"a/data/0": bytes(2**21)}),
        "needs a record 0 of 4,194,304 bytes, which has 2,097,152",
    ),
    "a storage without a record": (lambda path: zipped(path, tensor(b"7", 4)), "16 bytes, which isn't there"),
    "a description that isn't a literal": (
        lambda path: zipped(path, tensor(b"0", 4).replace(b"tQ", b"tb0Q"), {"a/data/0": bytes(16)}),
        "describes a tensor's data in a way|damaged",
    ),
    "two pickles": (lambda path: zipped(path, b"}", {"b/data.pkl": b"\x80\x02}."}), "expected one record data.pkl"),
    "a pickle packed by LZMA": (lambda path: zipped(path, b"}", method=zipfile.ZIP_LZMA), "packed by method 14"),
    "a million lists": (lambda path: zipped(path, b"(" + b"]" * 2**20 + b"t"), "lists and values would take over"),
    "a million sets": (lambda path: zipped(path, b"](" + b"\x8f" * 2**20 + b"e"), "lists and values would take over"),
}


@TRIED
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line_with_little_memory(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    path = make(tmp_path / "w.pth")
    outcome = in_child(lambda: read_file(path))
    assert outcome.refused and re.search(message, outcome.text), outcome


@pytest.mark.parametrize("kind", ["end", "end64"])
def test_torch_and_python_read_the_two_lists_differently(kind: str, tmp_path: Path) -> None:
    """The control."""
    path = two_lists(tmp_path / "w.pth", kind)
    assert torch.load(path, weights_only=True) == {"a": "torch1"}
    with zipfile.ZipFile(path) as archive:
        assert b"python" in archive.read("a/data.pkl")


def test_torch_reads_one_record_under_many_keys(tmp_path: Path) -> None:
    """The control."""
    path = aliases(tmp_path / "w.pth", "a/data/abcdefghij", cases_of_letters(400))
    outcome = in_child(lambda: torch.load(path, weights_only=True))
    assert outcome.text == "accepted" and outcome.megabytes > 100


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name, cost in _OBJECT_BYTES.items() if cost >= 100 or name == "BININT2"])
def test_pickle_at_the_limit_of_memory_stays_below_300_mb(name: str, tmp_path: Path) -> None:
    """The estimates of what an instruction takes are upper bounds."""
    code = next(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.name == name)
    count = int(_MAX_OBJECTS_BYTES / _OBJECT_BYTES[name]) - 10
    numbers = (struct.pack("<I", number) for number in range(count))
    many = {
        "BININT2": lambda: (code + number[:2] for number in numbers),
        "BININT": lambda: (code + number for number in numbers),
        "LONG1": lambda: (code + b"\x05" + number + b"\x01" for number in numbers),
        "BINFLOAT": lambda: (code + b"abcd" + number for number in numbers),
        "BINUNICODE": lambda: (text(number.hex().encode()) for number in numbers),
        "SHORT_BINSTRING": lambda: (code + b"\x04" + number for number in numbers),
        "LONG_BINPUT": lambda: (code + number for number in numbers),
        "BINPUT": lambda: (code + b"\x07" for _ in numbers),
        "GLOBAL": lambda: (b"ctorch\nfloat32\n" for _ in numbers),
        "BINPERSID": lambda: (tensor(b"0", 4) for _ in range(count // 4)),
        "REDUCE": lambda: (ORDERED + b")R" for _ in range(count // 2)),
        "NEWOBJ": lambda: (ORDERED + b")\x81" for _ in range(count // 2)),
        "BUILD": lambda: (ORDERED + b")R}b" for _ in range(count // 3)),
    }.get(name, lambda: (code for _ in numbers))
    before = {"TUPLE1": b"}", "TUPLE2": b"}}", "TUPLE3": b"}}}"}.get(name, b"")
    path = zipped(
        tmp_path / "w.pth", b"](" + b"".join(before + part for part in many()) + b"e", {"a/data/0": bytes(16)}
    )
    outcome = in_child(lambda: read_file(path))
    assert outcome.megabytes < 300 and not outcome.text.startswith("BUG"), outcome


def test_what_torch_saves_is_read_back_from_both_formats(tmp_path: Path) -> None:
    base = torch.arange(10)
    contents = {
        "shared": [base.view(2, 5), base],
        "empty": torch.empty(0),
        "flags": torch.ones(3, dtype=torch.bool),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": {"list": [1, 2.5, None, True, "é", 2**40], "tuple": (1, (2, 3)), "set": {4}},
    }
    for new in (True, False):
        path = tmp_path / f"{new}.pth"
        torch.save(contents, path, _use_new_zipfile_serialization=new)
        read = read_file(path)
        assert read["plain"] == contents["plain"]
        assert torch.equal(read["shared"][0], base.view(2, 5)) and torch.equal(read["shared"][1], base)
        assert read["half"].dtype == torch.bfloat16 and read["empty"].shape == (0,)
    state = {f"layer{number}": torch.zeros(3) for number in range(3000)}
    torch.save(state, tmp_path / "large.pth")
    assert len(read_file(tmp_path / "large.pth")) == 3000
