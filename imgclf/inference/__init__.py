"""Predictions for images from a checkpoint. `Predictor` and the loaders resolve when used, because they load torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.inference import inputs, writers
    from imgclf.inference.predictor import Predictor, load, load_imagenet

__all__ = ["Predictor", "inputs", "load", "load_imagenet", "writers"]


def __getattr__(name: str) -> object:
    if name not in ("Predictor", "load", "load_imagenet"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.predictor"), name)
