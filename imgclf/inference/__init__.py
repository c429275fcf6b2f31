"""Predictions for images from a checkpoint. `Predictor` and the loaders resolve when used, because they load torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.inference import inputs, writers
    from imgclf.inference.imagenet import load_imagenet
    from imgclf.inference.predictor import Predictor, load

__all__ = ["Predictor", "inputs", "load", "load_imagenet", "writers"]
_MODULES = {"Predictor": "predictor", "load": "predictor", "load_imagenet": "imagenet"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
