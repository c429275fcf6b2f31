"""`python -m imgclf.check dataset=cards`: what is wrong with a data set, before anything is trained on it."""

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

    Raises `DataError`, `ConfigError` when it can't be checked, which exits with 2.
    """
    settings = to_dict(config)
    require_folder(settings)
    from imgclf.quality.run import check_data  # here, because it loads torch

    return check_data(settings, output_folder())


if __name__ == "__main__":
    sys.exit(max(run_app("check", main), default=0))
