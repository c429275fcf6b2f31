"""Predictions for images from a model. `Predictor` and the loaders resolve when used, because they load NumPy or torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.inference import inputs, writers
    from imgclf.inference.predictor import Predictor, load
    from imgclf.inference.torch_runner import load_imagenet

__all__ = ["Predictor", "inputs", "load", "load_imagenet", "writers"]


def __getattr__(name: str) -> object:
    if name not in ("Predictor", "load", "load_imagenet"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "torch_runner" if name == "load_imagenet" else "predictor"
    return getattr(import_module(f"{__name__}.{module}"), name)
