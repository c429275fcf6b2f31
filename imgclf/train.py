"""`imgclf train dataset=cards model=mobilenetv3`: from a folder of images to an evaluated checkpoint."""

from dataclasses import replace

from imgclf.cli.hydra_app import is_sweep, output_folder, run_app, task_overrides, trials_at_once
from imgclf.cli.malloc import tune_malloc
from imgclf.config import RunConfig
from imgclf.data.location import require_folder
from imgclf.errors import ConfigError
from imgclf.sweeps import finish_sweep, run_trial
from imgclf.threads import available_cpus

__all__ = ["main"]


def main(config: RunConfig) -> float | None:
    """Train, evaluate and save as `config` says; return the best validation metric, which a sweep optimises.

    Raises `ImgclfError` for any mistake that the user can correct.
    """
    if is_sweep():
        return _train_trial(config)
    if not config.resume:
        require_folder(config.dataset.name, config.data_dir)
    tune_malloc()
    if config.find:
        from imgclf.training.lr_finder import find  # here, because these load torch

        find(config, output_folder())
        return None
    from imgclf.training.run import train

    return train(config, output_folder(), task_overrides())


def _train_trial(config: RunConfig) -> float | None:
    """Train one trial of a sweep in a process of its own; trials that run at the same time share the cores."""
    if config.find:
        raise ConfigError(f"find={config.find}: use it before a sweep, not in one; leave out -m")
    at_once, cpus = trials_at_once(), available_cpus()
    threads = max(1, cpus // (at_once if at_once > 0 else cpus)) if at_once else None
    config = replace(config, report=bool(config.report))
    return run_trial(config, output_folder(), task_overrides(), log=bool(at_once and at_once != 1), threads=threads)


if __name__ == "__main__":
    run_app("train", main, finish_sweep)
