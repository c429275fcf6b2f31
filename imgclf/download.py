"""`python -m imgclf.download dataset=cards`: a data set from Kaggle to where training looks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import run_app, to_dict
from imgclf.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Fetch the chosen data set and say where it is; raises `ConfigError` for one that Kaggle isn't known to have."""
    name = to_dict(config)["dataset"]["name"]
    from imgclf.data import datamodule_class  # here, because it loads torch
    from imgclf.fetch.kaggle import download_dataset

    facts = datamodule_class(name)
    if facts.handle is None:
        raise ConfigError(f"dataset={name}: no Kaggle handle is known for it; pass data_dir=<its folder> to train")
    print(f"{name}: {facts.handle} on Kaggle, licence {facts.licence}")
    print(f"{name} is in {download_dataset(name, facts.handle)}")


if __name__ == "__main__":
    run_app("download", main)
