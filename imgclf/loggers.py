"""Experiment trackers by name; imgclf's own `history.csv` is written whatever is chosen here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from imgclf.errors import ConfigError

__all__ = ["build_logger"]


def build_logger(settings: Mapping[str, Any], folder: Path) -> Logger | bool:
    """The tracker that `settings["logger"]["name"]` names, writing below `folder`; False for none.

    Raises `ConfigError` for an unknown name or one whose package isn't installed.
    """
    name = (settings.get("logger") or {}).get("name", "none")
    if name == "none":
        return False
    if name == "csv":  # version "": no version_N folder, as a run has its own
        return CSVLogger(folder, name="csv", version="")
    if name == "tensorboard":
        try:
            return TensorBoardLogger(folder, name="tensorboard", version="")
        except ModuleNotFoundError:
            raise ConfigError("logger=tensorboard: `pip install tensorboard` first") from None
    raise ConfigError(f"logger.name={name!r}: expected none, csv or tensorboard")
