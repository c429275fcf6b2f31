"""`imgclf train dataset=cards model=mobilenetv3`: from a folder of images to an evaluated checkpoint.

In Python, `imgclf.train("dataset=cards", "model=mobilenetv3", seed=1)` does the same: this module can be called.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from imgclf.cli.hydra_app import (
    is_sweep,
    output_folder,
    run_app,
    runs_in_threads,
    task_overrides,
    trial_label,
    trial_name,
    trials_at_once,
)
from imgclf.cli.python_call import compose_run
from imgclf.config import RunConfig
from imgclf.console import print_message
from imgclf.data.location import require_folder
from imgclf.errors import ConfigError
from imgclf.malloc import tune_malloc
from imgclf.signals import Interrupted, Signals
from imgclf.sweeps import finish_sweep, run_trial, start_search, start_server
from imgclf.threads import available_cpus

if TYPE_CHECKING:
    from imgclf.inference.run import Run

__all__ = ["main"]


def main(config: RunConfig) -> float | Callable[[Signals], float | None] | None:
    """Train, evaluate and save as `config` says; return the best validation metric, which a sweep optimises, or where trials
    run in threads the function that trains this one.

    Raises `ImgclfError` for any mistake that the user can correct.
    """
    if is_sweep():
        return _train_trial(config)
    return _train(config, output_folder(), task_overrides())


def _train(config: RunConfig, folder: Path, overrides: list[str]) -> float | None:
    if not config.resume:
        require_folder(config.dataset.name, config.data_dir)
    tune_malloc()
    if config.find:
        from imgclf.training.lr_finder import find  # here, because these load torch

        find(config, folder)
        return None
    from imgclf.training.run import train

    return train(config, folder, overrides)


def _train_trial(config: RunConfig) -> float | Callable[[Signals], float | None] | None:
    """Train one trial of a sweep in a process of its own; trials that run at the same time share the cores, and have no
    live progress.
    """
    if config.find:
        raise ConfigError(f"find={config.find}: use it before a sweep, not in one; leave out -m")
    at_once, cpus = trials_at_once(), available_cpus()
    threads = max(1, cpus // (at_once if at_once > 0 else cpus)) if at_once else None
    config = replace(config, report=bool(config.report))
    alone = at_once in (None, 1)
    name, label = trial_name(), trial_label()
    train_it = partial(run_trial, config, output_folder(), task_overrides(), name, label, threads=threads, live=alone)
    if not runs_in_threads():
        return train_it()
    start_server()  # here, because a thread can't keep signals from it
    return lambda signals: train_it(signals=signals)


class _Callable(ModuleType):
    """This module as a function: a function of the same name in the package would be replaced by the first import of it."""

    def __call__(self, *words: str, **settings: object) -> "Run":
        """Train in this process as `imgclf train <words>` does, and return the `Run`.

        `words`: `"dataset=cards"`, `"trainer.max_epochs=3"`, `"hydra.run.dir=outputs/mine"`; `settings`: the same as keywords,
        for keys without a dot, such as `data_dir="images"`. Raises `ImgclfError` for a mistake that the user can correct, and
        `KeyboardInterrupt` when Ctrl-C or a notebook's stop button ended the run: its checkpoint is written then, and
        `imgclf.train(resume=<run folder>)` continues it.
        """
        config, folder, overrides = compose_run(words, settings)
        if config.find:
            raise ConfigError(f"find={config.find} trains no run; use it on the command line: imgclf train find=...")
        try:
            _train(config, folder, overrides)
        except Interrupted as stop:
            if stop.signum != signal.SIGINT:  # the process was asked to end, not only the run
                print_message(str(stop))
                signal.raise_signal(stop.signum)
            raise KeyboardInterrupt(str(stop)) from None
        from imgclf.inference.run import Run  # here, because it loads torch

        return Run(folder)


if __name__ == "__main__":
    run_app("train", main, finish_sweep, before_search=start_search)
else:
    sys.modules[__name__].__class__ = _Callable
    train = cast(_Callable, sys.modules[__name__])
