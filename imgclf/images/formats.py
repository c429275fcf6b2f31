"""Image files before their pixels: format by content, chunks of a PNG, tags of a TIFF, and what decoding will cost.

Each check raises an `ImageError` without the file's name; `imgclf.images.decode` adds it.
"""

import ctypes
import io
import struct
import zlib
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin, _imaging

from imgclf.errors import ImageError
from imgclf.images.codestreams import avif_memory, brands, heif_memory, jpeg2000_memory
from imgclf.images.suffixes import MISSING, REMEDIES

__all__ = [
    "HEADER_BYTES",
    "MeteredBytes",
    "StrippedPNG",
    "check_cost",
    "check_png",
    "check_tiff",
    "silence_libtiff",
    "sniff",
    "strip_png",
]

# Bytes that may precede the pixels, profiles and previews included.
HEADER_BYTES = 16 * 2**20
# Bytes that decoding one file may take.
MAX_MEMORY = 300_000_000
# Pixels; decoders hold whole rows.
MAX_SIDE = 65_535
# Pixels of a JPEG that is scaled while it is decoded: this bounds the time.
MAX_SCALED = 2**28
# Bytes inflated at a time.
_INFLATED_BYTES = 2**18
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    # BigTIFF; Pillow misreads the big-endian one.
    b"II+\0": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
# Brands of an ISO media file, of which the first that is found names its format.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF"}
_BRANDS |= {b"mif1": "HEIF", b"msf1": "HEIF"}
# First bytes of what is not read -> its name in `REMEDIES`.
_OTHERS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"\0\0\1\0": "icon",
    b"PK\3\4": "archive",
    b"\x1f\x8b": "archive",
    b"\x93NUMPY": "array",
    b"\x89HDF": "array",
}
_TIFF_CODECS = {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate"}
_TIFF_CODECS |= {"packbits", "zstd", "webp"}
# Width, height, bits, samples, strip and tile sizes.
_TIFF_SIZE_TAGS = (256, 257, 258, 277, 278, 322, 323)
# Frames of a JPEG that libjpeg can scale while it decodes: baseline, extended, progressive; and all progressive ones.
_SCALABLE, _PROGRESSIVE = (0xC0, 0xC1, 0xC2), (0xC2, 0xC6, 0xCA, 0xCE)
# The chunks that make pixels, in the order of the stripped file.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Text chunks of a PNG that may state the orientation, and the bytes that are read of each.
_PNG_EXIF, _PNG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_TEXT_BYTES = 2**20
# (x, y, step in x, step in y) of each pass of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class StrippedPNG(NamedTuple):
    """A PNG with only the chunks that make pixels: the file's bytes and its chunks; `frames`, `has_profile`, and `info`, with
    EXIF and XMP as Pillow names them, of the rest.
    """

    data: bytes
    chunks: dict[bytes, list[memoryview]]
    frames: int
    has_profile: bool
    info: dict[str, bytes]


class MeteredBytes(io.BytesIO):
    """A file in memory that bounds the parsing of its header: Pillow's parsers make at least one read per step."""

    def __init__(self, data: bytes, bytes_left: float) -> None:
        super().__init__(data)
        self.reads_left = 200_000 + len(data) // 64
        self.bytes_left = bytes_left

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does; raises `ImageError` after too many reads or bytes."""
        chunk = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(chunk)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ImageError("has too much before or between its pixels: save it again without metadata")
        return chunk


def sniff(data: bytes) -> str:
    """Pillow's name of the format, by the first bytes of a file; raises with the remedy for one that isn't read."""
    name = _format_of(data)
    if name in MISSING:
        raise ImageError(f"is {MISSING[name]}: {REMEDIES[MISSING[name]]}")
    return name


def _format_of(data: bytes) -> str:
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if found := brands(data):
        for brand, name in _BRANDS.items():
            if brand in found:
                return name
        raise ImageError(f"is video: {REMEDIES['video']}")
    if not data:
        raise ImageError("is empty (0 bytes): copy or download it again")
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ImageError("is a Git LFS pointer, not the image: run `git lfs pull`")
    if start.startswith((b"<!doctype html", b"<html")):
        raise ImageError("is a web page, not an image: download the image itself")
    for magic, name in _OTHERS.items():
        if data.startswith(magic) or start.startswith(magic):
            raise ImageError(f"is {name}: {REMEDIES[name]}")
    if b"<svg" in start and start.startswith(b"<"):
        raise ImageError(f"is SVG: {REMEDIES['SVG']}")
    if data[128:132] == b"DICM":
        raise ImageError(f"is DICOM: {REMEDIES['DICOM']}")
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3] in b" \t\r\n":
        raise ImageError(f"is NetPBM: {REMEDIES['NetPBM']}")
    raise ImageError(f"begins with {data[:8]!r}: expected JPEG, PNG, WebP, GIF, BMP or TIFF, so convert or remove it")


def strip_png(data: bytes) -> StrippedPNG:
    """Verify the checksums of the chunks that make a PNG's pixels, and drop all other chunks."""
    view, position, frames, has_profile = memoryview(data), 8, 0, False
    chunks: dict[bytes, list[memoryview]] = {kind: [] for kind in _PNG_CHUNKS}
    texts: dict[bytes, bytes] = {}
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
            frames = int.from_bytes(view[position + 8 : position + 12], "big")
        elif kind == b"iCCP":
            has_profile = True
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            texts |= _png_text(kind, view[position + 8 : end - 4])
        elif not kind[0] & 32:  # a capital first letter marks a chunk that decoders must know
            raise ImageError(f"holds a chunk {kind!r} that PNG doesn't have: save it again as PNG")
        position = end
        if kind == b"IEND":
            core = b"".join((data[:8], *(chunk for kind in _PNG_CHUNKS for chunk in chunks[kind])))
            return StrippedPNG(core, chunks, frames, has_profile, {} if chunks[b"eXIf"] else _png_info(texts))
    raise ImageError("has more than 100,000 chunks: save it again as PNG")


def _png_text(kind: bytes, body: memoryview) -> dict[bytes, bytes]:
    """{keyword: text} of a chunk that may state the orientation; empty for any other, a damaged and a very long one."""
    keyword = bytes(body[:80]).partition(b"\0")[0]
    if keyword not in (_PNG_EXIF, _PNG_XMP) or len(body) > _TEXT_BYTES:
        return {}
    text, packed = bytes(body[len(keyword) + 1 :]), kind == b"zTXt"
    if packed:
        text = text[1:]
    elif kind == b"iTXt":  # whether it is compressed, how, the language, the keyword in that language
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    if packed:
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(text, _TEXT_BYTES)
        except zlib.error:
            return {}
        if not inflate.eof:
            return {}
    return {keyword: text}


def _png_info(texts: dict[bytes, bytes]) -> dict[str, bytes]:
    """EXIF and XMP as Pillow names them; ImageMagick writes EXIF as hexadecimal digits behind three lines."""
    if not texts:
        return {}
    try:
        exif = bytes.fromhex(b"".join(texts.get(_PNG_EXIF, b"").split(b"\n")[3:]).decode("latin-1"))
    except ValueError:
        exif = b""
    return {"exif": exif, "xmp": texts.get(_PNG_XMP, b"")}


def check_png(image: Image.Image, chunks: dict[bytes, list[memoryview]]) -> None:
    """Raise for pixel data that end early, which Pillow shows as black; only an image with blank last rows is examined."""
    width, height, bits, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", chunks[b"IHDR"][0], 8)
    if not interlaced and image.crop((0, height - 1, width, height)).getbbox(alpha_only=False):
        return
    missing = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        missing += rows * (1 + (columns * _PNG_SAMPLES[colour] * bits + 7) // 8) if columns > 0 < rows else 0
    inflate = zlib.decompressobj()
    for chunk in chunks[b"IDAT"]:
        rest = bytes(chunk[8:-4])
        while rest and missing > 0:
            missing -= len(inflate.decompress(rest, _INFLATED_BYTES))
            rest = inflate.unconsumed_tail
    missing -= len(inflate.flush()) if missing > 0 else 0
    if missing > 0:
        raise ImageError(f"lacks {missing:,} bytes of its pixels: copy or download it again")


@cache
def silence_libtiff() -> None:
    """Keep libtiff from printing to stderr, once per process: its lines name no file, and Pillow raises what matters.

    Where Pillow has libtiff built in, the function isn't found, and libtiff prints as before.
    """
    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def check_tiff(data: bytes) -> None:
    """Raise for a tag directory that Pillow would unpack into far more memory than the file has."""
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
        if tag in _TIFF_SIZE_TAGS:
            sizes.add(tag)


def check_cost(image: ImageFile.ImageFile, data: bytes) -> int:
    """Raise for an image too large to decode; returns by what to divide the sides of a JPEG that is too large as a whole.

    This divisor (1, 2, 4 or 8, the least that is possible) depends on the file alone.
    """
    size = f"is {image.width} x {image.height} pixels"
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"{size}: at most {MAX_SIDE:,} per side are read, shrink it")
    area, divisors = image.width * image.height, [1]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        area = max(area, _check_tiff_layout(image))
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        frame, in_one_scan = _jpeg_frame(data)
        divisors = [1, 2, 4, 8] if frame in _SCALABLE and area <= MAX_SCALED else [1]
        costs = [_jpeg_bytes_per_pixel(image, in_one_scan, divisor) for divisor in divisors]
    else:
        costs = [_bytes_per_pixel(image, data)]
    memory, copies = 0.0, 1 if image.format in ("JPEG", "MPO") else 2
    for divisor, cost in zip(divisors, costs, strict=True):
        memory = copies * len(data) + area * cost
        if memory <= MAX_MEMORY:
            return divisor
    size += f", which take {memory / 1e6:,.0f} MB to decode as {image.format} {image.mode}"
    baseline = ", or save it as a baseline JPEG" if len(divisors) > 1 and not in_one_scan else ""
    raise ImageError(f"{size}: at most {MAX_MEMORY / 1e6:,.0f} MB are spent, shrink it{baseline}")


def _check_tiff_layout(image: TiffImagePlugin.TiffImageFile) -> int:
    """Pixels of a tile, padding included; raises for rare codecs, and for uncompressed data with missing strips."""
    if image.info["compression"] not in _TIFF_CODECS:
        raise ImageError(f"is a TIFF compressed as {image.info['compression']}: save it with LZW, deflate or none")
    if not image.use_load_libtiff:
        layers = len(image.getbands()) if image.tag_v2.get(284) == 2 else 1
        boxes = [box for _, box, _, _ in image.tile if box]
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        if covered < image.width * image.height * layers:
            raise ImageError("lacks some of its strips: copy or download it again")
    return int(image.tag_v2.get(322, 1)) * int(image.tag_v2.get(323, 1))


def _jpeg_frame(data: bytes) -> tuple[int, bool]:
    """(marker of a JPEG's frame, whether its pixels are in one scan); (0, False) where its segments are not in order."""
    position, frame, components = 2, 0, 0
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return frame, frame not in _PROGRESSIVE and data[position + 4] == components
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, components = marker, data[position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, False


def _jpeg_bytes_per_pixel(image: JpegImagePlugin.JpegImageFile, in_one_scan: bool, divisor: int) -> float:
    """Peak memory of decoding a JPEG at a fraction of its size, per pixel of the file."""
    stored = 1 if image.mode == "L" else 4
    coefficients = 0.0
    if not in_one_scan:
        # 16 bits each, of all pixels whatever the divisor, are held until the last scan.
        blocks = [horizontal * vertical for _, horizontal, vertical, _ in image.layer] or [1]
        coefficients = 2 * sum(blocks) / max(1, max(blocks))
    return max(coefficients + stored / divisor**2, (stored + 3) / divisor**2)


def _bytes_per_pixel(image: ImageFile.ImageFile, data: bytes) -> float:
    """Peak memory of decoding, measured: Pillow's pixels, and the codec's buffers or the result, whichever is more."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    area = image.width * image.height
    if image.format == "AVIF":
        return avif_memory(data, area, image.mode == "RGBA") / area
    if image.format == "HEIF":
        return heif_memory(area, image.info, image.mode != "L") / area
    if image.format == "JPEG2000":
        return jpeg2000_memory(data, stored) / area
    if image.format == "WEBP":
        # Two canvases, a copy as bytes, Pillow's pixels.
        return 16.5
    if image.format == "GIF":
        # A first frame may be kept for disposal.
        return 5
    if image.format == "BMP" and image.tile[0][0] == "bmp_rle":
        # Decoded in Python at about 0.1 s per million pixels: this bounds the time.
        return 60
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # One strip may hold all pixels.
        bits = image.tag_v2.get(258, (1,))
        return stored + max(4, sum(bits if isinstance(bits, tuple) else (bits,)) / 8)
    return stored + 3
