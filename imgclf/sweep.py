"""`python -m imgclf.sweep SWEEP_DIR`: the trials of a sweep, ranked by validation."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgclf.console import print_table, run_command

if TYPE_CHECKING:
    from imgclf.sweeps.leaderboard import Leaderboard

__all__ = ["finish_sweep", "main", "write_leaderboard"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the leaderboard, and write it as CSV and HTML; returns 2 for a folder that is no sweep."""
    parser = argparse.ArgumentParser(
        prog="imgclf.sweep", description="Rank the trials of a sweep by validation, while it runs or when it has ended.",
        epilog="Writes sweep.csv and sweep.html there; data_size.png too, where trials differ in dataset.fraction.")  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="SWEEP_DIR", help="the hydra.sweep.dir of `imgclf.train -m`")
    options = parser.parse_args(arguments)
    return run_command(lambda: write_leaderboard(options.folder))


def finish_sweep(folder: Path) -> int:
    """What a sweep ends with: its leaderboard, if there is a trial to rank; returns how many failed."""
    from imgclf.files.run_folder import find_trials

    trials = find_trials(folder)
    if trials:
        write_leaderboard(folder)
    return sum(record.state == "failed" for _, record in trials)


def write_leaderboard(folder: Path) -> int:
    """Print and write the leaderboard of the sweep in `folder`, as it stands now; raises `DataError` for no trials."""
    from imgclf.files.atomic import write_atomically
    from imgclf.report.page import sweep_page
    from imgclf.sweeps.leaderboard import facts, read_sweep  # here: --help needs none of it

    board = read_sweep(folder)
    _print(board)
    write_atomically(folder / "sweep.csv", _csv(board))
    write_atomically(folder / "sweep.html", sweep_page(facts(board)))
    written = ["sweep.csv", "sweep.html"]
    if board.sizes:
        from imgclf.report.curves import plot_sizes  # here, because it loads matplotlib

        plot_sizes(board.sizes, folder / "data_size.png")
        written.append("data_size.png")
    print(f"{folder}: {', '.join(written)}", flush=True)
    return 0


def _print(board: Leaderboard) -> None:
    keys = [key for key in board.keys if key != "seed"]
    several = len({standing.entries[0].dataset for standing in board.standings}) > 1
    if board.standings:
        print_table(
            ["", *keys, "validation", "test", "epochs", "seconds"],
            [[str(rank + 1), *(standing.choices.get(key, "-") for key in keys), standing.validation, standing.test,
              "/".join(dict.fromkeys(str(entry.epochs) for entry in standing.entries)),
              f"{sum(entry.record.seconds for entry in standing.entries):.0f}"]
             for rank, standing in enumerate(board.standings)])  # fmt: skip
        print(
            f"ranked by {board.metric}{', each data set by itself' * several}; the test column is for the one that is chosen"
        )
    for entry in board.entries:
        if not entry.finished:
            why = f": {entry.record.error}" if entry.record.error else ""
            print(f"{entry.record.state}, {entry.epochs} epochs: {entry.folder.name}{why}")


def _csv(board: Leaderboard) -> str:
    """A row a trial, the best first, those that aren't finished last."""
    place = {entry.folder: rank for rank, standing in enumerate(board.standings) for entry in standing.entries}
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    measured = [
        (split, name) for split in ("val", "test") for name in ("accuracy", "loss", "macro_f1", "correct", "count")
    ]
    writer.writerow(["rank", "folder", "state", *board.keys, "value",
                     *(f"{split}_{name}" for split, name in measured), "epochs", "seconds", "error"])  # fmt: skip
    for entry in sorted(board.entries, key=lambda entry: place.get(entry.folder, len(place))):
        metrics = entry.run.metrics if entry.run else {}
        writer.writerow([
            place[entry.folder] + 1 if entry.folder in place else "", entry.folder.name, entry.state,
            *(entry.choices.get(key, "") for key in board.keys), "" if entry.record.value is None else entry.record.value,
            *(metrics.get(split, {}).get(name, "") for split, name in measured), entry.epochs,
            round(entry.record.seconds, 1), entry.record.error or "",
        ])  # fmt: skip
    return lines.getvalue()


if __name__ == "__main__":
    sys.exit(main())
