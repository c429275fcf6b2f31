"""Images of a data set to look at: a few that can be read, a batch as the network sees it, and samples of each class."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imgclf.data.loader import Loader, LoaderOptions
from imgclf.errors import ConfigError, DataError, ImageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imgclf.data.datamodule import ImageDataModule

__all__ = ["draw_readable", "show_batch", "show_classes"]

_SIDE = 112  # pixels of a sample in a row of its class
_TRIES = 50  # images of a class that may be unreadable before its row stays short

Pixels = NDArray[np.uint8]


def draw_readable(
    read: Callable[[int], Pixels], indices: Iterable[int], count: int
) -> tuple[dict[int, Pixels], dict[int, str]]:
    """Read images in the order of `indices` until there are `count`; one that can't be read is replaced by the next.

    Returns {index: image} and, of those that can't be read, {index: reason}.
    """
    images: dict[int, Pixels] = {}
    errors: dict[int, str] = {}
    for index in indices:
        if len(images) == count or len(errors) == _TRIES:
            break
        try:
            images[index] = read(index)
        except ImageError as error:
            errors[index] = str(error)
    return images, errors


def show_batch(data: "ImageDataModule", n: int = 9) -> "Figure":
    """Return a figure of the first `n` images of the first epoch, augmented and scaled as the network sees them.

    Raises `ImageError` for one that can't be read, as training does.
    """
    from imgclf.figures.grid import Tile, grid_figure  # here, because it loads matplotlib

    _check(n)
    loader = data.loader("train", shuffle="epoch", training=True)
    chosen = loader.permutation(0)[:n]
    names = [data.classes[target] for target in loader.samples.targets[chosen].tolist()]
    try:
        images = loader.images(0, chosen)
    except ImageError as error:
        raise ImageError(f"{error}; `imgclf check` lists all such files, and writes what leaves them out") from None
    return grid_figure([Tile(image, name) for image, name in zip(images, names, strict=True)])


def show_classes(data: "ImageDataModule", n: int = 6) -> "Figure":
    """Return a figure with a row of `n` training images for each class, from its first file to its last, unchanged.

    Instead of an image that can't be read another one is drawn. Raises `DataError` if none can be read.
    """
    from imgclf.figures.grid import class_rows_figure  # here, because it loads matplotlib

    _check(n)
    data.setup()
    train, rows = data.samples["train"], []
    reasons: list[str] = []
    loader = Loader(train, replace(data.preprocess, size=min(data.preprocess.size, _SIDE)), LoaderOptions())
    for target, name in enumerate(data.classes):
        members = np.flatnonzero(train.targets == target)
        spread = np.linspace(0, len(members) - 1, min(n, len(members))).astype(np.int64)
        order = np.concatenate([members[spread], np.delete(members, spread)]).tolist()
        images, errors = draw_readable(lambda index: loader.images(0, np.array([index]))[0], order, n)
        rows.append((name, [images[index] for index in sorted(images)]))
        reasons += errors.values()
    if not any(images for _, images in rows):
        raise DataError(f"{reasons[0]}; no image that was tried can be read; `imgclf check` lists all such files")
    return class_rows_figure(rows)


def _check(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n={n}: expected the number of images to show, at least 1")
