"""Decode a file or its bytes to uint8 RGB pixels: strict, of bounded cost, the same for training and prediction.

JPEG (of an MPO the first image), PNG, WebP, GIF, BMP and TIFF are read, AVIF and JPEG 2000 where Pillow has their decoders,
and HEIC where pillow-heif is installed; all are recognised by content and never by file name. Any other or damaged file
raises an `ImageError` of one line that begins with the file's name. The pixels:

orientation   EXIF's 1-8 is applied in every format that has it; EXIF that can't be read counts as 1
transparency  blended over `BACKGROUND`: alpha, a palette's tRNS, one transparent colour, the area around a GIF's first frame
animation     the first frame
16-bit grey   value * 255 / 65535, rounded; with `bits`, value * 255 / (2**bits - 1), at most 255
16-bit colour keeps its high bytes, as in Pillow
32-bit grey   0-255 unchanged, else 0-65535 as 16-bit grey, else stretched from the image's minimum to its maximum
float grey    0-1 times 255, else 0-255 unchanged, else stretched in the same way; NaN and infinity are refused
size          above 300 MB of memory, a JPEG is read at 1/2, 1/4 or 1/8 of its size, the largest that takes less
ICC profiles  ignored, as in the pipelines that trained the pretrained weights; Pillow converts CMYK, YCCK and LAB to RGB

The checksums of a PNG are verified, and only the chunks that make pixels reach Pillow, so that compressed text can't fill
the memory. JPEG has no checksum: a flipped bit in its data gives wrong pixels, and only a missing end is detected.
"""

import io
import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from imgclf.errors import ImageError
from imgclf.images import formats
from imgclf.images.pixels import (
    NUMERIC,
    Pixels,
    apply_orientation,
    fit,
    ignore_warnings,
    largest_value,
    orientation_of,
    to_rgb,
)
from imgclf.names import printable
from imgclf.preprocess import Preprocess

__all__ = [
    "MAX_BYTES",
    "Description",
    "FileStart",
    "as_pixels",
    "decode",
    "describe",
    "peak",
    "read_image",
    "read_start",
]

# Of a file.
MAX_BYTES = 128 * 2**20
# Bytes of a file whose header needs no meter.
_SMALL = 2**20

# Formats whose headers Pillow reads apart from the pixels.
_METERED = ("BMP", "GIF", "JPEG", "PNG")

# Importing a plugin registers it; otherwise Image.open would import all of Pillow's to find TIFF.
for _plugin in ("Avif", "Bmp", "Gif", "Jpeg2K", "Png", "Tiff", "WebP"):
    import_module(f"PIL.{_plugin}ImagePlugin")

Source: TypeAlias = str | os.PathLike[str] | bytes


class Description(TypedDict):
    """Header of an image; width and height are those of the decoded pixels, `notes` say how decoding changes them."""

    format: str
    mode: str
    width: int
    height: int
    frames: int
    notes: list[str]


class FileStart(NamedTuple):
    """Format of an image file by content, its size in bytes, and its first bytes."""

    format: str
    size: int
    data: bytes


class _Opened(NamedTuple):
    """Image with its header read and its cost checked, at 1/`divisor` of its size; `png` is the file as Pillow got it."""

    image: ImageFile.ImageFile
    orientation: int
    png: formats.StrippedPNG | None
    divisor: int


def decode(source: Source, name: str | None = None, bits: int = 16) -> Pixels:
    """uint8 [H, W, 3] of a path or of a file's bytes, by the rules above.

    Messages of an `ImageError` begin with `name`, or with the path. `bits` are those of 16-bit grey that are used: see
    `Preprocess`.
    """
    with _named_errors(source, name):
        image, orientation, png, _ = _open(_read(source))
        pixels = to_rgb(image, bits)
        if png:
            formats.check_png(image, png.chunks)
        # Frees the image's memory before its pixels are copied.
        image.close()
        return apply_orientation(pixels, orientation)


def read_image(source: Source, preprocess: Preprocess, name: str | None = None) -> Pixels:
    """uint8 [S, S, C]: `decode`, then `fit`."""
    return fit(decode(source, name, preprocess.bits), preprocess)


def peak(source: Source, name: str | None = None) -> int | None:
    """Largest number of a 16-bit grey image, 0 to 65535; None for all other images. Raises `ImageError` as `decode`."""
    with _named_errors(source, name):
        return largest_value(_open(_read(source)).image)


def describe(source: Source, name: str | None = None) -> Description:
    """Read the header alone; raises `ImageError` for every header that `decode` refuses."""
    with _named_errors(source, name):
        image, orientation, png, divisor = _open(_read(source))
        frames = png.frames if png and png.frames else _count_frames(image)
        width, height = image.size if orientation <= 4 else image.size[::-1]
        notes = {
            f"animated or several images: only the first of {frames} is used": frames > 1,
            "its later images are damaged: only the first is used": not frames,
            f"too large to decode whole: read at 1/{divisor} of its size": divisor > 1,
            f"EXIF orientation {orientation} is applied": orientation > 1,
            "transparent: blended over the background": "transparency" in image.info or image.mode[-1] in "Aa",
            f"{image.mode} values are scaled to 8 bits": image.mode.startswith(NUMERIC),
            f"{image.mode} colours are converted to RGB": image.mode in ("CMYK", "LAB", "YCbCr"),
            "its ICC profile is ignored": "icc_profile" in image.info or (png is not None and png.has_profile),
        }
        return Description(
            format=str(image.format),
            mode=image.mode,
            width=width,
            height=height,
            frames=max(1, frames),
            notes=[note for note, applies in notes.items() if applies],
        )


def _count_frames(image: ImageFile.ImageFile) -> int:
    """Images in a file; 0 where those behind the first, which decoding never reads, are damaged."""
    try:
        with _named_errors(b"", ""), ignore_warnings():
            return int(getattr(image, "n_frames", 1))
    except ImageError:
        return 0


def read_start(path: str | os.PathLike[str], count: int = 4096) -> FileStart:
    """Read the first `count` bytes alone; raises `ImageError` for an empty file, one too large, and any other format."""
    with _named_errors(path, None):
        data, size = _read_file(path, count)
        _check_size(size)
        return FileStart(formats.sniff(data), size, data)


def as_pixels(image: Any, bits: int = 16) -> Pixels:
    """uint8 [H, W, 3] of an image in memory: a PIL image, by the rules of `decode`, a NumPy array or a torch tensor.

    Arrays are [H, W] or [H, W, C], tensors [H, W] or [C, H, W], with C of 1, 3 or 4; uint8, or floats from 0 to 1.
    Anything else raises `ImageError`.
    """
    with _named_errors(b"", f"image of type {type(image).__name__}"):
        if isinstance(image, Image.Image):
            return apply_orientation(to_rgb(image, bits), orientation_of(image))
        if hasattr(image, "detach") and hasattr(image, "numpy"):  # a tensor, recognised without importing torch
            array = np.asarray(image.detach().cpu().numpy())
            array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        elif isinstance(image, np.ndarray):
            array = image
        else:
            raise ImageError("expected a PIL image, a NumPy array or a torch tensor")
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
            raise ImageError(f"has shape {tuple(image.shape)}: expected one grey, RGB or RGBA image")
        if array.dtype.kind == "f":
            if not (array.min() >= 0 and array.max() <= 1):  # NaN fails here too
                raise ImageError(f"has floats from {array.min():g} to {array.max():g}: expected 0 to 1, not normalised")
            array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
        if array.dtype != np.uint8:
            raise ImageError(f"has type {array.dtype}: expected uint8, or floats from 0 to 1")
        if array.shape[2] == 4:
            return to_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def _read(source: Source) -> bytes:
    data, size = (source, len(source)) if isinstance(source, bytes) else _read_file(source)
    _check_size(size)
    return data


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"has {size / 2**20:,.0f} MiB: at most {MAX_BYTES / 2**20:,.0f} are read, save it smaller")


def _read_file(path: str | os.PathLike[str], count: int = MAX_BYTES + 1) -> tuple[bytes, int]:
    """A regular file's first bytes, none of a file that is too large, and its size; never waits for a FIFO's writer."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(os.fspath(path), flags)
    except OSError as error:
        raise ImageError(f"can't be opened ({error.strerror}): expected an image file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "device, pipe or socket"
            raise ImageError(f"is a {kind}: expected an image file")
        data = b"" if status.st_size > MAX_BYTES else os.read(descriptor, min(count, status.st_size + 1))
        return data, max(status.st_size, len(data))
    finally:
        os.close(descriptor)


def _open(data: bytes) -> _Opened:
    """Read the header, and check what decoding will cost."""
    kind = formats.sniff(data)
    png = None
    if kind == "PNG":
        png = formats.strip_png(data)
        data = png.data
    elif kind == "TIFF":
        formats.check_tiff(data)
        formats.silence_libtiff()
    elif kind == "HEIF":
        _register_heif()
    # Below 1 MiB no header can hold enough to matter, and metering takes a tenth of a small JPEG's time.
    file = io.BytesIO(data)
    if len(data) > _SMALL:
        file = formats.MeteredBytes(data, formats.HEADER_BYTES if kind in _METERED else math.inf)
    with ignore_warnings():
        # Image.open refuses 179 megapixels and more, which are not too many for a JPEG that is scaled.
        image = JpegImagePlugin.jpeg_factory(file) if kind == "JPEG" else Image.open(file, formats=(kind,))
    if isinstance(file, formats.MeteredBytes):
        file.bytes_left = math.inf
    if kind == "PNG" and image.mode == "P" and not image.palette:
        raise ImageError("is a PNG of palette colours without its palette: copy or download it again")
    if png:
        image.info.update(png.info)
    divisor = formats.check_cost(image, data)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    # Pillow turns a TIFF upright while it loads.
    return _Opened(image, 1 if kind == "TIFF" else orientation_of(image), png, divisor)


@cache
def _register_heif() -> None:
    """Let Pillow open HEIC with pillow-heif, which applies its own turns and crops."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


@contextmanager
def _named_errors(source: Source, name: str | None) -> Iterator[None]:
    """Raise every failure as an `ImageError` of one line that begins with the name."""
    try:
        yield
    except Exception as error:
        if name is None:
            name = f"image of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
        what = str(error) or type(error).__name__
        if isinstance(error, (UnidentifiedImageError, SyntaxError, struct.error)):
            what = "begins like an image, but its header is damaged or cut off: copy or download it again"
        elif not isinstance(error, ImageError):
            what = f"can't be decoded ({' '.join(what.split())[:160]}): replace or remove it"
        raise ImageError(f"{printable(name)}: {what}") from None
