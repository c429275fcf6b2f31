"""`imgclf evaluate outputs/run split=test`: the metrics of a model on a split of data."""

from imgclf.cli.hydra_app import output_folder, run_app, task_overrides
from imgclf.config import EvaluateConfig
from imgclf.files.run_folder import find_checkpoint
from imgclf.malloc import tune_malloc

__all__ = ["main"]


def main(config: EvaluateConfig) -> float:
    """Evaluate a checkpoint on a split and write the results into the run folder; return the accuracy.

    Raises `CheckpointError`, `DataError`, `ConfigError`.
    """
    tune_malloc()
    find_checkpoint(config.checkpoint)  # before torch is loaded: a wrong path is answered at once
    from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint  # here, because it loads torch

    return evaluate_checkpoint(config, output_folder(), task_overrides())


if __name__ == "__main__":
    run_app("evaluate", main, positional="checkpoint")
