"""`imgclf sweep SWEEP_DIR`: rank the trials of a sweep by validation."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imgclf.console import CommandParser, run_command

__all__ = ["main"]

EPILOG = """
Writes sweep.csv and sweep.html there; data_size.png too, where trials differ in
dataset.fraction. A sweep ends with this by itself.

examples:
  imgclf sweep outputs/rates
  imgclf sweep outputs/multirun/2026-11-26_18-00-00
  imgclf sweep outputs/rates > ranking.txt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the leaderboard and the best trial, and write CSV and HTML; returns 2 for a folder without a sweep."""
    parser = CommandParser(
        prog="imgclf sweep",
        description="Rank the trials of a sweep by validation, during the sweep or after it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="hydra.sweep.dir of `imgclf train -m`")
    options = parser.parse_args(arguments)
    return run_command(lambda: _rank(options.folder))


def _rank(folder: Path) -> int:
    from imgclf.sweeps import write_leaderboard  # here: --help needs none of it

    write_leaderboard(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
