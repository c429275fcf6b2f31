"""`python -m imgclf.train dataset=cards model=mobilenetv3`: from a folder of pictures to a tested checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import is_sweep, output_folder, run_app, task_overrides, to_dict, trials_at_once
from imgclf.cli.malloc import tune_malloc
from imgclf.config import RunConfig
from imgclf.data.location import require_folder
from imgclf.errors import ConfigError
from imgclf.sweeps import finish_sweep, run_trial
from imgclf.threads import available_cpus

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> float | None:
    """Train, test and save as `config` says; returns the best validation metric, which is what a sweep maximises.

    Raises `ImgclfError` for whatever the user can mend.
    """
    settings = to_dict(config)
    if settings["report"] is None and is_sweep():
        settings["report"] = False
    if is_sweep():
        if settings["find"]:
            raise ConfigError(f"find={settings['find']}: comes before a sweep, not in one; leave out -m")
        at_once = trials_at_once()
        threads = max(1, available_cpus() // (at_once if at_once > 0 else available_cpus())) if at_once else None
        log = bool(at_once and at_once != 1)
        return run_trial(RunConfig.from_dict(settings), output_folder(), task_overrides(), log=log, threads=threads)
    if not settings["resume"]:
        require_folder(settings)
    tune_malloc()
    if settings["find"]:
        from imgclf.training.lr_finder import find  # here, because these load torch

        find(settings, output_folder())
        return None
    from imgclf.training.run import train

    return train(settings, output_folder(), task_overrides())


if __name__ == "__main__":
    run_app("train", main, finish_sweep)
