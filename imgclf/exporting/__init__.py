"""A checkpoint as files that answer without torch. Names resolve when used, because they load torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgclf.errors import require_package

if TYPE_CHECKING:
    from imgclf.exporting.onnx_file import export_onnx
    from imgclf.exporting.run import export_checkpoint, export_model

__all__ = ["export_checkpoint", "export_model", "export_onnx", "require_packages"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "onnx_file" if name == "export_onnx" else "run"
    return getattr(import_module(f"{__name__}.{module}"), name)


def require_packages() -> None:
    """Raise `ConfigError` where a package of the extra `export` isn't installed; loads none of them."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, "export", "export")
