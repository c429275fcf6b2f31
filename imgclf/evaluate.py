"""`python -m imgclf.evaluate checkpoint=best.ckpt split=test`: the numbers that the run had, from the file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgclf.cli.hydra_app import output_folder, run_app, task_overrides, to_dict
from imgclf.cli.malloc import tune_malloc

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["main"]


def main(config: DictConfig) -> float:
    """Measure a checkpoint on a split and write the numbers into the run folder; returns the accuracy.

    Raises `CheckpointError`, `DataError`, `ConfigError`.
    """
    settings = {**to_dict(config), "typed": task_overrides()}
    tune_malloc()
    from imgclf.inference.evaluate_checkpoint import evaluate  # here, because it loads torch

    return evaluate(settings, output_folder())


if __name__ == "__main__":
    run_app("evaluate", main)
