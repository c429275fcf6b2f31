"""Check a data set: decode its images, find problems, write check.json and check.html; changes none of the data's files."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from imgclf.config import CheckConfig
from imgclf.console import (
    print_line,
    print_lines_to_copy,
    print_text,
    progress_bar,
    shell_joined,
    shell_quoted,
    silence_library_logs,
)
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import build_data
from imgclf.data.manifest import relative_paths
from imgclf.errors import DataError, ImageError
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import require_unused
from imgclf.files.trial_record import read_record
from imgclf.images import decode
from imgclf.names import as_json
from imgclf.quality.findings import EARLIER, Finding, Report, data_key, examine, verdict
from imgclf.quality.page import SIDE, Shown, check_page, shown_images
from imgclf.quality.quick import draw_samples, quick_scan
from imgclf.quality.scan import Scan, scan
from imgclf.report.page import shrunk
from imgclf.schema import quoted

__all__ = ["check_before_training", "check_data"]

# Unreadable and stray files, and groups of duplicates, that the console names; check.json names all.
LISTED, EXAMPLES = 20, 3


def check_data(config: CheckConfig, folder: Path, words: Sequence[str] = ()) -> int:
    """Check the data set of `config`, write check.json and check.html into `folder`, and print the findings.

    `words` are those of the command line that name the data. Returns 0 for clean and 1 for findings. Raises `DataError`,
    `ConfigError`, `RunError`.
    """
    began = time.perf_counter()
    silence_library_logs()
    require_unused(folder)
    data = build_data(config.dataset, config.data_dir, config.seed, empty_classes=True)
    splits = list(data.samples.values())
    with progress_bar("checking", sum(map(len, splits))) as advance:
        scanned = quick_scan(splits, advance) if config.quick else scan(splits, config.workers, advance)
    report = _write(data, scanned, folder, _command(words, folder.absolute()))
    _print_report(report)
    print_text(f"checked in {time.perf_counter() - began:.0f} s\n")
    lines = {"page": (folder / "check.html").absolute().as_uri()}
    if report["exclude"]:
        here, absolute = Path.cwd(), folder.absolute()
        lines["exclude"] = _command(words, absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
    print_lines_to_copy(lines)
    return 1 if report["findings"] else 0


def check_before_training(
    data: ImageDataModule, folder: Path, exclude: bool = False, first_process: bool = True
) -> list[str] | None:
    """Check the data of a run, write check.json and check.html into its `folder`, and print what was found.

    Files that can't be read raise `DataError`, unless `exclude`: then all files to leave out are returned, for
    `dataset.exclude`. Of several processes of a run only the first prints.
    """
    place, report = _shared_check(data, folder, first_process)
    unreadable = [entry for entry in report["exclude"] if entry["why"] == "unreadable"]
    findings = [finding for finding in report["findings"] if finding["kind"] != "unreadable"]
    lines = []
    if unreadable:
        names = [entry["path"] for entry in unreadable]
        shown = names if len(names) <= 3 else names[:2]
        more = f" and {len(names) - 2:,} more" if len(names) > 3 else ""
        problem = f"check: {len(names):,} file{'s' * (len(names) > 1)} can't be read"
        if not exclude:
            raise DataError(
                f"{problem}: {', '.join(shown)}{more}; pass check=exclude to train without them, or repair them "
                f"({place / 'check.html'} shows all findings)"
            )
        verb = "are" if len(names) > 1 else "is"
        lines.append(f"{problem} and {verb} left out: {', '.join(shown)}{more}")
    if findings or not unreadable:
        texts = [f"{finding['title'].lower()} ({finding['images']:,} images)" for finding in findings]
        lines.append(f"check: {', '.join(texts) or 'clean'}")
    for line in lines if first_process else ():
        print_line(line)
    others = sum(entry["why"] not in ("unreadable", EARLIER) for entry in report["exclude"])
    if others and first_process:
        print_text(f"check: {others:,} of these would be left out by\n  {_command((), place.absolute())}")
    left = [entry for entry in report["exclude"] if entry["why"] in ("unreadable", EARLIER)]
    return [f"{entry['split']}:{entry['path']}" for entry in left] if exclude and left else None


def _shared_check(data: ImageDataModule, folder: Path, shown: bool) -> tuple[Path, Report]:
    """Return the check of a run's data, and the folder that has it: the run's, or one that all trials of a sweep share.

    The first process that comes makes the check while others wait for it; where it dies, the next one does.
    """
    key = data_key(data)
    place = folder.parent / f"check_{key[:8]}" if read_record(folder) else folder
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".check.lock"):
        try:
            known: Report = json.loads((place / "check.json").read_text(encoding="utf-8"))
            if known["key"] == key and not _repaired(known):
                return place, known
        except (OSError, ValueError, TypeError, KeyError):
            pass  # none of this data
        splits = list(data.samples.values())
        with progress_bar("checking", sum(map(len, splits)), shown=shown) as advance:
            scanned = scan(splits, None, advance)
        return place, _write(data, scanned, place, _command((), place.absolute()))


def _repaired(report: Report) -> bool:
    """Return whether an unreadable file can be read now: a disk that failed changes no file."""
    for entry in report["exclude"]:
        if entry["why"] == "unreadable":
            with suppress(ImageError):
                decode(str(Path(report["root"]) / entry["path"]))
                return True
    return False


def _write(data: ImageDataModule, scanned: Scan, folder: Path, command: str) -> Report:
    samples, scanned = draw_samples(data, scanned)
    report = examine(data, scanned)
    rows: dict[tuple[str, str], int] = {}
    for split, some in data.samples.items():
        rows |= {(split, path): row for row, path in enumerate(relative_paths(some.items, data.root))}
    images = {key: shrunk(data.image(key[0], rows[key]), SIDE) for key in shown_images(report)}
    page = check_page(report, Shown(images, samples, command))
    write_atomically(folder / "check.html", page)
    write_atomically(folder / "check.json", as_json(report, indent=1) + "\n")  # last: a check that has it is whole
    return report


def _command(words: Sequence[str], folder: Path) -> str:
    """Return the command that trains without the images that the check.json in `folder` excludes."""
    path = str(folder / "check.json")
    plain = re.fullmatch(r"[\w./~+-]+", path)  # Hydra would read any other as more than a word
    exclude = shell_quoted(f"dataset.exclude={path if plain else quoted(path)}")
    return " ".join([*(["imgclf train", shell_joined(words)] if words else []), exclude])


def _print_report(report: Report) -> None:
    """Print counts, notes, the findings with the files that they are about, and the verdict."""
    counts = ", ".join(f"{sum(values.values()):,} {split}" for split, values in report["counts"].items())
    lines = [f"{report['name']}: {counts}; {len(report['classes'])} classes; from {report['root']}"]
    lines += [f"note: {note['text']}" for note in report["notes"]]
    for finding in (*report["findings"], *report["near"]):
        lines += _describe_finding(finding)
    if report["quick"]:
        lines.append(f"quick check; not checked: {'; '.join(report['not_checked'])}")
    text = verdict(report)
    for line in [*lines, text[0].upper() + text[1:]]:
        print_line(line)


def _describe_finding(finding: Finding) -> Iterator[str]:
    groups = finding["groups"]
    single = "message" in groups[0]
    images, most = ("", LISTED) if single else (f"{finding['images']:,} images, ", EXAMPLES)
    yield f"{finding['title']}: {len(groups):,} ({images}{finding['excluded']:,} excluded)"
    for group in groups[:most]:
        message = f": {group['message']}" if "message" in group else ""
        yield "  " + " = ".join(image["path"] for image in group["images"][:2]) + message
    if len(groups) > most:
        yield f"  and {len(groups) - most:,} more, see check.html"
