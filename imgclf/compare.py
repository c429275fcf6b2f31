"""`imgclf compare RUN...`: compare runs, and test whether the difference is significant."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imgclf.console import CommandParser, make_console, print_table, print_text, run_command
from imgclf.errors import DataError
from imgclf.files.run_folder import find_run

__all__ = ["main"]

EPILOG = """
examples:
  imgclf compare outputs/cards_v2 latest
  imgclf compare outputs/cards_v* --out comparison
  imgclf compare latest outputs/evaluate/2026-11-26_18-00-00
"""
WIDE = 160  # columns where stdout is not a terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the runs, the best by validation first, and their differences.

    Returns 2 for a folder without a run, and where no two of several runs have the same data.
    """
    parser = CommandParser(
        prog="imgclf compare",
        description="Compare runs on the same data, the best by validation first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or an evaluation, checkpoint, or latest"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write compare.csv and compare.png there")
    options = parser.parse_args(arguments)
    return run_command(lambda: _compare(options.runs, options.out))


def _compare(names: Sequence[str], out: Path | None) -> int:
    from imgclf.sweeps.comparison import compare_runs, write_comparisons  # here: --help needs none of it

    comparisons = compare_runs([find_run(name) for name in names])
    console = make_console(WIDE)
    for comparison in comparisons:
        print_text(comparison.title)
        print_table(["run", "validation (95 %)", "test (95 %)", "epochs"], comparison.results)
        if comparison.keys:
            rows = [["setting", *comparison.names], *comparison.settings]
            if len(comparison.keys) < len(comparison.runs):  # the narrower way round
                rows = [list(column) for column in zip(*rows, strict=True)]
            print_table(rows[0], rows[1:])
        for name in comparison.untested:
            console.print(f"{name} was not tested: it is compared by its validation alone", markup=False)
        for result in comparison.tests:
            console.print(str(result), markup=False)
    if out:
        print_text(f"{out}: {' and '.join(write_comparisons(comparisons, out))}")
    if len(comparisons) > 1:
        first, *others = comparisons
        reasons = "; ".join(dict.fromkeys(first.difference(other) for other in others))
        if all(len(comparison.runs) == 1 for comparison in comparisons):
            raise DataError(f"these runs can't be compared: {reasons}")
        console.print(f"runs in different tables can't be compared: {reasons}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
