"""Data checks: unreadable files, duplicates, leaks between splits, odd files and classes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.quality.notes import quick_notes
    from imgclf.quality.run import check_before_training, check_data

__all__ = ["check_before_training", "check_data", "quick_notes"]


def __getattr__(name: str) -> object:
    """Load a name on its first use: `check_data` needs torch, and the worker processes of a scan do not."""
    if name not in __all__:
        raise AttributeError(f"module 'imgclf.quality' has no attribute {name!r}")
    module = "notes" if name == "quick_notes" else "run"
    return getattr(import_module(f"imgclf.quality.{module}"), name)
