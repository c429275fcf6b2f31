"""What the containers hold around the pixels, checked before Pillow reads them: the kind of file, PNG and TIFF.

Every check refuses with an `ImageError` that lacks the file's name; who calls them adds it.
"""

import struct
import zlib
from typing import Any

from PIL import Image, TiffImagePlugin

from imgclf.errors import ImageError
from imgclf.images.cost import HEADER_BYTES
from imgclf.images.pillow import tiles

__all__ = ["check_png_length", "check_tiff_layout", "check_tiff_tags", "png_core", "sniff"]

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF; Pillow misreads the big-endian one
}
_TIFF_CODECS = {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate"}
_TIFF_CODECS |= {"packbits", "zstd", "webp"}
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # in this order; the rest makes no pixels
_INFLATED_BYTES = 2**18  # of a PNG's pixels at a time


def sniff(data: bytes) -> str:
    """Pillow's name of the format that `data` begins like."""
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise ImageError("is empty (0 bytes): copy or download it again")
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ImageError("is a Git LFS pointer, not the picture: run `git lfs pull`")
    if start.startswith((b"<!doctype html", b"<html")):
        raise ImageError("is a web page, not a picture: download the picture itself")
    raise ImageError(f"begins with {data[:8]!r}: expected JPEG, PNG, WebP, GIF, BMP or TIFF, so convert or remove it")


def png_core(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The same PNG with the chunks that make its pixels, each checked, and what the dropped ones say."""
    view, position, facts = memoryview(data), 8, {}
    chunks: dict[bytes, list[memoryview]] = {kind: [] for kind in _PNG_KEPT}
    for _ in range(100_000):
        if position + 12 > len(data):
            raise ImageError(f"ends after {len(data):,} bytes, before its last chunk: copy or download it again")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ImageError(f"ends after {len(data):,} bytes, inside a chunk: copy or download it again")
        if kind in chunks:
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ImageError(f"is damaged (checksum of chunk {kind!r}): copy or download it again")
            if kind == b"IDAT" or not chunks[kind]:
                chunks[kind].append(view[position:end])
        elif kind == b"acTL" and length >= 4:
            facts["frames"] = int.from_bytes(view[position + 8 : position + 12], "big")
        elif kind == b"iCCP":
            facts["profile"] = True
        elif not kind[0] & 32:  # a capital first letter: can't be shown without it
            raise ImageError(f"holds a chunk {kind!r} that PNG doesn't have: save it again as PNG")
        position = end
        if kind == b"IEND":
            core = b"".join((data[:8], *(chunk for kind in _PNG_KEPT for chunk in chunks[kind])))
            return core, {**facts, "data": chunks}
    raise ImageError("has more than 100,000 chunks: save it again as PNG")


def check_png_length(image: Image.Image, chunks: dict[bytes, list[memoryview]]) -> None:
    """Refuse data that end early, which Pillow shows as black; looked for only where the last rows are blank."""
    width, height, bits, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", chunks[b"IHDR"][0], 8)
    if not interlaced and image.crop((0, height - 1, width, height)).getbbox(alpha_only=False):
        return
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
    missing = 0
    for x, y, step_x, step_y in starts if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        missing += rows * (1 + (columns * samples * bits + 7) // 8) if columns > 0 < rows else 0
    inflate = zlib.decompressobj()
    for chunk in chunks[b"IDAT"]:
        rest = bytes(chunk[8:-4])
        while rest and missing > 0:
            missing -= len(inflate.decompress(rest, _INFLATED_BYTES))
            rest = inflate.unconsumed_tail
    missing -= len(inflate.flush()) if missing > 0 else 0
    if missing > 0:
        raise ImageError(f"lacks {missing:,} bytes of its pixels: copy or download it again")


def check_tiff_tags(data: bytes) -> None:
    """Refuse a tag directory that Pillow would unpack into far more memory than the file has."""
    big, order = data[2] == 43, "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, min(start, len(data)))
    out_of_line, sizes = 0, set()
    if count > 1000:
        raise ImageError(f"has {count:,} TIFF tags: expected a few dozen, save it again")
    for index in range(count):
        entry = start + (8 + 20 * index if big else 2 + 12 * index)
        tag, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
        if tag == 277 and struct.unpack_from(order + "H", data, entry + (12 if big else 8))[0] > 6:
            raise ImageError("has more than 6 channels: save it as grey, RGB or RGBA")
        is_bytes = kind in (1, 2, 6, 7)
        out_of_line += length * (1 if is_bytes else 8)
        if out_of_line > 2 * HEADER_BYTES or (length > 100_000 and not is_bytes):
            raise ImageError(f"has {length:,} values in TIFF tag {tag}: save it again without metadata")
        if tag in sizes:
            raise ImageError(f"states TIFF tag {tag} twice: save it again")
        if tag in (256, 257, 258, 277, 278, 322, 323):  # width, height, bits, samples, strip and tile sizes
            sizes.add(tag)


def check_tiff_layout(image: TiffImagePlugin.TiffImageFile) -> int:
    """Pixels of a tile, padding included; refuses exotic codecs, and uncompressed data with strips missing."""
    if image.info["compression"] not in _TIFF_CODECS:
        raise ImageError(f"is a TIFF compressed as {image.info['compression']}: save it with LZW, deflate or none")
    if not image.use_load_libtiff:
        layers = len(image.getbands()) if image.tag_v2.get(284) == 2 else 1
        covered = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, _, _ in tiles(image))
        if covered < image.width * image.height * layers:
            raise ImageError("lacks some of its strips: copy or download it again")
    return int(image.tag_v2.get(322, 1)) * int(image.tag_v2.get(323, 1))
