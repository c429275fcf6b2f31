"""Inputs of a prediction, as a sequence of images: files, folders, CSV rows, URLs, arrays, and frames of a camera."""

import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import cv2
import numpy as np

from imgclf.data.folders import walk
from imgclf.data.pixel_csv import read_pixel_csv
from imgclf.data.samples import natural_key
from imgclf.errors import ConfigError, DataError, ImageError, one_line
from imgclf.fetch import fetch_image, is_url
from imgclf.images import unused_reason

__all__ = [
    "InputImage",
    "RemoteImage",
    "each_input",
    "is_array",
    "is_single",
    "list_inputs",
    "read_camera",
    "read_lines",
    "sample_inputs",
]

_READ_BYTES = 1 << 16  # about a thousand paths
_NO_IMAGES = (
    unused_reason(""),
    "video: ",
    "archive: ",
    "array: ",
)  # how reasons begin for files that hold no single image


class RemoteImage:
    """An image at a URL: `read` downloads it once, `release` frees its bytes."""

    def __init__(self, url: str, allow_private: bool = False, timeout_seconds: float = 20.0) -> None:
        self.url, self.allow_private, self.timeout_seconds = url, allow_private, timeout_seconds
        self._body: bytes | None = None

    def read(self) -> bytes:
        """Return the bytes at the URL; raises `ImageError`."""
        if self._body is None:
            self._body = fetch_image(self.url, allow_private=self.allow_private, timeout_seconds=self.timeout_seconds)
        return self._body

    def release(self) -> None:
        """Free the bytes, so that memory does not grow with the number of images."""
        self._body = None


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image to classify. `source`: a path, a `RemoteImage`, the bytes of a file, an image in memory, or the
    `ImageError` of an image that cannot be read; `true_class`: its class where the folder or the label names one.
    """

    name: str
    source: object
    true_class: str | None = None


def is_single(images: object) -> bool:
    """Return whether `images` is one image, not several."""
    if isinstance(images, str) and is_url(images):
        return True
    if isinstance(images, (str, os.PathLike)):
        return not os.path.isdir(images)  # noqa: PTH112, unlike a Path, never raises: a pasted line may be too long for a name
    if is_array(images):
        return int(images.ndim) <= 3  # type: ignore[attr-defined]
    return isinstance(images, bytes) or not isinstance(images, Iterable)


def is_array(images: object) -> bool:
    """Return whether it is a NumPy array or a tensor of torch; torch isn't loaded to find out."""
    torch = sys.modules.get("torch")
    return isinstance(images, np.ndarray) or (torch is not None and isinstance(images, torch.Tensor))


def each_input(images: object) -> Iterator[InputImage]:
    """Yield each of one or several images in order; a folder yields the images in it and below it."""
    if isinstance(images, (str, os.PathLike)):
        yield from _named_inputs(images)
    elif isinstance(images, Iterable) and not is_single(images):
        for number, image in enumerate(images):
            if isinstance(image, (str, os.PathLike)):
                yield from _named_inputs(image)
            else:
                yield InputImage(f"image {number}", image)
    else:
        yield InputImage("image 0", images)


def list_inputs(
    paths: Iterable[str],
    classes: Collection[str] = (),
    label_names: Mapping[str, str] | None = None,
    allow_private: bool = False,
    timeout_seconds: float = 20.0,
) -> list[InputImage]:
    """List the images of a command line: files, folders, CSV files of pixels, URLs.

    The true class of a file is the name of its folder, if `classes` has it; that of a CSV row is its label, translated by
    `label_names`. Only CSV files are read; a missing file or an empty folder becomes an input with an `ImageError`.
    """
    known, inputs = set(classes), []
    for path in paths:
        if is_url(path):
            inputs.append(InputImage(path, RemoteImage(path, allow_private, timeout_seconds)))
        elif path.lower().endswith(".csv"):
            inputs += _csv_inputs(Path(path), known, label_names or {})
        else:
            for image in _named_inputs(path):
                folder = Path(image.name).absolute().parent.name
                inputs.append(InputImage(image.name, image.source, folder if folder in known else None))
    return inputs


def sample_inputs(images: list[InputImage], count: int, seed: int) -> list[InputImage]:
    """Return `count` random images in their order, or all if there are fewer; depends on `seed` and their number only."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return [images[index] for index in sorted(chosen.tolist())]


def read_lines(stream: TextIO | None) -> Iterator[list[str]]:
    """Yield the paths and addresses on `stream` as they arrive, one per line: all those that can be read without waiting.

    Quotes, escaped spaces and `file://`, which terminals and file managers add, are taken off unless a file has such a name.
    """
    try:
        descriptor = stream.fileno() if stream else -1
    except OSError:  # a stream in memory
        yield [_as_path(line) for line in (stream or ()) if line.strip()]
        return
    rest, more = b"", descriptor >= 0
    while more:
        data = os.read(descriptor, _READ_BYTES)
        more = bool(data)
        *lines, rest = (rest + data).split(b"\n") if more else (rest, b"")
        if paths := [_as_path(os.fsdecode(line)) for line in lines if line.strip()]:
            yield paths


def _as_path(line: str) -> str:
    """Return the path or the address in a line that was typed, pasted or dropped onto a terminal."""
    line = line.rstrip("\r\n")
    text = line.strip()
    if os.path.exists(line):  # noqa: PTH110
        return line
    if len(text) > 2 and text[0] in ("'", '"') and text[-1] == text[0]:
        text = text[1:-1]
    if text.lower().startswith("file://"):
        return url2pathname(unquote(urlsplit(text.replace("#", "%23").replace("?", "%3F")).path))
    if is_url(text):
        return text
    plain = re.sub(r"\\(.)", r"\1", text)
    return os.path.expanduser(plain if os.path.exists(plain) else text)  # noqa: PTH110, PTH111


def read_camera(camera: str) -> Iterator[InputImage]:
    """Yield one frame per second of a camera ("0", "1", ...) or a video file, named by its time as MM:SS.

    Raises `ConfigError` if it cannot be opened or has no frames.
    """
    source = int(camera) if camera.isdecimal() else camera
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise ConfigError(f"--webcam {camera}: no such camera or video file; 0 is the first camera")
    last, began = -1, time.monotonic()
    try:
        while True:
            succeeded, frame = capture.read()
            if not succeeded:
                break
            # The time of a video file is its own; cameras do not always report one.
            is_file = isinstance(source, str)
            second = int(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 if is_file else time.monotonic() - began)
            if second != last:
                last = second
                yield InputImage(f"{second // 60:02d}:{second % 60:02d}", frame[:, :, ::-1].copy())
    finally:
        capture.release()
    if last < 0:
        raise ConfigError(f"--webcam {camera}: no frame could be read; pass another camera or video file")


def _named_inputs(path: str | os.PathLike[str]) -> Iterator[InputImage]:
    if isinstance(path, str) and is_url(path):
        yield InputImage(path, RemoteImage(path))
        return
    if isinstance(path, str) and not path.strip():  # as a `Path`, it would be the current folder
        yield InputImage(path, ImageError("an image's path is empty; pass a file, a folder or an address"))
        return
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112
        yield InputImage(str(path), path)
        return
    inputs = list(_folder_inputs(path))
    if not inputs:
        message = f"{path}: no images in this folder or below it; expected files such as .jpg or .png"
        inputs = [InputImage(str(path), ImageError(message))]
    yield from inputs


def _folder_inputs(path: Path) -> Iterator[InputImage]:
    """Yield the images in a folder and below it by their paths; formats that aren't read and broken links too, whose reader
    names them.
    """
    for folder in sorted(walk(path), key=lambda folder: Path(folder.path)):
        if folder.error:
            error = ImageError(f"{folder.path}: the folder can't be opened ({folder.error}); make it readable")
            yield InputImage(folder.path, error)
        for name in sorted([*folder.files, *folder.broken], key=natural_key):
            if not unused_reason(name).startswith(_NO_IMAGES):
                file = Path(folder.path, name)
                yield InputImage(str(file), file)


def _csv_inputs(path: Path, known: set[str], label_names: Mapping[str, str]) -> list[InputImage]:
    try:
        table = read_pixel_csv(path)
    except DataError as error:
        return [InputImage(str(path), ImageError(one_line(error)))]
    names = [label_names.get(label, label) for label in table.labels]
    return [
        InputImage(f"{path}:{line}", pixels, name if name in known else None)
        for line, pixels, name in zip(table.lines.tolist(), table.pixels, names, strict=True)
    ]
