"""Networks: backbone, head, `ImageModel`, weights, the checkpoint's format and engines. Names load torch when used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.models import checkpoint, engine, weights
    from imgclf.models.image_model import ImageModel, load_image_model

__all__ = ["ImageModel", "checkpoint", "engine", "load_image_model", "weights"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("ImageModel", "load_image_model"):
        return getattr(import_module("imgclf.models.image_model"), name)
    return import_module(f"imgclf.models.{name}")
