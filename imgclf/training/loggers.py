"""Experiment trackers by name; imgclf's own `history.csv` is written whatever is chosen here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from imgclf.errors import ConfigError

__all__ = ["build_logger"]

NAMES = ("none", "csv", "tensorboard", "mlflow", "wandb")


def build_logger(settings: Mapping[str, Any], folder: Path) -> Logger | bool:
    """The tracker that `settings["logger"]` names and describes; False for none. What isn't for all runs together lies below
    `folder`. Raises `ConfigError` for an unknown name or one whose package isn't installed.
    """
    options = dict(settings.get("logger") or {"name": "none"})
    name = options.pop("name", "none")
    if name not in NAMES:
        raise ConfigError(f"logger.name={name!r}: expected one of {', '.join(NAMES)}")
    if name == "none":
        return False
    label = str(folder).rpartition("outputs/")[2].strip("/")  # as people call a run
    try:
        if name == "csv":  # version "": no version_N folder, as a run has its own
            return CSVLogger(folder, name="csv", version="", **options)
        if name == "tensorboard":
            return TensorBoardLogger(folder, name="tensorboard", version="", **options)
        if name == "mlflow":
            uri = options.pop("uri", None) or f"sqlite:///{Path('outputs').absolute() / 'mlflow.db'}"
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            return MLFlowLogger(tracking_uri=uri, run_name=label, artifact_location=str(folder / "mlflow"), **options)
        return WandbLogger(name=label, save_dir=folder, **options)
    except ModuleNotFoundError:
        raise ConfigError(f'logger={name}: `pip install "imgclf[{name}]"` first') from None
    except TypeError as error:
        raise ConfigError(f"logger: {' '.join(str(error).split())[:200]}") from None
