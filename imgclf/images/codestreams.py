"""What decoding an AVIF, HEIC or JPEG 2000 file will cost, by the headers of its compressed images.

The size that the container states may be smaller than what the decoder allocates, so that both are counted. Damaged headers
raise an `ImageError` without the file's name; `imgclf.images.decode` adds it.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from imgclf.errors import ImageError

__all__ = ["avif_memory", "brands", "heif_memory", "jpeg2000_memory"]

# Bytes per coded pixel of AV1's profile 0 (4:2:0) and of the others: 16-bit planes, or 8-bit ones with film grain.
_AV1_BYTES = {0: 4.5}
_AV1_BYTES_OTHER = 9.0
# Bytes of OpenJPEG's structures: a tile, a component of a tile, a precinct of a band, a block of coefficients.
_TILE, _TILE_COMPONENT, _PRECINCT, _BLOCK = 6000, 1200, 300, 250
# Steps in which a header must be read, far more than a camera's needs: this bounds the time.
_STEPS = 10_000


class _Bits:
    """Bits of a header, from the highest of the first byte on; raises `ImageError` behind the last."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data[:4096], 0

    def read(self, count: int) -> int:
        """The next `count` bits as a number."""
        end = self.position + count
        if end > 8 * len(self.data):
            raise ImageError("has a damaged header: copy or download it again")
        number = int.from_bytes(self.data[self.position // 8 : (end + 7) // 8], "big") >> -end % 8
        self.position = end
        return number & ((1 << count) - 1)

    def read_golomb(self) -> int:
        """The next Exp-Golomb code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def brands(data: bytes) -> set[bytes]:
    """Brands of an ISO media file, such as `avif`; none of any other file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 1024, len(data))
    return {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}


def avif_memory(data: bytes, pixels: int, has_alpha: bool) -> float:
    """Bytes that decoding an AVIF of so many pixels takes: its planes, and their colours in three forms."""
    planes = 0.0
    if data[8:12] == b"avis":
        raise ImageError("is an AVIF sequence: save its first image as AVIF or PNG")
    for item in _items(data, b"av01"):
        profile, area = _av1_frame(item)
        planes += area * _AV1_BYTES.get(profile, _AV1_BYTES_OTHER)
    if not planes:
        raise ImageError("holds no AV1 image: save it as JPEG or PNG")
    return planes + pixels * (12 if has_alpha else 9)


def _av1_frame(data: bytes) -> tuple[int, int]:
    """(profile, pixels of the largest frame) of the sequence headers in an AV1 image."""
    position, profile, area = 0, -1, 0
    for _ in range(_STEPS):
        if position >= len(data):
            break
        kind, extended, sized = data[position] >> 3 & 15, data[position] & 4, data[position] & 2
        position += 2 if extended else 1
        size, shift = 0, 0
        while sized and position < len(data):
            size |= (data[position] & 127) << shift
            shift, position = shift + 7, position + 1
            if data[position - 1] < 128 or shift > 56:
                break
        end = position + size if sized else len(data)
        if kind == 1:
            found, width, height = _av1_sequence(_Bits(data[position:end]))
            profile, area = max(profile, found), max(area, width * height)
        position = end
    if not area:
        raise ImageError("has a damaged header: copy or download it again")
    return profile, area


def _av1_sequence(bits: _Bits) -> tuple[int, int, int]:
    """(profile, largest width, largest height) of a sequence header: AV1 specification, 5.5.1."""
    profile, _, reduced = bits.read(3), bits.read(1), bits.read(1)
    if reduced:
        bits.read(5)
    else:
        delay_bits = 0
        if bits.read(1):  # timing
            bits.read(64)
            if bits.read(1):
                bits.read_golomb()
            if bits.read(1):  # decoder model
                delay_bits = bits.read(5) + 1
                bits.read(42)
        shown_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if shown_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return profile, bits.read(width_bits) + 1, bits.read(height_bits) + 1


def heif_memory(pixels: int, info: Mapping[Any, Any], has_colours: bool) -> float:
    """Bytes that decoding an HEIC takes, by what pillow-heif tells of it: its planes, and its colours in two forms.

    libheif refuses an image that is larger than its container states.
    """
    planes = {420: 1.5, 422: 2.0}.get(info.get("chroma", 444), 3.0) if has_colours else 1.0
    return pixels * (8 + planes * (2 if info.get("bit_depth", 16) > 8 else 1))


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of the contents of the boxes in a part of an ISO media file."""
    for _ in range(_STEPS):
        if start + 8 > end:
            return
        size, kind, head = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = min(end, start + size) if size else end
        yield kind, start + head, stop
        start = max(stop, start + head)


def _find(data: bytes, path: tuple[bytes, ...], start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the contents of the boxes at a path of kinds."""
    for kind, first, last in _boxes(data, start, len(data) if end is None else end):
        if kind == path[0]:
            first += 4 if kind == b"meta" else 0  # version and flags
            yield from [(first, last)] if len(path) == 1 else _find(data, path[1:], first, last)


def _items(data: bytes, kind: bytes) -> Iterator[bytes]:
    """Yield the data of the items of one kind, such as `av01`; raises for a table of locations that is no camera's."""
    left = 2 * len(data) + 2**16
    wanted, idat = set(), next(_find(data, (b"meta", b"idat")), (0, 0))[0]
    for start, end in _find(data, (b"meta", b"iinf")):
        for name, first, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
            size = 4 if data[first] > 2 else 2
            if name == b"infe" and data[first + 6 + size : first + 10 + size] == kind:
                wanted.add(int.from_bytes(data[first + 4 : first + 4 + size], "big"))
    for start, end in _find(data, (b"meta", b"iloc")):
        for number, method, extents in _extents(data[start:end]):
            if number in wanted and method < 2:
                places = [(at + (idat if method else 0), size or len(data)) for at, size in extents]
                left -= sum(min(size, len(data)) for _, size in places)
                if left < 0:
                    raise ImageError("states parts of its images twice: save it again")
                yield b"".join(data[at : at + size] for at, size in places)


def _extents(box: bytes) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield (item, method, [(offset, size)]) of a box of locations: ISO 14496-12, 8.11.3."""
    bits = _Bits(b"")
    bits.data = box
    version, _ = bits.read(8), bits.read(24)
    offset, length, base, index = (8 * bits.read(4) for _ in range(4))
    steps = _STEPS
    for _ in range(bits.read(32 if version == 2 else 16)):
        number = bits.read(32 if version == 2 else 16)
        method = bits.read(16) & 15 if version else 0
        bits.read(16)
        origin, count = bits.read(base), bits.read(16)
        extents: list[tuple[int, int]] = []
        steps -= 1 + count
        if steps < 0:
            raise ImageError("states too many parts of images: save it again")
        for _ in range(count):
            bits.read(index if version else 0)
            extents.append((origin + bits.read(offset), bits.read(length)))
        yield number, method, extents


def jpeg2000_memory(data: bytes, stored: int) -> float:
    """Bytes that decoding a JPEG 2000 takes: coefficients of a tile, structures, and the colours, `stored` bytes per pixel."""
    start = 0 if data[:4] == b"\xff\x4f\xff\x51" else next(_find(data, (b"jp2c",)), (len(data), 0))[0]
    if data[start : start + 4] != b"\xff\x4f\xff\x51" or len(data) < start + 45:
        raise ImageError("has a damaged header: copy or download it again")
    right, bottom, left, top, tile_width, tile_height, x, y, count = struct.unpack_from(">8IH", data, start + 8)
    width, height = right - left, bottom - top
    if not (width > 0 and height > 0 and tile_width and tile_height and 0 < count <= 4):
        raise ImageError("has a damaged header, or more than 4 channels: save it as grey, RGB or RGBA")
    tiles = -(-(right - x) // tile_width) * -(-(bottom - y) // tile_height)
    wide, high = min(tile_width, width), min(tile_height, height)
    blocks = max((_jpeg2000_blocks(style, wide, high) for style in _jpeg2000_styles(data, start)), default=0.0)
    deep = any(data[start + 42 + 3 * component] & 127 > 7 for component in range(count))
    # Coefficients of 32 bits, and the tile in 8 or 16; then Pillow's pixels and the result.
    tile = count * (wide * high * (6.8 if deep else 5.8) + blocks)
    tile += tiles * (_TILE + count * _TILE_COMPONENT)
    return max(tile, 3.0 * width * height) + stored * width * height


def _jpeg2000_styles(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (what is stated, parameters) of each style of coding; raises for a tile with one of its own."""
    position, in_tile = start + 2, False
    end = 0
    for _ in range(_STEPS):
        marker, size = data[position : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (b"\xff\x52", b"\xff\x53") and in_tile:
            raise ImageError("has a JPEG 2000 tile with a coding style of its own: save it again")
        if marker == b"\xff\x52":
            yield data[position + 4], data[position + 9 : position + 2 + size]
        elif marker == b"\xff\x53":  # of one of at most 4 components
            yield data[position + 5], data[position + 6 : position + 2 + size]
        elif marker == b"\xff\x90":
            part, in_tile = position, True
            end = int.from_bytes(data[position + 6 : position + 10], "big")
        if marker == b"\xff\x93":  # the data of a part of a tile
            if not end:
                return
            position, in_tile = max(part + end, position + 2), False
        elif marker[:1] != b"\xff" or marker == b"\xff\xd9" or not size:
            return
        else:
            position += 2 + size
    raise ImageError("has more than 10,000 parts: save it again")


def _jpeg2000_blocks(style: tuple[int, bytes], width: int, height: int) -> float:
    """Bytes of the structures for the precincts and blocks of one component of a tile: ISO 15444-1, A.6.1."""
    stated, parameters = style
    if len(parameters) < 5:
        raise ImageError("has a damaged header: copy or download it again")
    levels, across, down = parameters[0], parameters[1] + 2, parameters[2] + 2
    total, sizes = 0.0, parameters[5:] if stated & 1 else b""
    for resolution in range(min(levels, 32) + 1):
        precinct = sizes[resolution] if resolution < len(sizes) else 0xFF
        w, h = -(-width >> levels - resolution), -(-height >> levels - resolution)
        x, y = precinct & 15, precinct >> 4
        bands, half = (3, 1) if resolution else (1, 0)
        count = bands * (1 + (w >> x)) * (1 + (h >> y))
        inside = max(0, min(across, x - half)), max(0, min(down, y - half))
        total += count * _PRECINCT
        total += max(count, bands * (1 + (w >> half + inside[0])) * (1 + (h >> half + inside[1]))) * _BLOCK
    return total
