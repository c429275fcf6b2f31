"""`python -m imgclf.train dataset=cards model=mobilenetv3`: from a folder of pictures to a tested checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import is_sweep, output_folder, plain, run_app, task_overrides, trials_at_once
from imgclf.cli.malloc import keep_memory
from imgclf.data.location import require_folder
from imgclf.errors import ConfigError
from imgclf.sweep import conclude
from imgclf.sweeps.trials import run_trial
from imgclf.threads import cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> float | None:
    """Train, test and save as `config` says; returns the best validation metric, which is what a sweep maximises.

    Raises `ImgclfError` for whatever the user can mend.
    """
    settings = plain(config)
    if settings["report"] is None and is_sweep():
        settings["report"] = False
    if is_sweep():
        if settings["find"]:
            raise ConfigError(f"find={settings['find']}: comes before a sweep, not in one; leave out -m")
        at_once = trials_at_once()
        threads = max(1, cores() // (at_once if at_once > 0 else cores())) if at_once else None
        return run_trial(
            settings, output_folder(), task_overrides(), log=bool(at_once and at_once != 1), threads=threads
        )
    if not settings["resume"]:
        require_folder(settings)
    keep_memory()
    if settings["find"]:
        from imgclf.training.lr_finder import find  # here, because these load torch

        find(settings, output_folder())
        return None
    from imgclf.training.run import train

    return train(settings, output_folder(), task_overrides())


if __name__ == "__main__":
    run_app("train", main, conclude)
