"""`python -m imgclf.download dataset=cards`: download a data set from Kaggle to the folder that training reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import run_app, to_dict
from imgclf.errors import ConfigError
from imgclf.fetch import download_dataset

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Download the chosen data set and print its folder; raise `ConfigError` for one without a Kaggle handle."""
    name = to_dict(config)["dataset"]["name"]
    from imgclf.data import datamodule_class  # here, because it loads torch

    datamodule = datamodule_class(name)
    if datamodule.handle is None:
        raise ConfigError(f"dataset={name}: no Kaggle handle is known for it; pass data_dir=<its folder> to train")
    print(f"{name}: {datamodule.handle} on Kaggle, licence {datamodule.licence}")
    print(f"{name} is in {download_dataset(name, datamodule.handle)}")


if __name__ == "__main__":
    run_app("download", main)
