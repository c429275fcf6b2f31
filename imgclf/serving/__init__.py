"""An HTTP service for trained classifiers: Starlette and uvicorn, batches across requests, bounded memory.

Names resolve when they are used, because Starlette is an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.serving.app import build_app
    from imgclf.serving.models import ServedModel
    from imgclf.serving.server import bind, serve
    from imgclf.serving.settings import ServeSettings

__all__ = ["ServeSettings", "ServedModel", "bind", "build_app", "serve"]

_HOMES = {
    "ServeSettings": "settings",
    "ServedModel": "models",
    "bind": "server",
    "build_app": "app",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
