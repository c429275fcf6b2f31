"""`imgclf check dataset=cards`: find the problems of a data set before training on it."""

import sys
from collections.abc import Sequence

from imgclf.cli.data_words import config_folder
from imgclf.cli.hydra_app import output_folder, run_app, task_overrides
from imgclf.config import CheckConfig
from imgclf.data.location import require_folder

__all__ = ["main"]


def main(config: CheckConfig) -> int:
    """Check a data set, and write check.json and check.html into the run folder; return 0 for clean, 1 for findings.

    Raises `DataError` and `ConfigError` when the check is impossible, which exits with 2.
    """
    require_folder(config.dataset.name, config.data_dir)
    from imgclf.quality import check_data  # here, because it loads torch

    return check_data(config, output_folder(), [*config_folder(sys.argv), *_words_of_data(task_overrides())])


def _words_of_data(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that name the data: a training takes them too."""
    own = ("workers", "quick", "hydra", "dataset.exclude")
    return [word for word in overrides if not word.lstrip("+~").startswith(own)]


if __name__ == "__main__":
    # Hydra knows no flags of ours.
    sys.argv[1:] = ["quick=true" if word == "--quick" else word for word in sys.argv[1:]]
    sys.exit(max(run_app("check", main), default=0))
