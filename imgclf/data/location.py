"""Where a data set lies; loads no torch, so that a missing folder is reported at once."""

import os
from pathlib import Path

from imgclf.config import KNOWN
from imgclf.errors import DataError

__all__ = ["locate", "missing", "require_folder"]


def locate(name: str, data_dir: str | None) -> Path:
    """Return the folder of the data set `name`: `data_dir` ("demo": drawn on first use), else `$IMGCLF_DATA/<name>`, else
    where `imgclf download` puts it.
    """
    if data_dir == "demo":
        from imgclf.demo import demo_folder  # here, because drawing takes more than locating

        return demo_folder(name)
    if data_dir:
        return Path(data_dir).expanduser().absolute()
    if root := os.environ.get("IMGCLF_DATA"):
        return Path(root).expanduser().absolute() / name
    from imgclf.fetch import destination  # here, because it loads the HTTP client

    return destination(name)


def require_folder(name: str, data_dir: str | None) -> None:
    """Raise `DataError` if the folder of the data set doesn't exist; its contents are not examined."""
    if data_dir != "demo" and not (root := locate(name, data_dir)).is_dir():
        state = "is a file" if root.exists() else "doesn't exist"
        raise DataError(missing(name, f"looked in {root}, which {state}"))


def missing(name: str, problem: str, handle: str | None = None) -> str:
    """Return the message for data that isn't where it was looked for, with the ways out; `handle`: its name on Kaggle."""
    kaggle = (
        f" Kaggle has it{f' as {handle}' * bool(handle)}: `imgclf download dataset={name}`." if name in KNOWN else ""
    )
    ways = "pass data_dir=<folder> (a data module in Python: root=<folder>)"
    if name not in KNOWN:
        return f"{name}: {problem}; {ways}"
    elsewhere = "" if os.environ.get("IMGCLF_DATA") else " or set IMGCLF_DATA"
    return f"{name}: {problem}; {ways}{elsewhere}.{kaggle} With demo as the folder, images are drawn."
