"""`imgclf compare RUN...`: compare runs, and test whether the difference is significant."""

import sys
from collections.abc import Sequence
from pathlib import Path

from imgclf.console import CommandParser, print_table, run_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the runs, the best by validation first, and their differences; returns 2 for a folder without a run."""
    parser = CommandParser(prog="imgclf compare", description="Compare runs, the best by validation first.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run or of an evaluation")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write compare.csv and compare.png there")
    options = parser.parse_args(arguments)
    return run_command(lambda: _compare(options.runs, options.out))


def _compare(folders: Sequence[Path], out: Path | None) -> int:
    from imgclf.sweeps import compare_runs  # here: --help needs none of it

    comparison = compare_runs(folders)
    print_table(comparison.header, comparison.rows)
    for result in comparison.tests:
        print(result)
    if out:
        print(f"{out}: {' and '.join(comparison.write(out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
