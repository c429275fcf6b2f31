"""One training image of each class, as a page shows it; found where the data of the training still lie."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgclf.errors import ImageError, ImgclfError

__all__ = ["ClassSamples"]

SIDE = 256  # pixels of the longer side
_TRIES = 5  # images of a class, of which the first that can be read is shown


class ClassSamples:
    """The samples of a model's classes, and the licence of its data set; both are looked for when first asked for.

    `licence` is the one that a model file holds; `metadata` names the data set, its folder and the settings that found its
    images. A folder that is gone, or that has other classes now, has no samples. So has a process without torch, which
    serves exported files alone: `imgclf.data` would load it, and an image isn't worth that.
    """

    def __init__(self, classes: Sequence[str], metadata: Any, licence: str | None = None) -> None:
        self.classes, self.metadata = tuple(classes), metadata
        self._lock = threading.Lock()
        self._images: dict[int, list[str | np.ndarray]] | None = None
        self._licence = licence
        self._jpegs: dict[int, bytes | None] = {}  # about 10 kB a class

    @property
    def licence(self) -> str | None:
        """Licence of the data set; None where it isn't known."""
        self._find()
        return self._licence

    def available(self) -> list[int]:
        """Return the indices of the classes that have images on disk."""
        return sorted(self._find())

    def read(self, index: int) -> bytes | None:
        """Return a JPEG of at most `SIDE` pixels of the class `index`; None where no image of it can be read."""
        if index not in self._jpegs:
            self._jpegs[index] = self._encode(index)
        return self._jpegs[index]

    def _encode(self, index: int) -> bytes | None:
        import cv2

        from imgclf.images import as_pixels, decode
        from imgclf.report.page import shrunk

        for image in self._find().get(index, []):
            try:
                pixels = decode(image) if isinstance(image, str) else as_pixels(image)
            except ImageError:
                continue
            _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(shrunk(pixels, SIDE)[:, :, ::-1]))
            return bytes(jpeg.tobytes())
        return None

    def _find(self) -> dict[int, list[str | np.ndarray]]:
        """Return the first few images of each class: paths, or pixels uint8 [S, S, C]."""
        with self._lock:
            if self._images is None:
                self._images = self._list() if _torch_is_loaded() else {}
            return self._images

    def _list(self) -> dict[int, list[str | np.ndarray]]:
        from imgclf.config import DatasetConfig
        from imgclf.data.datasets import build_data, datamodule_class

        trained, root = self.metadata.config, self.metadata.data.root
        self._licence = self._licence or datamodule_class(self.metadata.data.name).licence
        if not trained or not root or not os.path.isdir(root):  # noqa: PTH112, unlike a Path, never raises
            return {}
        try:
            dataset = DatasetConfig.from_dict(trained["dataset"])
            samples = build_data(dataset, root, int(trained["seed"]), empty_classes=True).samples["train"]
        except (ImgclfError, OSError, LookupError):  # the folder has changed since
            return {}
        found: dict[int, list[str | np.ndarray]] = {}
        for position, target in enumerate(samples.targets.tolist()):
            name = samples.classes[target]
            images = found.setdefault(self.classes.index(name), []) if name in self.classes else []
            if len(images) < _TRIES:
                pixels = samples.pixels
                images.append(
                    str(Path(root, samples.items[position])) if pixels is None else np.array(pixels[position])
                )
        return found


def _torch_is_loaded() -> bool:
    import sys

    return "torch" in sys.modules
