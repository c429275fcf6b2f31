"""Checking a data set: decode all, find what is wrong, and write it down; no file of the user's is changed."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from imgclf.console import make_console, progress_bar, silence_library_logs
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.exclusion import relative_paths
from imgclf.errors import ConfigError
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import require_unused
from imgclf.quality.findings import examine
from imgclf.quality.page import check_page, shown_images
from imgclf.quality.scan import scan
from imgclf.training.build import build_data

__all__ = ["check_before_training", "check_data"]

LISTED = 20  # unreadable and stray files that the console names; check.json names all


def check_data(settings: Mapping[str, Any], folder: Path) -> int:
    """Check `settings["dataset"]`, write check.json and check.html into `folder`, and print what was found.

    Returns 0 for clean and 1 for findings. Raises `DataError`, `ConfigError`, `RunError`.
    """
    began = time.perf_counter()
    silence_library_logs()
    require_unused(folder)
    workers = settings["workers"]
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ConfigError(f"workers={workers!r}: expected null or a whole number of at least 0")
    data = build_data(settings)
    report = _check(data, folder, workers)
    _print_report(report)
    print(f"checked in {time.perf_counter() - began:.0f} s; everything is in {folder}", flush=True)
    return 0 if report["clean"] else 1


def check_before_training(data: ImageDataModule, folder: Path) -> None:
    """Check the data of a run, write check.json and check.html into its `folder`, and print one line."""
    report = _check(data, folder, None)
    found = ", ".join(f"{finding['pictures']:,} {finding['title']}" for finding in report["findings"])
    rest = f"; dataset.exclude={folder / 'check.json'} leaves {len(report['exclude']):,} out" * bool(report["exclude"])
    print(f"check: {found or 'clean'}{rest}", flush=True)


def _check(data: ImageDataModule, folder: Path, workers: int | None) -> dict[str, Any]:
    with progress_bar("checking", sum(len(samples) for samples in data.samples.values())) as advance:
        report = examine(data, scan(list(data.samples.values()), workers, advance))
    # A file name that is no text holds lone surrogates; their escapes are what JSON and a reader can take.
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "check.json", text.encode("utf-8", "backslashreplace"))
    rows = {(split, path): row for split, samples in data.samples.items()
            for row, path in enumerate(relative_paths(samples.items, data.root))}  # fmt: skip
    images = {key: data.picture(key[0], rows[key]) for key in shown_images(report)}
    write_atomically(folder / "check.html", check_page(report, images).encode("utf-8", "backslashreplace"))
    return report


def _print_report(report: Mapping[str, Any]) -> None:
    console = make_console(120)
    counts = ", ".join(f"{sum(values.values()):,} {split}" for split, values in report["counts"].items())
    console.print(Text(f"{report['name']}: {counts}; {len(report['classes'])} classes; from {report['root']}"))
    for note in report["notes"]:
        console.print(Text(f"note: {note['text']}"))
    for finding in report["findings"]:
        groups = [group for group in finding["groups"] if "message" in group]
        for group in groups[:LISTED]:
            path = group["pictures"][0]["path"]
            console.print(Text(f"{finding['kind']}: {path}: {group['message']}"))
        if len(groups) > LISTED:
            console.print(f"{finding['kind']}: and {len(groups) - LISTED:,} more, see check.json")
    if report["findings"] or report["near"]:
        console.print(_table(report))
    if report["clean"]:
        console.print("clean")
    else:
        console.print(f"dataset.exclude=<the check.json of this folder> leaves {len(report['exclude']):,} pictures out")


def _table(report: Mapping[str, Any]) -> Table:
    table = Table()
    table.add_column("found", overflow="fold")
    for column in ("groups", "pictures", "excluded"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("such as", overflow="fold")
    for finding in (*report["findings"], *report["near"]):
        some = " = ".join(picture["path"] for picture in finding["groups"][0]["pictures"][:2])
        numbers = (len(finding["groups"]), finding["pictures"], finding["excluded"])
        # Text, because a folder named "[red]" is a name and not markup.
        table.add_row(Text(finding["title"]), *(f"{number:,}" for number in numbers), Text(some))
    return table
