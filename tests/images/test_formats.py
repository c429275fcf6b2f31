"""Damaged, truncated, misnamed and hostile files: each raises an `ImageError` of one line, within bounded memory."""

import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.decode_memory import measured
from support.image_files import GREY, HEIGHT, SCENE, SIZE_TAGS, assert_refused, chunk, encoded, exif, png, tiff


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript: export it as PNG$"),
        (b"P6 2 2 255 123456789012", "is NetPBM: convert it to PNG or JPEG$"),
        (b"%PDF-1.7\n", "is PDF: export its pages as images$"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG: export it as PNG$"),
        (b" <svg/>", "is SVG: export it as PNG$"),
        (b"\xff\x0a\xfa\x1f", "is JPEG XL: convert it to PNG or JPEG$"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL: convert it to PNG or JPEG$"),
        (b"8BPS\0\1", "is Photoshop: export it as PNG$"),
        (bytes(128) + b"DICM", "is DICOM: export it as 16-bit PNG$"),
        (b"PK\3\4", "is archive: unpack it$"),
        (b"\0\0\0\x20ftypisom\0\0\0\0isomiso2avc1mp41", "is video: extract its frames as images$"),
        (b"\0\0\0\x1cftypavif", "can't be decoded|header"),
        (b"begins so", "expected JPEG, PNG, WebP"),
        (encoded(Image.fromarray(SCENE), "PNG")[:-15], "ends after"),
        (encoded(Image.fromarray(SCENE), "JPEG")[:-200], "truncated"),
        (encoded(Image.fromarray(SCENE), "BMP")[:-10], "truncated"),
        (encoded(Image.fromarray(SCENE), "WEBP")[:-10], "can't be decoded"),
        (encoded(Image.fromarray(SCENE), "TIFF")[:-10], "can't be decoded|truncated|too much"),
        (encoded(Image.fromarray(SCENE).quantize(16), "GIF")[:-40], "truncated"),
        (png(8, 8, 8, 0, b"\0" * 9 * 4), "lacks 36 bytes of its pixels"),
        (png(8, 8, 8, 3, b"\0" * 9 * 8), "can't be decoded|palette"),
        (png(0, 8, 8, 0, b""), "some.jpg"),
        (encoded(Image.fromarray(np.float32([[0, np.nan]])), "TIFF"), "NaN"),
    ],
)
def test_unreadable_contents_raise_image_error_with_the_reason(data: bytes, pattern: str) -> None:
    assert_refused(data, pattern)


def test_png_with_a_damaged_chunk_raises_image_error() -> None:
    data = bytearray(encoded(Image.fromarray(SCENE), "PNG"))
    data[data.index(b"IDAT") + 30] ^= 1
    assert_refused(bytes(data), "checksum")


def test_tiff_with_a_missing_strip_raises_image_error() -> None:
    short = {**SIZE_TAGS, 278: (3, [HEIGHT // 2]), 258: (3, [8]), 262: (3, [1])}  # two strips needed, one there
    assert_refused(tiff(short, GREY.tobytes()), "lacks some of its strips")


@cache
def bombs() -> dict[str, bytes]:
    def header(image: Image.Image, kind: str, **options: object) -> bytearray:
        return bytearray(encoded(image, kind, **options))

    zeros = zlib.compress(b"\0" * 2**20, 9)
    text = [chunk(b"zTXt", b"k%d\0\0" % i + zeros) for i in range(200)]
    jpeg = header(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    frame = jpeg.index(b"\xff\xc2")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 16000, 16000)
    webp = header(Image.new("RGBA", (16, 16), (1, 2, 3, 4)), "WEBP", exif=exif(1))
    webp[24:30] = (16000).to_bytes(3, "little") * 2
    gif = header(Image.new("P", (9, 9)), "GIF", transparency=0, disposal=2)
    gif[gif.index(b",") + 5 : gif.index(b",") + 9] = struct.pack("<HH", 13000, 13000)
    bmp = header(Image.new("RGB", (4, 4)), "BMP")
    bmp[18:26] = struct.pack("<ii", 9000, 9000)
    rle = bmp[:]
    rle[28:34] = struct.pack("<HI", 8, 1)
    tile = {**SIZE_TAGS, 258: (3, [8]), 262: (3, [1]), 259: (3, [8])}
    comment = b"\x21\xfe" + b"\2ab" * 1_000_000 + b"\0"
    long_raw = b"\0" * (1 + 200_000 * 8)
    return {
        "88-megapixel PNG": png(9400, 9400, 1, 0, b"\0" * 1176 * 9400, level=9),
        "170-megapixel PNG": png(13000, 13000, 8, 0, b"\0" * 13001 * 100),
        "one endless row": png(2**31 - 1, 1, 8, 6, long_raw),
        "wide row": png(30_000_000, 1, 1, 0, b"\0" * 3_750_001),
        "PNG text": png(8, 8, 8, 0, b"\0" * 72, *text),
        "PNG tail": png(8, 8, 8, 0, b"\0" * 100_000_000, level=1),
        "JPEG": bytes(jpeg),
        "JPEG segments": b"\xff\xd8" + b"\xff\xe1\xff\xfdExif\0\0".ljust(4, b"\0") + b"\xff\xfe\0\4ab" * 500_000,
        "WebP": bytes(webp),
        "GIF": bytes(gif),
        "GIF comment": bytes(gif[:13]) + comment,
        "BMP": bytes(bmp),
        "BMP RLE": bytes(rle),
        "TIFF 1 bit": tiff(
            {**SIZE_TAGS, 256: (3, [60000]), 257: (3, [60000]), 258: (3, [1]), 262: (3, [1])}, b"\0" * 99
        ),
        "TIFF strip": tiff({**tile, 256: (3, [30000]), 257: (3, [30000]), 278: (3, [30000])}, zeros),
        "TIFF tile": tiff({**tile, 322: (4, [2**16]), 323: (4, [2**16]), 324: (4, [8]), 325: (4, [9])}, zeros),
        "TIFF tags": tiff({**tile, 339: (3, [1] * 9_000_000)}, b"\0" * 99),
        "TIFF samples": tiff({**tile, 277: (3, [65535]), 258: (3, [8] * 65535)}, b"\0" * 99),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_decompression_bombs_take_at_most_300_megabytes(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    for name, (megabytes, outcome) in measured([tmp_path / name for name in bombs()]).items():
        assert megabytes <= 300, (name, outcome, megabytes)
        assert outcome.startswith("bomb: ") or name in ("PNG text", "PNG tail"), (name, outcome)


LARGEST = {  # in megapixels; half of them is drawn, for half the memory (and 5 MB that any size takes), in half the time
    "jpg": ("JPEG", "RGB", 42, {}),
    "progressive.jpg": ("JPEG", "CMYK", 24, {"progressive": True}),
    "png": ("PNG", "RGBA", 42, {"compress_level": 1}),
    "webp": ("WEBP", "RGB", 18, {"lossless": True, "method": 0}),
    "tiff": ("TIFF", "RGBA", 36, {"compression": "tiff_lzw", "strip_size": 2**30}),
}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_largest_images_take_at_most_300_megabytes(tmp_path: Path) -> None:
    sides = {name: int((megapixels / 2 * 1e6) ** 0.5) for name, (_, _, megapixels, _) in LARGEST.items()}
    for name, (kind, mode, _, options) in LARGEST.items():
        Image.new(mode, (sides[name], sides[name])).save(tmp_path / name, kind, **options)
    for name, (megabytes, outcome) in measured([tmp_path / name for name in LARGEST]).items():
        assert outcome == f"({sides[name]}, {sides[name]}, 3)"
        assert 50 < megabytes <= 300 / 2 + 5, (name, megabytes)
