"""Decoding: every form of one scene gives the same pixels, and whatever is wrong is one line that names the file."""

import ast
import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import imgclf.images.decode as module
from imgclf.errors import ImageError
from imgclf.images.decode import BACKGROUND, as_pixels, decode, describe, read_image
from imgclf.images.fitting import fit
from imgclf.preprocess import Preprocess

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd"
HEIGHT, WIDTH = 24, 36


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """RGB with 4 x 4 = 16 colours in blocks, different in every corner and under every turn."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 4 // width * 80, y * 4 // height * 70, (x * 4 // width + y * 4 // height) * 30], axis=2)
    return rgb.astype(np.uint8)


SCENE = scene()
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))
ALPHA = (np.mgrid[:HEIGHT, :WIDTH][1] * 7).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, raw: bytes, *extra: bytes, level: int = 6) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(raw, level)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """A little-endian TIFF of the pixels `data` (tag 273 points to them) with short (3) and long (4) tags."""
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


def over_background(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return np.rint(rgb * share + np.array(BACKGROUND) * (1 - share)).astype(np.uint8)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


def close(one: np.ndarray, other: np.ndarray, most: int) -> None:
    assert one.dtype == np.uint8 and one.shape == other.shape and one.flags.c_contiguous and one.flags.writeable
    assert np.abs(one.astype(int) - other.astype(int)).max() <= most


@cache
def lossless() -> dict[str, bytes]:
    rgb, paletted = Image.fromarray(SCENE), Image.fromarray(SCENE).quantize(16, dither=Image.Dither.NONE)
    files = {
        "png": encoded(rgb, "PNG"),
        "png_palette": encoded(paletted, "PNG"),
        "png_palette_4_bits": encoded(paletted, "PNG", bits=4),
        "png_rgba": encoded(rgb.convert("RGBA"), "PNG"),
        "png_16_bits": png(
            WIDTH,
            HEIGHT,
            16,
            2,
            b"".join(b"\0" + row.astype(">u2").tobytes() for row in SCENE.astype(int).reshape(HEIGHT, -1) * 257),
        ),
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


@pytest.mark.trust("lossless forms of one scene decoded", "a pixel off by more than 2 of 255")
@pytest.mark.parametrize("form", lossless())
def test_lossless_forms_equal_the_scene(form: str, tmp_path: Path) -> None:
    data = lossless()[form]
    (tmp_path / "named.jpg").write_bytes(data)  # the content counts, not the name
    close(decode(tmp_path / "named.jpg"), SCENE, 2)
    close(decode(data + b"garbage after a whole picture"), SCENE, 2)


@pytest.mark.trust("JPEG forms decoded", "a pixel other than Pillow's")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_equals_pillows(mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(SCENE).convert(mode), "JPEG", quality=95, **options)
    close(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 0)


def test_mpo_gives_its_first_picture() -> None:
    data = encoded(Image.fromarray(SCENE), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    close(decode(data), np.asarray(Image.open(io.BytesIO(data))), 0)
    assert describe(data)["frames"] == 2


@pytest.mark.trust("formats x EXIF orientations 1-8 decoded", "a picture that stands wrong")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(SCENE), kind, exif=exif(orientation), **options)
    with warnings.catch_warnings():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    close(decode(data), expected, 0)
    close(as_pixels(Image.open(io.BytesIO(data))), expected, 0)
    told = describe(data)
    assert (
        (told["height"], told["width"])
        == expected.shape[:2]
        == ((WIDTH, HEIGHT) if orientation > 4 else SCENE.shape[:2])
    )


def test_eight_orientations_undo_each_other() -> None:
    corner = np.zeros((4, 6, 3), np.uint8)
    corner[0, 0] = 255  # EXIF: where the first pixel of the file belongs in the upright picture
    places = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (5, 3), 8: (5, 0)}
    for orientation, place in places.items():
        pixels = decode(encoded(Image.fromarray(corner), "PNG", exif=exif(orientation)))
        assert tuple(np.argwhere(pixels.any(2))[0]) == place


@pytest.mark.parametrize(
    "damaged", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_no_damaged_picture(damaged: bytes) -> None:
    close(decode(encoded(Image.fromarray(SCENE), "PNG", exif=damaged)), SCENE, 0)


def grey3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


RAMP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
RAMP8 = np.rint(RAMP / 257).astype(np.uint8)
BLUE_OUT = over_background(SCENE, ALPHA)
SIZE_TAGS = {256: (3, [WIDTH]), 257: (3, [HEIGHT]), 259: (3, [1]), 277: (3, [1]), 278: (3, [HEIGHT])}


def rows(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array.reshape(HEIGHT, -1))


@cache
def modes() -> dict[str, tuple[bytes, np.ndarray]]:
    rgba, la = Image.fromarray(np.dstack([SCENE, ALPHA])), Image.fromarray(np.dstack([GREY, ALPHA]), "LA")
    paletted = Image.fromarray(SCENE).quantize(16, dither=Image.Dither.NONE)
    index = np.asarray(paletted)
    key = tuple(int(value) for value in SCENE[0, 0])
    blank = np.where((key == SCENE).all(2, keepdims=True), 255, SCENE).astype(np.uint8)
    table = np.linspace(0, 255, 16).astype(np.uint8)
    bits = GREY > 100
    two = (np.arange(HEIGHT * WIDTH) % 4).reshape(HEIGHT, WIDTH)
    packed = (two[:, ::4] << 6 | two[:, 1::4] << 4 | two[:, 2::4] << 2 | two[:, 3::4]).astype(np.uint8)
    hide = struct.pack
    ramp16 = RAMP.astype(np.uint16)
    marked16 = np.where(ramp16 == ramp16[3, 5], 255, np.rint(ramp16 / 257)).astype(np.uint8)
    return {
        "RGBA png": (encoded(rgba, "PNG"), BLUE_OUT),
        "RGBA webp": (encoded(rgba, "WEBP", lossless=True, exact=True), BLUE_OUT),
        "RGBA tiff": (encoded(rgba, "TIFF"), BLUE_OUT),
        "LA png": (encoded(la, "PNG"), over_background(grey3(GREY), ALPHA)),
        "LA tiff": (encoded(la, "TIFF"), over_background(grey3(GREY), ALPHA)),
        "P tRNS index": (encoded(paletted, "PNG", transparency=int(index[0, 0])), blank),
        "P tRNS bytes": (
            encoded(paletted, "PNG", transparency=table.tobytes()),
            over_background(np.asarray(paletted.convert("RGB")), table[index]),
        ),
        "P tRNS gif": (encoded(paletted, "GIF", transparency=int(index[0, 0])), blank),
        "RGB tRNS": (encoded(Image.fromarray(SCENE), "PNG", transparency=key), blank),
        "RGB16 tRNS": (
            png(
                WIDTH,
                HEIGHT,
                16,
                2,
                rows(SCENE.astype(">u2") * np.uint16(257)),
                chunk(b"tRNS", hide(">3H", *(v * 257 for v in key))),
            ),
            blank,
        ),
        "L tRNS": (
            png(WIDTH, HEIGHT, 8, 0, rows(GREY), chunk(b"tRNS", hide(">H", int(GREY[0, 0])))),
            grey3(np.where(GREY[0, 0] == GREY, 255, GREY).astype(np.uint8)),
        ),
        "L 2 bits": (png(WIDTH, HEIGHT, 2, 0, rows(packed)), grey3((two * 85).astype(np.uint8))),
        "L 2 bits tRNS": (
            png(WIDTH, HEIGHT, 2, 0, rows(packed), chunk(b"tRNS", hide(">H", 1))),
            grey3(np.where(two == 1, 255, two * 85).astype(np.uint8)),
        ),
        "I;16 tRNS": (
            png(WIDTH, HEIGHT, 16, 0, rows(RAMP.astype(">u2")), chunk(b"tRNS", hide(">H", int(ramp16[3, 5])))),
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


@pytest.mark.parametrize("mode", modes())
def test_modes(mode: str) -> None:
    data, expected = modes()[mode]
    most = {"YCbCr tiff": 3, "RGBA webp": 2}.get(mode, 1)
    close(decode(data), expected, most)
    if "white" not in mode:
        close(as_pixels(Image.open(io.BytesIO(data))), expected, most)


def test_animations_give_the_first_frame() -> None:
    frames = [Image.fromarray(SCENE).quantize(16), Image.new("P", (WIDTH, HEIGHT))]
    for kind in ("GIF", "PNG", "WEBP"):
        pictures = [frame.convert("RGB") for frame in frames] if kind != "GIF" else frames
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
        close(decode(data), SCENE, 2)
        told = describe(data)
        assert told["frames"] == 2 and any("first of 2" in note for note in told["notes"])


def test_a_small_gif_frame_lies_on_the_background() -> None:
    data = bytearray(encoded(Image.fromarray(SCENE).quantize(16), "GIF"))
    data[6:10] = struct.pack("<HH", WIDTH + 5, HEIGHT + 3)
    pixels = decode(bytes(data))
    assert (pixels[HEIGHT:] == BACKGROUND).all() and (pixels[:, WIDTH:] == BACKGROUND).all()
    close(np.ascontiguousarray(pixels[:HEIGHT, :WIDTH]), SCENE, 2)


# What is refused


def refused(source: str | Path | bytes, pattern: str) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source, name=None if not isinstance(source, bytes) else "some.jpg")
    line = str(caught.value)
    start = "some.jpg" if isinstance(source, bytes) else str(source)
    assert line.startswith(f"{start}: ") and "\n" not in line and re.search(pattern, line), line
    return line


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected JPEG, PNG"),
        (b"P6 2 2 255 123456789012", "expected JPEG, PNG"),
        (b"\0\0\0\x1cftypavif", "expected JPEG, PNG"),
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
def test_wrong_contents(data: bytes, pattern: str) -> None:
    refused(data, pattern)


def test_a_damaged_png_chunk_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(SCENE), "PNG"))
    data[data.index(b"IDAT") + 30] ^= 1
    refused(bytes(data), "checksum")


def test_wrong_kinds_of_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "absent.jpg", "No such file")
    refused("nul\0byte.jpg".replace("\0", ""), "No such file")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "pipe")  # would wait for a writer for ever
    refused("/dev/zero", "device")
    with pytest.raises(ImageError, match=r"^a\\nb\.jpg: "):
        decode(b"", name="a\nb.jpg")
    with pytest.raises(ImageError, match=r"null byte"):
        decode("a\0b.jpg")
    with pytest.raises(ImageError, match="expected"):
        decode(123)  # type: ignore[arg-type]


def test_a_link_to_a_picture_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(Image.fromarray(SCENE), "PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    close(decode(tmp_path / "link.png"), SCENE, 0)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.bmp").open("wb") as file:
        file.write(b"BM")
        file.truncate(module.MAX_BYTES + 1)
    refused(tmp_path / "large.bmp", "at most 128 are read")


@cache
def bombs() -> dict[str, bytes]:
    def header(image: Image.Image, kind: str, **options: object) -> bytearray:
        return bytearray(encoded(image, kind, **options))

    zeros = zlib.compress(b"\0" * 2**20, 9)
    text = [chunk(b"zTXt", b"k%d\0\0" % i + zeros) for i in range(200)]
    jpeg = header(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    frame = jpeg.index(b"\xff\xc2")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 8000, 8000)
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


MEASURE = """
import os, sys
from pathlib import Path
from imgclf.images.decode import decode
from imgclf.errors import ImageError

def peak():  # not getrusage: its maximum survives exec, so it would be this test process's own
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

for path in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    data = Path(path).read_bytes()  # in a process of its own, where no file before has left memory behind
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = peak()
    try:
        said = decode(data, "bomb").shape
    except ImageError as error:
        said = error
    print((peak() - before) / 1024, said, flush=True)
    os._exit(0)
"""


def measured(paths: list[Path]) -> dict[str, tuple[float, str]]:
    """Name of each file -> megabytes at the peak of decoding it, and the shape or the error that came of it."""
    command = [sys.executable, "-W", "error", "-c", MEASURE, *map(str, paths)]
    root = Path(module.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return {path.name: (float(line[0]), line[2]) for path, line in zip(paths, lines, strict=True)}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bombs_stay_small(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    for name, (megabytes, said) in measured([tmp_path / name for name in bombs()]).items():
        assert megabytes <= 300, (name, said, megabytes)
        assert said.startswith("bomb: ") or name in ("PNG text", "PNG tail"), (name, said)


LARGEST = {  # in megapixels; half of them is drawn, for half the memory (and 5 MB that any size takes), in half the time
    "jpg": ("JPEG", "RGB", 42, {}),
    "progressive.jpg": ("JPEG", "CMYK", 24, {"progressive": True}),
    "png": ("PNG", "RGBA", 42, {"compress_level": 1}),
    "webp": ("WEBP", "RGB", 18, {"lossless": True, "method": 0}),
    "tiff": ("TIFF", "RGBA", 36, {"compression": "tiff_lzw", "strip_size": 2**30}),
}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_largest_pictures_stay_within_the_budget(tmp_path: Path) -> None:
    sides = {name: int((megapixels / 2 * 1e6) ** 0.5) for name, (_, _, megapixels, _) in LARGEST.items()}
    for name, (kind, mode, _, options) in LARGEST.items():
        Image.new(mode, (sides[name], sides[name])).save(tmp_path / name, kind, **options)
    for name, (megabytes, said) in measured([tmp_path / name for name in LARGEST]).items():
        assert said == f"({sides[name]}, {sides[name]}, 3)"
        assert 50 < megabytes <= 300 / 2 + 5, (name, megabytes)


# Pictures in memory, and the square that a network sees


def test_as_pixels() -> None:
    unit = SCENE / 255
    chw = torch.from_numpy(SCENE).permute(2, 0, 1)
    for image in (Image.fromarray(SCENE), SCENE, unit, unit.astype(np.float32), chw, chw / 255, (chw / 255).double()):
        close(as_pixels(image), SCENE, 0)
    for image in (GREY, GREY[..., None], torch.from_numpy(GREY.copy()), torch.from_numpy(GREY.copy())[None] / 255):
        close(as_pixels(image), grey3(GREY), 0)
    close(as_pixels(np.dstack([SCENE, ALPHA])), BLUE_OUT, 1)
    close(as_pixels(SCENE[::2, ::-1]), SCENE[::2, ::-1], 0)


def premultiplied(mode: str) -> Image.Image:
    bands = "RGBA" if mode == "RGBa" else "LA"
    image = Image.fromarray(np.dstack([SCENE, ALPHA]))
    return image.convert(bands).convert(mode)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "RGBX", "HSV"])
def test_as_pixels_in_pillows_rarer_modes(mode: str) -> None:
    rgb = Image.fromarray(SCENE)
    if mode in ("RGBa", "La"):
        grey = SCENE if mode == "RGBa" else grey3(GREY)
        close(as_pixels(premultiplied(mode)), over_background(grey, ALPHA), 2)
    elif mode == "PA":
        image = rgb.quantize(16).convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
        close(as_pixels(image), BLUE_OUT, 2)
    else:
        close(as_pixels(rgb.convert(mode)), SCENE, 6)


@pytest.mark.parametrize(
    "image",
    [
        None,
        "picture.jpg",
        [[1, 2], [3, 4]],
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((2, 2, 3), np.int64),
        np.full((2, 2, 3), 1.5),
        np.full((2, 2, 3), -0.1),
        np.full((2, 2, 3), np.nan),
        np.array([["a"]]),
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.int32),
        torch.zeros(3, 4, 4, dtype=torch.bfloat16),
    ],
)
def test_as_pixels_refuses(image: object) -> None:
    with pytest.raises(ImageError) as caught:
        as_pixels(image)
    assert str(caught.value).startswith("image of type") and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(300, 300), (50, 80), (91, 60), (256, 256), (400, 257), (40, 1000)])
@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (64, 0.9), (40, 1.0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_timms(shape: tuple[int, int], size: int, crop_pct: float, interpolation: str) -> None:
    from timm.data import create_transform

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    transform = create_transform(
        (3, size, size), is_training=False, crop_pct=crop_pct, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    expected = (transform(Image.fromarray(pixels)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    preprocess = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation, resize="crop")
    close(fit(pixels, preprocess), np.ascontiguousarray(expected), 1)


def test_squash_and_letterbox() -> None:
    squash = Preprocess(size=20)
    expected = np.asarray(Image.fromarray(SCENE).resize((20, 20), Image.Resampling.BICUBIC))
    close(fit(SCENE, squash), expected, 0)
    letterbox = Preprocess(size=18, resize="letterbox", mean=(0.1, 0.5, 0.9))
    pixels = fit(SCENE, letterbox)  # 24 x 36 -> 12 x 18, three rows above and below
    inner = np.asarray(Image.fromarray(SCENE).resize((18, 12), Image.Resampling.BICUBIC))
    close(np.ascontiguousarray(pixels[3:15]), inner, 0)
    assert (np.delete(pixels, range(3, 15), axis=0) == [26, 128, 230]).all()  # round(mean * 255), halves to even


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("shape", [(24, 36, 3), (24, 36, 1), (24, 36), (1, 9000, 3), (9000, 1, 3), (1, 1, 3), (20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_has_one_shape(resize: str, shape: tuple[int, ...], channels: int) -> None:
    preprocess = Preprocess(size=20, resize=resize).with_channels(channels)
    pixels = np.full(shape, 77, np.uint8)
    fitted = fit(pixels, preprocess)
    assert fitted.shape == (20, 20, channels) and fitted.dtype == np.uint8
    if resize != "letterbox" or shape[0] == shape[1]:
        assert (fitted == 77).all()


def test_fit_leaves_what_fits_and_knows_grey(tmp_path: Path) -> None:
    preprocess = Preprocess(size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.shares_memory(fit(pixels, preprocess), pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    np.testing.assert_array_equal(fit(pixels, preprocess.with_channels(1)), grey)
    (tmp_path / "picture.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png", preprocess), pixels)


# Real files, mutated files, and the sources


@pytest.mark.skipif(not ODD.is_dir(), reason="the real odd files aren't here")
def test_real_odd_files() -> None:
    good = {
        "animated.gif": 100,
        "cmyk.jpg": 100,
        "exif_orientation_6.jpg": 128,
        "gray16_trns.png": 64,
        "gray_L.jpg": 128,
    }
    good |= {"palette_trns.png": 64, "plain.webp": 128, "png_named.jpg": 128}
    for path in sorted(path for path in ODD.iterdir() if path.is_file()):
        if path.name in good:
            assert decode(path).shape == (good[path.name], good[path.name], 3)
        else:
            refused(path, "")
    with Image.open(ODD / "gray16_trns.png") as image:
        values, key = np.asarray(image), image.info["transparency"]
    expected = np.where(values == key, 255, np.rint(values / 257)).astype(np.uint8)
    close(decode(ODD / "gray16_trns.png"), grey3(expected), 0)


def mutants(count: int, seed: int) -> list[bytes]:
    """Files with flipped bits, cut ends, exchanged parts and edited headers; PNG checksums are mended half the time."""
    small = Image.fromarray(scene(8, 12))
    forms = [data for data, _ in modes().values()] + list(lossless().values())
    forms += [encoded(small, "JPEG", exif=exif(6)), encoded(small, "JPEG", progressive=True)]
    forms += [encoded(small, "WEBP", exif=exif(3)), encoded(small, "MPO", save_all=True, append_images=[small])]
    forms += [encoded(small.quantize(8), "GIF", save_all=True, append_images=[small.rotate(180).quantize(8)])]
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        data = bytearray(forms[rng.integers(len(forms))])
        for _ in range(rng.integers(1, 4)):
            what, place = rng.integers(6), int(rng.integers(len(data)))
            if what == 0:
                data[place] ^= 1 << int(rng.integers(8))
            elif what == 1:
                del data[max(place, 1) :]
            elif what == 2:
                other = forms[rng.integers(len(forms))]
                data[place : place + int(rng.integers(64))] = other[place : place + int(rng.integers(64))]
            elif what == 3:
                data[min(place, 64) :][:4] = rng.bytes(4)
                data[min(place % 64, len(data) - 1)] = int(rng.choice([0, 1, 127, 128, 255]))
            elif what == 4:
                data[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"][rng.integers(3)]
            else:
                del data[place : place + int(rng.integers(1, 32))]
            data = data or bytearray(b"\0")
        files.append(mended(bytes(data)) if rng.integers(2) else bytes(data))
    return files


def mended(data: bytes) -> bytes:
    """The PNG with its checksums made right, so that the damage gets past them; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    position, parts = 8, [data[:8]]
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if position + 12 + length > len(data):
            break
        parts.append(chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(parts) + data[position:]


def outcomes(files: list[bytes], call: Callable[..., object] = decode) -> dict[str, int]:
    counts = {"decoded": 0, "refused": 0}
    for data in files:
        try:
            result = call(data, "mutant")
        except ImageError as error:
            assert str(error).startswith("mutant: ") and "\n" not in str(error) and len(str(error)) < 400
            counts["refused"] += 1
        else:
            if call is decode:
                assert isinstance(result, np.ndarray) and result.dtype == np.uint8
                assert result.ndim == 3 and result.shape[2] == 3 and result.size
            counts["decoded"] += 1
    return counts


@pytest.mark.trust("mutated picture files decoded", "an exception other than the one line that names the file")
def test_mutants_decode_or_are_refused(record_property: Callable[[str, object], None]) -> None:
    counts = outcomes(mutants(6000, seed=0))
    record_property("tried", sum(counts.values()))
    assert sum(counts.values()) == 6000 and min(counts.values()) > 600


def test_mutants_are_described_or_refused() -> None:
    assert sum(outcomes(mutants(500, seed=1), describe).values()) == 500


def test_threads_leave_the_warning_filters_alone() -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    data = encoded(Image.fromarray(SCENE), "TIFF", compression="tiff_lzw", exif=exif(6))
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(decode, [data] * 200))) == 200
    assert list(warnings.filters) == before


def test_this_is_the_only_way_to_open_a_picture() -> None:
    package = Path(module.__file__).parents[1]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "open" and isinstance(node.value, ast.Name):
                assert node.value.id != "Image" or path.name == "decode.py", f"{path}:{node.lineno} opens a picture"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("imread", "imdecode", "decode_image"), f"{path}:{node.lineno} reads a picture"


def test_a_truncated_tiff_strip_table_is_seen() -> None:
    short = {**SIZE_TAGS, 278: (3, [HEIGHT // 2]), 258: (3, [8]), 262: (3, [1])}  # two strips needed, one there
    refused(tiff(short, GREY.tobytes()), "lacks some of its strips")
