"""`imgclf resume RUN`: continue a run with its own settings, as `imgclf train resume=RUN` does."""

import shutil
import sys
import textwrap

from imgclf.cli.hydra_app import output_folder, run_app, task_overrides
from imgclf.config import RunConfig
from imgclf.console import run_command
from imgclf.malloc import tune_malloc

__all__ = ["main"]

HELP = """Continue a run with its own settings, from its newest checkpoint.

usage: imgclf resume RUN [key=value ...]

RUN is the run's folder, its newest checkpoint, or latest (the newest run that
finished here).

Examples:
  imgclf resume outputs/cards_v3
  imgclf resume latest trainer.max_epochs=20
  imgclf resume outputs/cards_v3 trainer=cpu

Of the settings only these may change:
"""


def main(config: RunConfig) -> float | None:
    """Continue the run that `config.resume` names; return its best validation metric.

    Raises `ImgclfError` for any mistake that the user can correct.
    """
    tune_malloc()
    from imgclf.training.run import train  # here, because it loads torch

    return train(config, output_folder(), task_overrides())


_COLUMN = 32  # where the sentences begin


def _print_help() -> int:
    """Print the help, with the sentence of each setting that may change."""
    sentences = {name: str(item.metadata["help"]).removesuffix(".") for name, item in RunConfig.walk()}
    changeable = {"trainer": "Where it trains: trainer=cpu"}
    changeable |= {key: sentences[key] for key in RunConfig.keys_with("on_resume")}
    width = max(60, min(120, shutil.get_terminal_size().columns))
    print(HELP, end="")
    for key, sentence in changeable.items():
        left = f"  {key} ".ljust(_COLUMN)
        print(textwrap.fill(sentence, width, initial_indent=left, subsequent_indent=" " * _COLUMN))
    return 0


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(run_command(_print_help))
    run_app("train", main, positional="resume")
