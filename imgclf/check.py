"""`imgclf check dataset=cards`: find the problems of a data set before training on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import output_folder, run_app, to_dict
from imgclf.data.location import require_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> int:
    """Check a data set, and write check.json and check.html into the run folder; returns 0 for clean, 1 for findings.

    Raises `DataError` and `ConfigError` when the check is impossible, which exits with 2.
    """
    settings = to_dict(config)
    require_folder(settings)
    from imgclf.quality import check_data  # here, because it loads torch

    return check_data(settings, output_folder())


if __name__ == "__main__":
    sys.exit(max(run_app("check", main), default=0))
