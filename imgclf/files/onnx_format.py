"""What an ONNX file would make its runtime read, call and allocate, checked before the runtime sees it.

A reader of the file's protocol-buffer encoding that keeps nothing but a summary; it needs neither the onnx package nor
memory beyond the file's own. Source: onnx.proto of ONNX 1.23, https://github.com/onnx/onnx (field numbers below).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from imgclf.errors import CheckpointError

__all__ = ["OnnxSummary", "check_onnx"]

Message = memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_ITEM_BYTES = {
    1: 4,
    2: 1,
    3: 1,
    6: 4,
    7: 8,
    9: 1,
    10: 2,
    11: 8,
    16: 2,
}  # of float32, u/int8, int32, int64, bool, float16, ...
_MAX_PARTS = 100_000  # nodes and tensors
_MAX_RANK = 8
_STANDARD = ("", "ai.onnx")  # domains of ONNX's own operators
# Control flow may repeat for ever, and the others call a runtime's extensions, or make a file differ between two runs.
_REFUSED = {"If", "Loop", "Scan", "SequenceMap", "Optional"}
_REFUSED |= {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")} | {
    "Multinomial",
    "Bernoulli",
}


@dataclass
class OnnxSummary:
    """What is known of a checked file: its metadata, the version of ONNX's operators, and its number of nodes and tensors."""

    metadata: dict[str, str] = field(default_factory=dict)
    opset: int = 0
    parts: int = 0


def check_onnx(data: bytes) -> OnnxSummary:
    """Return the summary of an ONNX file, without running anything in it.

    Raises `CheckpointError` for what isn't one, and for a file with tensors in other files, tensors that claim more than
    they hold, operators that aren't ONNX's own, functions, control flow or random numbers.
    """
    summary = OnnxSummary()
    try:
        _read_model(memoryview(data), summary)
    except (ValueError, IndexError, UnicodeDecodeError):
        raise CheckpointError("damaged, or not an ONNX file; use another one") from None
    if not summary.parts:
        raise CheckpointError("damaged, or not an ONNX file (it has no graph); use another one")
    return summary


def _read_model(message: Message, summary: OnnxSummary) -> None:
    graphs = 0
    for number, value in _fields(message):
        if number == 7:
            graphs += 1
            _read_graph(_bytes(value), summary)
        elif number == 8:
            opset = dict(_fields(_bytes(value)))
            _require_domain(_text(opset.get(1, b"")))
            summary.opset = _integer(opset.get(2, 0))
        elif number == 14:
            entry = dict(_fields(_bytes(value)))
            summary.metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
        elif number in (20, 25, 26):
            raise CheckpointError("holds training information, functions or settings of devices; refused")
        elif number not in (1, 2, 3, 4, 5, 6):
            raise ValueError(number)
    if graphs > 1:  # a reader would merge them
        raise CheckpointError("holds more than one graph; refused")


def _read_graph(message: Message, summary: OnnxSummary) -> None:
    for number, value in _fields(message):
        if number == 1:
            _count(summary)
            _check_node(_bytes(value), summary)
        elif number == 5:
            _count(summary)
            _check_tensor(_bytes(value))
        elif number in (14, 15):
            raise CheckpointError("holds sparse or quantised tensors, which imgclf doesn't write; refused")
        elif number not in (2, 10, 11, 12, 13, 16):
            raise ValueError(number)


def _check_node(message: Message, summary: OnnxSummary) -> None:
    for number, value in _fields(message):
        if number == 4 and (kind := _text(value)) in _REFUSED:
            raise CheckpointError(f"calls the operator {kind}, which imgclf doesn't write; refused")
        if number == 7:
            _require_domain(_text(value))
        elif number == 5:
            for part, inner in _fields(_bytes(value)):
                if part in (5, 10):
                    _count(summary)
                    _check_tensor(_bytes(inner))
                elif part not in (1, 2, 3, 4, 7, 8, 9, 13, 20):
                    raise CheckpointError(
                        "holds a graph within a node, or another value that imgclf doesn't write; refused"
                    )


def _check_tensor(message: Message) -> None:
    """Raise `CheckpointError` unless the tensor's data are in it, and as long as its sides claim."""
    sides: list[int] = []
    kind, held, name = 0, 0, ""
    for number, value in _fields(message):
        if number == 1:
            sides += [_integer(value)] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            kind = _integer(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            held = len(_bytes(value))
        elif number == 13 or (number == 14 and value != 0):
            raise CheckpointError(f"its tensor {name!r} lies in another file; export it into one file")
        elif number not in (12, 14, 16):
            raise CheckpointError(f"its tensor {name!r} isn't stored as imgclf writes it; refused")
    if kind not in _ITEM_BYTES or len(sides) > _MAX_RANK or any(side > 2**40 for side in sides):
        raise CheckpointError(f"its tensor {name!r} has an unknown type or size; refused")
    claimed = math.prod(sides) * _ITEM_BYTES[kind]
    if claimed != held:
        raise CheckpointError(f"its tensor {name!r} claims {claimed:,} bytes and holds {held:,}; refused")


def _count(summary: OnnxSummary) -> None:
    summary.parts += 1
    if summary.parts > _MAX_PARTS:
        raise CheckpointError(f"has more than {_MAX_PARTS:,} nodes and tensors; refused")


def _require_domain(domain: str) -> None:
    if domain not in _STANDARD:
        raise CheckpointError(f"calls operators of {domain!r}, which aren't ONNX's own; refused")


def _fields(message: Message | bytes) -> Iterator[tuple[int, int | Message]]:
    """Yield (field number, value) of a message; raises ValueError or IndexError where the encoding is broken."""
    message, position = memoryview(message), 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(wire)
        if not number or position + length > len(message):
            raise ValueError(length)
        yield number, message[position : position + length]
        position += length


def _varints(message: Message) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value


def _varint(message: Message, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(shift)


def _bytes(value: int | Message | bytes) -> Message:
    if isinstance(value, int):
        raise ValueError(value)
    return memoryview(value)


def _text(value: int | Message | bytes) -> str:
    return bytes(_bytes(value)).decode()


def _integer(value: int | Message) -> int:
    if not isinstance(value, int):
        raise ValueError(value)
    return value
