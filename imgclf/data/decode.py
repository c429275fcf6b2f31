"""The one way from a file or bytes to uint8 RGB pixels: strict, of bounded cost, the same for training and prediction.

Read are JPEG (of MPO the first picture), PNG, WebP, GIF, BMP and TIFF, told by content and never by file name. Whatever
else comes, or comes damaged, is an `ImageError` of one line that begins with the file's name. What the pixels are:

orientation   EXIF's 1-8 is applied, wherever the format keeps it; EXIF that can't be read counts as 1
transparency  lies over `BACKGROUND`: alpha, a palette's tRNS, one transparent colour, what a GIF's frame leaves bare
animation     the first frame
16-bit grey   value * 255 / 65535, rounded; colour of 16 bits keeps its high bytes, as Pillow does
32-bit grey   0-255 as it is, else 0-65535 as 16-bit grey, else stretched from the picture's minimum to its maximum
float grey    0-1 times 255, else 0-255 as it is, else stretched in the same way; NaN and infinity are refused
ICC profiles  ignored, as in the pipelines that made the pretrained weights; CMYK, YCCK, LAB to RGB as Pillow converts

A PNG is checked against its checksums and keeps only the chunks that make pixels, so text chunks can't explode. JPEG
has no checksum: a flipped bit inside its data shows as wrong pixels, only a missing end is seen.
"""

import io
import math
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from imgclf.errors import ImageError
from imgclf.preprocess import Preprocess

__all__ = ["BACKGROUND", "MAX_BYTES", "MAX_MEMORY", "MAX_SIDE", "as_pixels", "decode", "describe", "fit", "read_image"]

BACKGROUND = (255, 255, 255)  # RGB under transparent pixels
MAX_BYTES = 128 * 2**20  # a file
MAX_MEMORY = 300_000_000  # bytes that decoding one file may take; in pixels: see `_bytes_per_pixel`
MAX_SIDE = 65_535  # pixels; decoders hold whole rows

Source = str | os.PathLike[str] | bytes

# Importing the plugins registers them; Image.open would import every format there is to find TIFF.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
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
_RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
_NUMERIC = ("I", "F")  # first letters of the modes that hold more than 8 bits
_HEADER_BYTES = 16 * 2**20  # all that may stand before the pixels, profiles and previews included
_TIFF_CODECS = {"raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate"}
_TIFF_CODECS |= {"packbits", "zstd", "webp"}
_SMALL = 2**20  # bytes or pixels that need no special care
_BAND = 2**18  # pixels converted at a time, so that intermediate copies stay small


def decode(source: Source, name: str | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of a path or of a file's bytes, by the rules above.

    `name` is what the message of an `ImageError` begins with: the path where none is given.
    """
    with _naming(source, name):
        image, facts = _open(_read(source))
        pixels = _pixels(image)
        if "data" in facts:
            _check_png_length(image, facts["data"])
        image.close()  # its memory goes before a turned copy is made
        return _turn(pixels, facts["orientation"])


def read_image(source: Source, preprocess: Preprocess, name: str | None = None) -> np.ndarray:
    """uint8 [S, S, C]: `decode`, then `fit`."""
    return fit(decode(source, name), preprocess)


def describe(source: Source, name: str | None = None) -> dict[str, Any]:
    """What the header says, without decoding pixels: format, mode, width, height, frames, and `notes` in plain words.

    Width and height are those of `decode`'s result. Raises `ImageError` for every header that `decode` refuses.
    """
    with _naming(source, name):
        image, facts = _open(_read(source))
        with _quiet():
            frames = facts.get("frames") or int(getattr(image, "n_frames", 1))
        turned = facts["orientation"] > 4
        height, width = image.size if turned else image.size[::-1]
        says = {
            f"animated or several pictures: only the first of {frames} is used": frames > 1,
            f"EXIF orientation {facts['orientation']} is applied": facts["orientation"] > 1,
            "transparent: laid over the background": "transparency" in image.info or image.mode[-1] in "Aa",
            f"{image.mode} values are scaled to 8 bits": image.mode.startswith(_NUMERIC),
            f"{image.mode} colours are converted to RGB": image.mode in ("CMYK", "LAB", "YCbCr"),
            "its ICC profile is ignored": facts.get("profile") or "icc_profile" in image.info,
        }
        notes = [note for note, true in says.items() if true]
        size = {"width": width, "height": height}
        return {"format": image.format, "mode": image.mode, **size, "frames": frames, "notes": notes}


def as_pixels(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of a picture in memory.

    Taken are PIL images (as `decode` takes files), arrays [H, W] or [H, W, C] and torch tensors [H, W] or [C, H, W],
    C being 1, 3 or 4; the numbers are uint8, or floats from 0 to 1. Raises `ImageError` for anything else.
    """
    with _naming(b"", f"image of type {type(image).__name__}"):
        if isinstance(image, Image.Image):
            return _turn(_pixels(image), _orientation(image))
        if hasattr(image, "detach") and hasattr(image, "numpy"):  # torch, not imported for this
            array = np.asarray(image.detach().cpu().numpy())
            array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        elif isinstance(image, np.ndarray):
            array = image
        else:
            raise ImageError("expected a PIL image, a NumPy array or a torch tensor")
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
            raise ImageError(f"came with shape {tuple(image.shape)}: expected one grey, RGB or RGBA picture")
        if array.dtype.kind == "f":
            if not (array.min() >= 0 and array.max() <= 1):  # NaN fails here too
                raise ImageError(f"floats from {array.min():g} to {array.max():g}: expected 0 to 1, not normalised")
            array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
        if array.dtype != np.uint8:
            raise ImageError(f"came as {array.dtype}: expected uint8, or floats from 0 to 1")
        if array.shape[2] == 4:
            return _pixels(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def fit(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [S, S, C] of uint8 [H, W, 3], [H, W, 1] or [H, W]: to grey (ITU-R 601) or RGB, then to `preprocess.size`.

    Resizing is Pillow's, antialiased, as timm and torchvision do; "crop" is timm's evaluation transform. A picture that
    fits already is returned as it is.
    """
    channels, size = preprocess.channels, preprocess.size
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    same_channels = (1 if pixels.ndim == 2 else 3) == channels
    height, width = pixels.shape[:2]
    fits = (height, width) == (size, size) and (preprocess.resize != "crop" or preprocess.crop_pct == 1)
    if fits and same_channels:
        return pixels.reshape(size, size, channels)
    image = Image.fromarray(pixels)
    if not same_channels:
        image = image.convert("L" if channels == 1 else "RGB")
    if not fits:
        image = _resize(image, preprocess)
    return np.array(image).reshape(size, size, channels)


def _resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size, resample = preprocess.size, _RESAMPLE[preprocess.interpolation]
    width, height = image.size
    if preprocess.resize == "squash":
        return image.resize((size, size), resample)
    if preprocess.resize == "letterbox":
        scale = size / max(width, height)
        inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
        fill = tuple(min(255, max(0, round(mean * 255))) for mean in preprocess.mean)
        canvas = Image.new(image.mode, (size, size), fill if len(fill) == 3 else fill[0])
        canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return canvas
    # "crop": torchvision's Resize(floor(size / crop_pct)) of the shorter side, then CenterCrop(size). The far ends of a
    # very long picture, which no filter reaches from the crop, go first: 1 x 50,000 would grow to 256 x 12,800,000.
    short, least, most = math.floor(size / preprocess.crop_pct), min(width, height), max(width, height)
    spare = most // 2 - 4 * least - 8
    if spare > 0 and short * short * most > 2**24 * least:
        x, y = (spare, 0) if width > height else (0, spare)
        image = image.crop((x, y, width - x, height - y))
    scaled = (int(short * image.width / least), int(short * image.height / least))
    left, top = (round((side - size) / 2.0) for side in scaled)
    return image.resize(scaled, resample).crop((left, top, left + size, top + size))


def _read(source: Source) -> bytes:
    """The file's bytes; opens nothing but regular files, and waits for no writer of a FIFO."""
    if isinstance(source, bytes):
        data = source
    else:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(os.fspath(source), flags)
        except OSError as error:
            raise ImageError(f"can't be opened ({error.strerror}): expected a picture file") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "folder" if stat.S_ISDIR(status.st_mode) else "device, pipe or socket"
                raise ImageError(f"is a {kind}: expected a picture file")
            data = b"" if status.st_size > MAX_BYTES else os.read(descriptor, status.st_size + 1)
            length = max(status.st_size, len(data))
        finally:
            os.close(descriptor)
    length = len(data) if isinstance(source, bytes) else length
    if length > MAX_BYTES:
        raise ImageError(f"has {length / 2**20:,.0f} MiB: at most {MAX_BYTES / 2**20:,.0f} are read, save it smaller")
    return data


def _sniff(data: bytes) -> str:
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


def _open(data: bytes) -> tuple[Image.Image, dict[str, Any]]:
    """The picture with its header read and its cost bounded, and facts that Pillow doesn't hold."""
    kind = _sniff(data)
    facts: dict[str, Any] = {}
    if kind == "PNG":
        data, facts = _png_core(data)
    elif kind == "TIFF":
        _check_tiff_tags(data)
    # Below 1 MiB no header can hold enough to matter, and metering takes a tenth of a small JPEG's time.
    file = (
        _Metered(data, math.inf if kind in ("TIFF", "WEBP") else _HEADER_BYTES)
        if len(data) > _SMALL
        else io.BytesIO(data)
    )
    with _quiet():
        image = Image.open(file, formats=(kind,))
    if isinstance(file, _Metered):
        file.bytes_left = math.inf
    size = f"is {image.width} x {image.height} pixels"
    if kind == "PNG" and image.mode == "P" and not image.palette:
        raise ImageError("is a PNG of palette colours without its palette: copy or download it again")
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"{size}: at most {MAX_SIDE:,} a side are read, shrink it")
    area = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        area = max(area, _check_tiff_layout(image))
    memory = 2 * len(data) + area * _bytes_per_pixel(image, file)
    if memory > MAX_MEMORY:
        size += f", which take {memory / 1e6:,.0f} MB to decode as {image.format} {image.mode}"
        raise ImageError(f"{size}: at most {MAX_MEMORY / 1e6:,.0f} MB are spent, shrink it")
    facts["orientation"] = 1 if kind == "TIFF" else _orientation(image)  # Pillow turns a TIFF while it loads
    return image, facts


def _bytes_per_pixel(image: Image.Image, file: io.BytesIO) -> float:
    """Peak memory of decoding, measured: Pillow's pixels, and the codec's buffers or the result, whichever is more."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scan = file.tell() - 4 - 2 * image.layers  # where the first scan says how many components it holds
        if image.format == "JPEG" and "progressive" not in image.info and file.getbuffer()[scan] == image.layers:
            return stored + 3
        blocks = [horizontal * vertical for _, horizontal, vertical, _ in image.layer] or [1]
        return stored + max(3, 2 * sum(blocks) / max(1, max(blocks)))  # 16-bit coefficients wait for the last scan
    if image.format == "WEBP":
        return 16.5  # two canvases, a copy as bytes, Pillow's pixels
    if image.format == "GIF":
        return 5  # a first frame may be kept for disposal
    if image.format == "BMP" and _tiles(image)[0][0] == "bmp_rle":
        return 60  # decoded in Python, at about 0.1 s a million pixels: it is time that this bounds
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (1,))
        return stored + max(4, sum(bits if isinstance(bits, tuple) else (bits,)) / 8)  # one strip may hold all
    return stored + 3


class _Metered(io.BytesIO):
    """A file in memory that ends a header's endless loops: Pillow's parsers make at least one read a step."""

    def __init__(self, data: bytes, bytes_left: float) -> None:
        super().__init__(data)
        self.reads_left = 200_000 + len(data) // 64
        self.bytes_left = bytes_left

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(chunk)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ImageError("has too much before or between its pixels: save it again without metadata")
        return chunk


_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # in this order; the rest makes no pixels


def _png_core(data: bytes) -> tuple[bytes, dict[str, Any]]:
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


def _check_png_length(image: Image.Image, chunks: dict[bytes, list[memoryview]]) -> None:
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
            missing -= len(inflate.decompress(rest, _BAND))
            rest = inflate.unconsumed_tail
    missing -= len(inflate.flush()) if missing > 0 else 0
    if missing > 0:
        raise ImageError(f"lacks {missing:,} bytes of its pixels: copy or download it again")


def _check_tiff_tags(data: bytes) -> None:
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
        if out_of_line > 2 * _HEADER_BYTES or (length > 100_000 and not is_bytes):
            raise ImageError(f"has {length:,} values in TIFF tag {tag}: save it again without metadata")
        if tag in sizes:
            raise ImageError(f"states TIFF tag {tag} twice: save it again")
        if tag in (256, 257, 258, 277, 278, 322, 323):  # width, height, bits, samples, strip and tile sizes
            sizes.add(tag)


def _check_tiff_layout(image: TiffImagePlugin.TiffImageFile) -> int:
    """Pixels of a tile, padding included; refuses exotic codecs, and uncompressed data with strips missing."""
    if image.info["compression"] not in _TIFF_CODECS:
        raise ImageError(f"is a TIFF compressed as {image.info['compression']}: save it with LZW, deflate or none")
    if not image.use_load_libtiff:
        layers = len(image.getbands()) if image.tag_v2.get(284) == 2 else 1
        covered = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, _, _ in _tiles(image))
        if covered < image.width * image.height * layers:
            raise ImageError("lacks some of its strips: copy or download it again")
    return int(image.tag_v2.get(322, 1)) * int(image.tag_v2.get(323, 1))


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture as it is stored, not turned; converted in bands, so that copies stay small."""
    key, frame = _transparent_colour(image), _tiles(image)[0][1] if image.format == "GIF" and _tiles(image) else None
    with _quiet() if image.format == "TIFF" else nullcontext():
        image.load()
    scale = _scale(image) if image.mode.startswith(_NUMERIC) else None
    if image.mode == "RGB" and key is None and image.width * image.height <= _SMALL:
        pixels = np.array(image)  # the same as below, sooner
    else:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for rows, band in _bands(image):
            pixels[rows] = _rgb(band, key, scale)
    if frame and "transparency" not in image.info:  # what a smaller first frame leaves bare
        left, top, right, bottom = frame
        pixels[:top] = pixels[bottom:] = pixels[:, :left] = pixels[:, right:] = BACKGROUND
    return pixels


def _tiles(image: Image.Image) -> list[Any]:
    """Pillow's notes on the data not decoded yet: (codec, box, offset, arguments) each."""
    return getattr(image, "tile", [])


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    step = max(1, _BAND // image.width)
    if step >= image.height:
        yield slice(None), image
        return
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _rgb(band: Image.Image, key: Any, scale: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    """uint8 [h, W, 3] or [h, W, 1]; pixels of the colour `key` become `BACKGROUND`."""
    if band.mode == "La":
        band = band.convert("LA")  # Pillow drops the alpha on the straight way
    blended = band.mode in ("RGBA", "RGBa", "LA", "PA")
    if band.mode == "P" and band.palette:
        blended = "transparency" in band.info or band.palette.mode == "RGBA"
    if blended:
        colour = band if band.mode == "RGBA" else band.convert("RGBA")
        if colour.getchannel("A").getextrema() == (255, 255):
            return np.asarray(colour.convert("RGB"))
        canvas = Image.new("RGB", band.size, BACKGROUND)
        canvas.paste(colour, None, colour)
        return np.asarray(canvas)
    values = np.asarray(
        band.convert("L") if band.mode == "1" else band if scale or band.mode == "RGB" else band.convert("RGB")
    )
    if values.ndim == 2:
        rgb = (scale(values) if scale else values)[:, :, None]
        return rgb if key is None else np.where((values == key)[:, :, None], np.array(BACKGROUND, np.uint8), rgb)
    return (
        values
        if key is None
        else np.where((values == key).all(2, keepdims=True), np.array(BACKGROUND, np.uint8), values)
    )


def _transparent_colour(image: Image.Image) -> Any:
    """The one transparent value or colour as Pillow will show it, or None; to be asked before the picture is loaded.

    Pillow widens grey of 2 and 4 bits to 8 and narrows colour of 16 bits, but leaves the transparent value as stored.
    """
    colour = image.info.get("transparency")
    if colour is None or image.mode not in ("1", "L", "RGB", "I", "I;16"):
        return None
    raw = _tiles(image)[0][3] if _tiles(image) else ""
    if image.mode == "RGB":
        return np.array([value >> 8 if raw == "RGB;16B" else value & 255 for value in colour], np.uint8)
    if image.mode == "L":
        return {"L;2": (colour & 3) * 85, "L;4": (colour & 15) * 17}.get(str(raw), colour & 255)
    return colour


def _scale(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """The map from the numbers of mode I;16, I or F to uint8, by the rules at the top."""
    tags = getattr(image, "tag_v2", {})
    bits, kind = (value[0] if isinstance(value, tuple) else value for value in (tags.get(258, 16), tags.get(339, 1)))
    unsigned = image.mode == "I" and 258 in tags and kind == 1  # Pillow reads uint32 as int32
    low, high = 0.0, 2.0**bits - 1  # 12 bits in a TIFF
    if not image.mode.startswith("I;16"):
        arrays = (np.asarray(band) for _, band in _bands(image))
        limits = [(a.min(), a.max()) for a in (a.view(np.uint32) if unsigned else a for a in arrays)]
        least, most = float(min(low for low, _ in limits)), float(max(high for _, high in limits))
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ImageError("holds NaN or infinite values: replace them and save it again")
        known = (1, 255) if image.mode == "F" else (255, 65535)
        low, high = next(((0.0, float(top)) for top in known if least >= 0 and most <= top), (least, most))
    factor = 255 / (high - low) if high > low else 0.0

    def to_uint8(values: np.ndarray) -> np.ndarray:
        values = values.view(np.uint32) if unsigned else values
        grey = np.rint((values.astype(np.float64) - low) * factor).astype(np.uint8)
        return 255 - grey if tags.get(262) == 0 else grey  # TIFF's WhiteIsZero, which Pillow forgets beyond 8 bits

    return to_uint8


def _orientation(image: Image.Image) -> int:
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    with _quiet():
        try:
            value = image.getexif().get(274)
        except Exception:  # a damaged note about the camera doesn't damage the picture
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture upright, for EXIF's orientation; 5 to 8 swap the sides."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


_LOCK = threading.Lock()  # the warning filters belong to the whole process


def _renew_lock() -> None:
    """A forked worker must not wait for a thread that stayed behind in the parent."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings: what they warn of is either refused here or harmless."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _naming(source: Any, name: str | None) -> Iterator[None]:
    """Make every failure an `ImageError` of one line that begins with the name."""
    try:
        yield
    except Exception as error:
        if name is None:
            name = f"picture of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
        name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
        what = str(error) or type(error).__name__
        if isinstance(error, (UnidentifiedImageError, struct.error)):
            what = "begins like a picture, but its header is damaged or cut off: copy or download it again"
        elif not isinstance(error, ImageError):
            what = f"can't be decoded ({' '.join(what.split())[:160]}): replace or remove it"
        raise ImageError(f"{name}: {what}") from None
