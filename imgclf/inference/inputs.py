"""What people hand over to be classified, one by one: files, folders, rows of a CSV, web addresses, arrays."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgclf.data.layouts import list_images
from imgclf.data.pixel_csv import read_pixel_csv
from imgclf.errors import DataError, ImageError
from imgclf.fetch import fetch_image, is_url

__all__ = ["Picture", "RemoteImage", "each_input", "is_one", "list_inputs", "sample_inputs"]


class RemoteImage:
    """A picture behind a web address; `read` fetches it once, and `forget` lets its bytes go."""

    def __init__(self, url: str, allow_private: bool = False, timeout_seconds: float = 20.0) -> None:
        self.url, self.allow_private, self.timeout_seconds = url, allow_private, timeout_seconds
        self._body: bytes | None = None

    def read(self) -> bytes:
        """The bytes at the address; raises `ImageError`."""
        if self._body is None:
            self._body = fetch_image(self.url, allow_private=self.allow_private, timeout_seconds=self.timeout_seconds)
        return self._body

    def forget(self) -> None:
        """Thousands of pictures must not gather in memory."""
        self._body = None


@dataclass(frozen=True, eq=False)
class Picture:
    """`source`: a path, a `RemoteImage`, an image in memory, or the `ImageError` that came in its place; `true`: its class, where
    that is known.
    """

    name: str
    source: Any
    true: str | None = None


def is_one(pictures: Any) -> bool:
    """Whether this is one picture, not many."""
    if isinstance(pictures, str) and is_url(pictures):
        return True
    if isinstance(pictures, (str, os.PathLike)):
        return not Path(pictures).is_dir()
    if isinstance(pictures, (np.ndarray, torch.Tensor)):
        return pictures.ndim <= 3
    return isinstance(pictures, bytes) or not isinstance(pictures, Iterable)


def each_input(pictures: Any) -> Iterator[Picture]:
    """One or many, in order; a folder stands for the pictures in it and below it."""
    if isinstance(pictures, (str, os.PathLike)):
        yield from _named(pictures)
    elif is_one(pictures):
        yield Picture("picture 0", pictures)
    else:
        for number, picture in enumerate(pictures):
            if isinstance(picture, (str, os.PathLike)):
                yield from _named(picture)
            else:
                yield Picture(f"picture {number}", picture)


def list_inputs(words: Iterable[str], classes: Collection[str] = (), label_names: Mapping[str, str] | None = None,
                  allow_private: bool = False, timeout_seconds: float = 20.0) -> list[Picture]:  # fmt: skip
    """What the words of a command line mean: files, folders, CSV files of pixels, web addresses. A file's class is known
    where the folder that holds it is called like one of `classes`, a row's by its label, or by what `label_names` makes
    of that. Nothing is opened but CSV files; what isn't there has an error as its source.
    """
    known, found = set(classes), []
    for word in words:
        if is_url(word):
            found.append(Picture(word, RemoteImage(word, allow_private, timeout_seconds)))
        elif word.lower().endswith(".csv"):
            found += _rows(Path(word), known, label_names or {})
        else:
            for picture in _named(word):
                folder = Path(picture.name).absolute().parent.name
                found.append(Picture(picture.name, picture.source, folder if folder in known else None))
    return found


def sample_inputs(pictures: list[Picture], count: int, seed: int) -> list[Picture]:
    """`count` of them at random, or all if there are no more, in their order; a function of `seed` and how many there are."""
    chosen = np.random.default_rng(seed).permutation(len(pictures))[:count]
    return [pictures[index] for index in sorted(chosen.tolist())]


def _named(path: str | os.PathLike[str]) -> Iterator[Picture]:
    if isinstance(path, str) and is_url(path):
        yield Picture(path, RemoteImage(path))
        return
    path = Path(path)
    if not path.is_dir():
        yield Picture(str(path), path)
        return
    folders = [path, *sorted(folder for folder in path.rglob("*") if folder.is_dir())]
    files = [file for folder in folders for file in list_images(folder)]
    if not files:
        message = f"{path}: no pictures in this folder or below it; expected files such as .jpg or .png"
        yield Picture(str(path), ImageError(message))
    yield from (Picture(str(file), file) for file in files)


def _rows(path: Path, known: set[str], label_names: Mapping[str, str]) -> list[Picture]:
    try:
        table = read_pixel_csv(path)
    except DataError as error:
        return [Picture(str(path), ImageError(re.sub(r"\s+", " ", str(error))))]
    names = [label_names.get(label, label) for label in table.labels]
    return [
        Picture(f"{path}:{line}", pixels, name if name in known else None)
        for line, pixels, name in zip(table.lines.tolist(), table.pixels, names, strict=True)
    ]
