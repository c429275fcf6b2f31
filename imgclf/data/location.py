"""Where a data set lies; loads no torch, so that a folder that isn't there is told at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgclf.data import KNOWN
from imgclf.errors import DataError
from imgclf.files.atomic import cache_folder

__all__ = ["locate", "missing", "require_folder"]


def locate(name: str, data_dir: str | None) -> Path:
    """The folder of the data set `name`: `data_dir` ("demo": drawn on first use), else `$IMGCLF_DATA/<name>`, else where
    `imgclf.download` puts it.
    """
    if data_dir == "demo":
        from imgclf.demo.datasets import demo_folder  # here, because drawing takes more than finding

        return demo_folder(name)
    if data_dir:
        return Path(data_dir).expanduser().absolute()
    if root := os.environ.get("IMGCLF_DATA"):
        return Path(root).expanduser().absolute() / name
    return cache_folder() / "data" / name


def require_folder(settings: Mapping[str, Any]) -> None:
    """Raise `DataError` if the folder of `settings`' data set isn't there; what is in it others look at."""
    name, data_dir = settings["dataset"]["name"], settings["data_dir"]
    if data_dir != "demo" and not (root := locate(name, data_dir)).is_dir():
        state = "is a file" if root.exists() else "doesn't exist"
        raise DataError(missing(name, f"looked in {root}, which {state}"))


def missing(name: str, what: str, handle: str | None = None) -> str:
    """The message for data that isn't where it was looked for, with the ways on; `handle`: its name on Kaggle."""
    way = (
        f" Kaggle has it{f' as {handle}' * bool(handle)}: `python -m imgclf.download dataset={name}`."
        if name in KNOWN
        else ""
    )
    return f"{name}: {what}; pass data_dir=<folder> or set IMGCLF_DATA.{way} data_dir=demo needs no data."
