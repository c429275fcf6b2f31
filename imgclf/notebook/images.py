"""Images of a data set as figures: a batch as the network sees it, and samples of each class."""

from typing import TYPE_CHECKING

import numpy as np

from imgclf.errors import ConfigError
from imgclf.report.grid import Tile, class_rows_figure, grid_figure
from imgclf.report.page import shrunk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imgclf.data.datamodule import ImageDataModule

__all__ = ["show_batch", "show_classes"]

_SIDE = 112  # pixels of a sample in a row of its class


def show_batch(data: "ImageDataModule", n: int = 9) -> "Figure":
    """Return a figure of the first `n` images of the first epoch, augmented and scaled as the network sees them."""
    _check(n)
    loader = data.loader("train", shuffle="epoch", training=True)
    chosen = loader.permutation(0)[:n]
    names = [data.classes[target] for target in loader.samples.targets[chosen].tolist()]
    return grid_figure([Tile(image, name) for image, name in zip(loader.images(0, chosen), names, strict=True)])


def show_classes(data: "ImageDataModule", n: int = 6) -> "Figure":
    """Return a figure with a row of `n` training images for each class, from its first file to its last, unchanged."""
    _check(n)
    loader = data.loader("train")
    rows = []
    for target, name in enumerate(data.classes):
        members = np.flatnonzero(loader.samples.targets == target)
        chosen = members[np.linspace(0, len(members) - 1, min(n, len(members))).astype(np.int64)]
        rows.append((name, [shrunk(image, _SIDE) for image in loader.images(0, chosen)]))
    return class_rows_figure(rows)


def _check(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n={n}: expected the number of images to show, at least 1")
