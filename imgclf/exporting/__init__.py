"""A checkpoint as files that answer without torch. `export_onnx` resolves when used, because it loads torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.exporting.onnx_file import export_onnx

__all__ = ["export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.onnx_file"), name)
