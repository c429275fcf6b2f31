"""Check a data set: decode every image, find problems, write check.json and check.html; changes none of the data's files."""

import json
import time
from pathlib import Path

from rich.table import Table
from rich.text import Text

from imgclf.config import CheckConfig
from imgclf.console import make_console, progress_bar, silence_library_logs
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import build_data
from imgclf.data.manifest import relative_paths
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import require_unused
from imgclf.quality.findings import Report, examine
from imgclf.quality.page import check_page, shown_images
from imgclf.quality.scan import scan

__all__ = ["check_before_training", "check_data"]

# Unreadable and stray files that the console names; check.json names all.
LISTED = 20


def check_data(config: CheckConfig, folder: Path) -> int:
    """Check the data set of `config`, write check.json and check.html into `folder`, and print the findings.

    Returns 0 for clean and 1 for findings. Raises `DataError`, `ConfigError`, `RunError`.
    """
    began = time.perf_counter()
    silence_library_logs()
    require_unused(folder)
    report = _check(build_data(config.dataset, config.data_dir, config.seed), folder, config.workers)
    _print_report(report)
    print(f"checked in {time.perf_counter() - began:.0f} s, written to {folder}", flush=True)
    return 0 if report["clean"] else 1


def check_before_training(data: ImageDataModule, folder: Path) -> None:
    """Check the data of a run, write check.json and check.html into its `folder`, and print one line."""
    report = _check(data, folder, None)
    findings = [f"{finding['title'].lower()} ({finding['images']:,} images)" for finding in report["findings"]]
    advice = f"; dataset.exclude={folder / 'check.json'} leaves {len(report['exclude']):,} out"
    print(f"check: {', '.join(findings) or 'clean'}{advice if report['exclude'] else ''}", flush=True)


def _check(data: ImageDataModule, folder: Path, workers: int | None) -> Report:
    with progress_bar("checking", sum(len(samples) for samples in data.samples.values())) as advance:
        report = examine(data, scan(list(data.samples.values()), workers, advance))
    # A file name that is not valid text holds lone surrogates; JSON and readers take their escapes.
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "check.json", text.encode("utf-8", "backslashreplace"))
    rows: dict[tuple[str, str], int] = {}
    for split, samples in data.samples.items():
        rows |= {(split, path): row for row, path in enumerate(relative_paths(samples.items, data.root))}
    images = {key: data.image(key[0], rows[key]) for key in shown_images(report)}
    write_atomically(folder / "check.html", check_page(report, images).encode("utf-8", "backslashreplace"))
    return report


def _print_report(report: Report) -> None:
    console = make_console()
    counts = ", ".join(f"{sum(values.values()):,} {split}" for split, values in report["counts"].items())
    console.print(Text(f"{report['name']}: {counts}; {len(report['classes'])} classes; from {report['root']}"))
    for note in report["notes"]:
        console.print(Text(f"note: {note['text']}"))
    for finding in report["findings"]:
        groups = [group for group in finding["groups"] if "message" in group]
        for group in groups[:LISTED]:
            path = group["images"][0]["path"]
            console.print(Text(f"{finding['kind']}: {path}: {group['message']}"))
        if len(groups) > LISTED:
            console.print(f"{finding['kind']}: and {len(groups) - LISTED:,} more, see check.json")
    if report["findings"] or report["near"]:
        console.print(_table(report))
    if report["clean"]:
        console.print("clean")
    else:
        console.print(f"dataset.exclude=<the check.json of this folder> leaves {len(report['exclude']):,} images out")


def _table(report: Report) -> Table:
    table = Table()
    table.add_column("finding", overflow="fold")
    for column in ("groups", "images", "excluded"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("example", overflow="fold")
    for finding in (*report["findings"], *report["near"]):
        example = " = ".join(image["path"] for image in finding["groups"][0]["images"][:2])
        numbers = (len(finding["groups"]), finding["images"], finding["excluded"])
        # Text, because a folder named "[red]" is a name and not markup.
        table.add_row(Text(finding["title"]), *(f"{number:,}" for number in numbers), Text(example))
    return table
