"""Two things that Pillow keeps to itself: its warnings, and its notes on data that aren't decoded yet."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

__all__ = ["quiet", "tiles"]

_LOCK = threading.Lock()  # the warning filters belong to the whole process


def _renew_lock() -> None:
    """A forked worker must not wait for a thread that stayed behind in the parent."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: what they warn of is either refused here or harmless."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tiles(image: Image.Image) -> list[Any]:
    """Pillow's notes on the data not decoded yet: (codec, box, offset, arguments) each."""
    return getattr(image, "tile", [])
