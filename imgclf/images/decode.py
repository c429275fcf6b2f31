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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL
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
from imgclf.images.colour import BACKGROUND, NUMERIC, stored_pixels
from imgclf.images.containers import check_png_length, check_tiff_layout, check_tiff_tags, png_core, sniff
from imgclf.images.cost import HEADER_BYTES, Metered, bytes_per_pixel
from imgclf.images.fitting import fit
from imgclf.images.orientation import orientation_of, turn
from imgclf.images.pillow import quiet
from imgclf.preprocess import Preprocess

__all__ = [
    "BACKGROUND",
    "DECODER",
    "MAX_BYTES",
    "MAX_MEMORY",
    "MAX_SIDE",
    "as_pixels",
    "decode",
    "describe",
    "read_image",
]

# Changes with every change of what the same file's pixels are: cached pixels are then made anew.
DECODER = f"1, Pillow {PIL.__version__}"
MAX_BYTES = 128 * 2**20  # a file
MAX_MEMORY = 300_000_000  # bytes that decoding one file may take; in pixels: see `bytes_per_pixel`
MAX_SIDE = 65_535  # pixels; decoders hold whole rows

Source = str | os.PathLike[str] | bytes

# Importing the plugins registers them; Image.open would import every format there is to find TIFF.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
_SMALL = 2**20  # bytes of a file that needs no special care


def decode(source: Source, name: str | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of a path or of a file's bytes, by the rules above.

    `name` is what the message of an `ImageError` begins with: the path where none is given.
    """
    with _naming(source, name):
        image, facts = _open(_read(source))
        pixels = stored_pixels(image)
        if "data" in facts:
            check_png_length(image, facts["data"])
        image.close()  # its memory goes before a turned copy is made
        return turn(pixels, facts["orientation"])


def read_image(source: Source, preprocess: Preprocess, name: str | None = None) -> np.ndarray:
    """uint8 [S, S, C]: `decode`, then `fit`."""
    return fit(decode(source, name), preprocess)


def describe(source: Source, name: str | None = None) -> dict[str, Any]:
    """What the header says, without decoding pixels: format, mode, width, height, frames, and `notes` in plain words.

    Width and height are those of `decode`'s result. Raises `ImageError` for every header that `decode` refuses.
    """
    with _naming(source, name):
        image, facts = _open(_read(source))
        with quiet():
            frames = facts.get("frames") or int(getattr(image, "n_frames", 1))
        turned = facts["orientation"] > 4
        height, width = image.size if turned else image.size[::-1]
        says = {
            f"animated or several pictures: only the first of {frames} is used": frames > 1,
            f"EXIF orientation {facts['orientation']} is applied": facts["orientation"] > 1,
            "transparent: laid over the background": "transparency" in image.info or image.mode[-1] in "Aa",
            f"{image.mode} values are scaled to 8 bits": image.mode.startswith(NUMERIC),
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
            return turn(stored_pixels(image), orientation_of(image))
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
            return stored_pixels(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
        return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


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


def _open(data: bytes) -> tuple[Image.Image, dict[str, Any]]:
    """The picture with its header read and its cost bounded, and facts that Pillow doesn't hold."""
    kind = sniff(data)
    facts: dict[str, Any] = {}
    if kind == "PNG":
        data, facts = png_core(data)
    elif kind == "TIFF":
        check_tiff_tags(data)
    # Below 1 MiB no header can hold enough to matter, and metering takes a tenth of a small JPEG's time.
    file = (
        Metered(data, math.inf if kind in ("TIFF", "WEBP") else HEADER_BYTES)
        if len(data) > _SMALL
        else io.BytesIO(data)
    )
    with quiet():
        image = Image.open(file, formats=(kind,))
    if isinstance(file, Metered):
        file.bytes_left = math.inf
    size = f"is {image.width} x {image.height} pixels"
    if kind == "PNG" and image.mode == "P" and not image.palette:
        raise ImageError("is a PNG of palette colours without its palette: copy or download it again")
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"{size}: at most {MAX_SIDE:,} a side are read, shrink it")
    area = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        area = max(area, check_tiff_layout(image))
    memory = 2 * len(data) + area * bytes_per_pixel(image, file)
    if memory > MAX_MEMORY:
        size += f", which take {memory / 1e6:,.0f} MB to decode as {image.format} {image.mode}"
        raise ImageError(f"{size}: at most {MAX_MEMORY / 1e6:,.0f} MB are spent, shrink it")
    facts["orientation"] = 1 if kind == "TIFF" else orientation_of(image)  # Pillow turns a TIFF while it loads
    return image, facts


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
