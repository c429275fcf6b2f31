"""`python -m imgclf.compare RUN...`: which of several runs is best, in what they differ, and whether it can be chance."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgclf.console import print_table, run_command

if TYPE_CHECKING:
    from imgclf.sweeps.comparison import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the runs, the best by validation first, and what sets them apart; returns 2 for a folder that is no run."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _compare(options.runs, options.out))


def _compare(chosen: Sequence[Path], out: Path | None) -> int:
    from imgclf.sweeps.comparison import differing, duels, read_run  # here: --help needs none of it

    folders = list(dict.fromkeys(folder.absolute() for folder in chosen))
    names = _names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    runs.sort(key=lambda run: (run.validation is None, -(run.validation or 0.0)))
    keys = differing(runs)
    print_table(["run", "validation", "test", "epochs", *keys], _rows(runs, keys))
    for duel in duels(runs):
        verdict = "they differ" if duel.p < 0.05 else "the difference may be chance"
        print(f"{duel.first} : {duel.second} on the same {duel.count:,} test pictures: {duel.only_first} only the first "
              f"got right, {duel.only_second} only the second; p = {duel.p:.3g} (McNemar, exact), {verdict}")  # fmt: skip
    if out:
        _write(runs, keys, out)
    return 0


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names without what they have in common."""
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath(folders))
    return [str(folder.relative_to(common)) if folder != common else folder.name for folder in folders]


def _rows(runs: Sequence[Run], keys: Sequence[str]) -> list[list[str]]:
    """A row a run: name, validation, test, epochs, then the settings in which they differ."""
    return [
        [run.name, run.said("val"), run.said("test"), str(len(run.history) or "-"),
         *("-" if (value := run.settings.get(key)) is None else str(value) for key in keys)]
        for run in runs
    ]  # fmt: skip


def _write(runs: Sequence[Run], keys: Sequence[str], folder: Path) -> None:
    """compare.csv, and compare.png with all curves of validation, in `folder`."""
    from imgclf.files.atomic import write_atomically
    from imgclf.report.curves import plot_runs

    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["run", "validation", "test", "epochs", *keys])
    writer.writerows(_rows(runs, keys))
    write_atomically(folder / "compare.csv", lines.getvalue())
    curves = [(run.name, run.history) for run in runs if run.history]
    if curves:
        plot_runs(curves, folder / "compare.png")
    print(f"{folder}: compare.csv{' and compare.png' if curves else ''}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imgclf.compare", description="Compare runs, the best by validation first.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, or of an evaluation")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write compare.csv and compare.png there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
