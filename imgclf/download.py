"""`imgclf download dataset=cards`: download a data set from Kaggle to the folder that training reads."""

from imgclf.cli.hydra_app import run_app
from imgclf.config import DownloadConfig
from imgclf.console import print_text
from imgclf.errors import ConfigError

__all__ = ["main"]


def main(config: DownloadConfig) -> None:
    """Download the chosen data set and print its folder; raise `ConfigError` for one without a Kaggle handle."""
    from imgclf.data.datasets import datamodule_class  # here, because it loads torch
    from imgclf.fetch import download_dataset

    name = config.dataset.name
    datamodule = datamodule_class(name)
    if datamodule.handle is None:
        raise ConfigError(f"dataset={name}: no Kaggle handle is known for it; pass data_dir=<its folder> to train")
    print_text(f"{name}: {datamodule.handle} on Kaggle, licence {datamodule.licence}")
    print_text(f"{name} is in {download_dataset(name, datamodule.handle)}")


if __name__ == "__main__":
    run_app("download", main)
