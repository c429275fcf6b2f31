"""Image files that tests fabricate: one scene in every format and mode, and assertions on decoded pixels."""

import io
import re
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgclf.errors import ImageError
from imgclf.images import decode
from imgclf.images.pixels import BACKGROUND

HEIGHT, WIDTH = 24, 36


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return RGB pixels: 4 x 4 blocks of 16 colours, which differ in every corner and orientation."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 4 // width * 80, y * 4 // height * 70, (x * 4 // width + y * 4 // height) * 30], axis=2)
    return rgb.astype(np.uint8)


def blended(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return RGB pixels blended over the background, rounded."""
    share = alpha[..., None] / 255.0
    return np.rint(rgb * share + np.array(BACKGROUND) * (1 - share)).astype(np.uint8)


def grey3(values: np.ndarray) -> np.ndarray:
    """Return [H, W, 3] of grey values [H, W]."""
    return np.repeat(values[..., None], 3, axis=2)


SCENE = scene()
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))
ALPHA = (np.mgrid[:HEIGHT, :WIDTH][1] * 7).astype(np.uint8)
BLENDED = blended(SCENE, ALPHA)
RAMP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
RAMP8 = np.rint(RAMP / 257).astype(np.uint8)
SIZE_TAGS = {256: (3, [WIDTH]), 257: (3, [HEIGHT]), 259: (3, [1]), 277: (3, [1]), 278: (3, [HEIGHT])}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the image as a file of the format `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, raw: bytes, *extra: bytes, level: int = 6) -> bytes:
    """Return a PNG of raw filtered rows, with `extra` chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(raw, level)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """Return a little-endian TIFF of the pixels `data` (tag 273 points to them) with short (3) and long (4) tags."""
    tags = {**tags, 273: (4, [8]), 279: (4, [len(data)])}
    start, extra = 8 + len(data), b""
    entries = struct.pack("<H", len(tags))
    end = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'_BBHI'[kind]}", *values)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack("<I", end + len(extra))
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + data + entries + struct.pack("<I", 0) + extra


def exif(orientation: int) -> bytes:
    """Return EXIF data with the orientation, 1 to 8."""
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


def rows(array: np.ndarray) -> bytes:
    """Return the rows of a PNG, each with filter type 0."""
    return b"".join(b"\0" + row.tobytes() for row in array.reshape(HEIGHT, -1))


@cache
def lossless() -> dict[str, bytes]:
    """Return {name: file}: the scene in every lossless format."""
    rgb, paletted = Image.fromarray(SCENE), Image.fromarray(SCENE).quantize(16, dither=Image.Dither.NONE)
    files = {
        "png": encoded(rgb, "PNG"),
        "png_palette": encoded(paletted, "PNG"),
        "png_palette_4_bits": encoded(paletted, "PNG", bits=4),
        "png_rgba": encoded(rgb.convert("RGBA"), "PNG"),
        "png_16_bits": png(WIDTH, HEIGHT, 16, 2, rows(SCENE.astype(">u2") * np.uint16(257))),
        "bmp": encoded(rgb, "BMP"),
        "bmp_palette": encoded(paletted, "BMP"),
        "gif": encoded(paletted, "GIF"),
        "gif_interlaced": encoded(paletted, "GIF", interlace=True),
        "webp": encoded(rgb, "WEBP", lossless=True),
        "webp_rgba": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "tiff_palette": encoded(paletted, "TIFF"),
        "tiff_rgba": encoded(rgb.convert("RGBA"), "TIFF"),
        "tiff_strips": encoded(rgb, "TIFF", strip_size=256),
        "tiff_big": encoded(rgb, "TIFF", big_tiff=True),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        files[compression] = encoded(rgb, "TIFF", compression=compression)
    return files


@cache
def modes() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return {name: (file, expected pixels)} for every mode of Pillow that a file can have."""
    rgba, la = Image.fromarray(np.dstack([SCENE, ALPHA])), Image.fromarray(np.dstack([GREY, ALPHA]), "LA")
    paletted = Image.fromarray(SCENE).quantize(16, dither=Image.Dither.NONE)
    index = np.asarray(paletted)
    key = tuple(int(value) for value in SCENE[0, 0])
    blank = np.where((key == SCENE).all(2, keepdims=True), 255, SCENE).astype(np.uint8)
    table = np.linspace(0, 255, 16).astype(np.uint8)
    bits = GREY > 100
    two = (np.arange(HEIGHT * WIDTH) % 4).reshape(HEIGHT, WIDTH)
    packed = (two[:, ::4] << 6 | two[:, 1::4] << 4 | two[:, 2::4] << 2 | two[:, 3::4]).astype(np.uint8)
    transparent16 = chunk(b"tRNS", struct.pack(">3H", *(value * 257 for value in key)))
    ramp16 = RAMP.astype(np.uint16)
    marked16 = np.where(ramp16 == ramp16[3, 5], 255, np.rint(ramp16 / 257)).astype(np.uint8)
    return {
        "RGBA png": (encoded(rgba, "PNG"), BLENDED),
        "RGBA webp": (encoded(rgba, "WEBP", lossless=True, exact=True), BLENDED),
        "RGBA tiff": (encoded(rgba, "TIFF"), BLENDED),
        "LA png": (encoded(la, "PNG"), blended(grey3(GREY), ALPHA)),
        "LA tiff": (encoded(la, "TIFF"), blended(grey3(GREY), ALPHA)),
        "P tRNS index": (encoded(paletted, "PNG", transparency=int(index[0, 0])), blank),
        "P tRNS bytes": (
            encoded(paletted, "PNG", transparency=table.tobytes()),
            blended(np.asarray(paletted.convert("RGB")), table[index]),
        ),
        "P tRNS gif": (encoded(paletted, "GIF", transparency=int(index[0, 0])), blank),
        "RGB tRNS": (encoded(Image.fromarray(SCENE), "PNG", transparency=key), blank),
        "RGB16 tRNS": (
            png(WIDTH, HEIGHT, 16, 2, rows(SCENE.astype(">u2") * np.uint16(257)), transparent16),
            blank,
        ),
        "L tRNS": (
            png(WIDTH, HEIGHT, 8, 0, rows(GREY), chunk(b"tRNS", struct.pack(">H", int(GREY[0, 0])))),
            grey3(np.where(GREY[0, 0] == GREY, 255, GREY).astype(np.uint8)),
        ),
        "L 2 bits": (png(WIDTH, HEIGHT, 2, 0, rows(packed)), grey3((two * 85).astype(np.uint8))),
        "L 2 bits tRNS": (
            png(WIDTH, HEIGHT, 2, 0, rows(packed), chunk(b"tRNS", struct.pack(">H", 1))),
            grey3(np.where(two == 1, 255, two * 85).astype(np.uint8)),
        ),
        "I;16 tRNS": (
            png(WIDTH, HEIGHT, 16, 0, rows(RAMP.astype(">u2")), chunk(b"tRNS", struct.pack(">H", int(ramp16[3, 5])))),
            grey3(marked16),
        ),
        "1 png": (encoded(Image.fromarray(bits), "PNG"), grey3(bits.astype(np.uint8) * 255)),
        "1 group4": (encoded(Image.fromarray(bits), "TIFF", compression="group4"), grey3(bits.astype(np.uint8) * 255)),
        "1 bmp": (encoded(Image.fromarray(bits), "BMP"), grey3(bits.astype(np.uint8) * 255)),
        "L png": (encoded(Image.fromarray(GREY), "PNG"), grey3(GREY)),
        "L gif": (encoded(Image.fromarray(GREY), "GIF"), grey3(GREY)),
        "I;16 png": (encoded(Image.fromarray(ramp16), "PNG"), grey3(RAMP8)),
        "I;16 tiff": (encoded(Image.fromarray(ramp16), "TIFF"), grey3(RAMP8)),
        "I;16 deflate": (encoded(Image.fromarray(ramp16), "TIFF", compression="tiff_adobe_deflate"), grey3(RAMP8)),
        "I;16B tiff": (encoded(Image.fromarray(ramp16.astype(">u2")), "TIFF"), grey3(RAMP8)),
        "I;16 white is zero": (
            tiff({**SIZE_TAGS, 258: (3, [16]), 262: (3, [0])}, ramp16.astype("<u2").tobytes()),
            grey3(255 - RAMP8),
        ),
        "L white is zero": (tiff({**SIZE_TAGS, 258: (3, [8]), 262: (3, [0])}, GREY.tobytes()), grey3(255 - GREY)),
        "I small": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), grey3(GREY)),
        "I 16 bits": (encoded(Image.fromarray(ramp16.astype(np.int32)), "TIFF"), grey3(RAMP8)),
        "I signed": (encoded(Image.fromarray((RAMP * 1000 - 9_000_000).astype(np.int32)), "TIFF"), grey3(RAMP8)),
        "I unsigned": (
            tiff({**SIZE_TAGS, 258: (3, [32]), 262: (3, [1])}, (RAMP * 65536).astype("<u4").tobytes()),
            grey3(RAMP8),
        ),
        "F 0 to 1": (encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), grey3(GREY)),
        "F 0 to 255": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), grey3(GREY)),
        "F any": (encoded(Image.fromarray((RAMP - 1000).astype(np.float32)), "TIFF"), grey3(RAMP8)),
        "CMYK tiff": (
            encoded(Image.fromarray(SCENE).convert("CMYK"), "TIFF"),
            np.asarray(Image.fromarray(SCENE).convert("CMYK").convert("RGB")),
        ),
        "YCbCr tiff": (encoded(Image.fromarray(SCENE).convert("YCbCr"), "TIFF"), SCENE),
        "LAB tiff": (
            encoded(Image.fromarray(SCENE).convert("LAB"), "TIFF"),
            np.asarray(Image.fromarray(SCENE).convert("LAB").convert("RGB")),  # 8-bit LAB loses up to 14 of 255
        ),
    }


def assert_close(one: np.ndarray, other: np.ndarray, most: int) -> None:
    """Assert that decoded pixels differ by at most `most` of 255, and belong to the caller."""
    assert one.dtype == np.uint8 and one.shape == other.shape and one.flags.c_contiguous and one.flags.writeable
    assert np.abs(one.astype(int) - other.astype(int)).max() <= most


def assert_refused(source: str | Path | bytes, pattern: str) -> None:
    """Assert that decoding raises one line with the file's name and `pattern`."""
    name = "some.jpg" if isinstance(source, bytes) else None
    with pytest.raises(ImageError) as caught:
        decode(source, name=name)
    line = str(caught.value)
    assert line.startswith(f"{name or source}: ") and "\n" not in line and re.search(pattern, line), line
