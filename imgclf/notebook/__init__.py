"""Runs and data sets as a notebook works with them. Names resolve lazily, because they load torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.notebook.images import show_batch, show_classes
    from imgclf.notebook.run import Run, open_run

__all__ = ["Run", "open_run", "show_batch", "show_classes"]

_HOMES = {"Run": "run", "open_run": "run"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'images')}"), name)
