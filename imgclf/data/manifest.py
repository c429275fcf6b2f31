"""What a run was trained on: fingerprints of its splits, and the files that `dataset.exclude=check.json` leaves out."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, DataError, one_line

__all__ = ["FORMAT", "Exclusion", "difference", "file_size", "fingerprint", "read_exclusion", "relative_paths"]

FORMAT = "imgclf check 2"
Fingerprint = Mapping[str, Sequence[int | str]]  # class -> [number of samples, digest]


def fingerprint(samples: Samples) -> dict[str, list[int | str]]:
    """Return {class: [number of samples, digest]} of one split; data that moved as a whole has the same digests.

    The digest covers, in order, each file's name, its folder's and its size, or the pixels where they are in memory. It
    reads no file: a file replaced by another of the same size goes unnoticed.
    """
    prints: dict[str, list[int | str]] = {}
    for target, name in enumerate(samples.classes):
        members = np.flatnonzero(samples.targets == target)
        digest = hashlib.blake2b(digest_size=8)
        if samples.pixels is not None:
            digest.update(np.ascontiguousarray(samples.pixels[members]).tobytes())
        else:
            for index in members:
                item = samples.items[index]
                # The folder's name and the file's; a `Path` takes ten times as long, and there may be 100,000.
                name_in_folder = "/".join(item.replace(os.sep, "/").rsplit("/", 2)[-2:])
                digest.update(f"{name_in_folder}\0{file_size(item)}\0".encode(errors="surrogateescape"))
        prints[name] = [len(members), digest.hexdigest()]
    return prints


def difference(theirs: Mapping[str, Fingerprint], ours: Mapping[str, Fingerprint]) -> str | None:
    """Return the first difference between the fingerprints of two sets of splits, in words; None if they are equal."""
    for split in ours:
        before, now = theirs.get(split, {}), ours[split]
        for name in {**before, **now}:
            was, is_now = before.get(name, [0, ""]), now.get(name, [0, ""])
            if was[0] != is_now[0]:
                return f"{split} had {was[0]:,} images of {name}, now {is_now[0]:,}"
            if was[1] != is_now[1]:
                return f"the {was[0]:,} {split} images of {name} aren't the same files"
    return None


def file_size(path: str) -> int:
    """Return the file's size in bytes; -1 for a missing file, which its reader reports."""
    try:
        return os.stat(path).st_size  # noqa: PTH116, one call per file
    except OSError:
        return -1


@dataclass(frozen=True)
class Exclusion:
    """How often each (split, path below the data's root) is excluded; of a check.json also its path, and the name and classes
    of the data that was checked.
    """

    entries: Mapping[tuple[str, str], int]
    path: str | None = None
    name: str = ""
    classes: tuple[str, ...] = ()

    def listed(self) -> list[str]:
        """Return the excluded files as "split:path", which a run keeps in place of the check.json: that may move."""
        return [f"{split}:{path}" for (split, path), times in sorted(self.entries.items()) for _ in range(times)]

    def apply(self, splits: Mapping[str, Samples], root: Path, name: str) -> tuple[dict[str, Samples], str]:
        """Return the splits without the excluded files, and a line that counts them.

        A file that is in another split now than when it was checked, because hold-outs were drawn again, is left out there.
        Of a file that a split lists twice, as many go as are named. Raises `ConfigError` when other data was checked,
        `DataError` when a class loses all its training images.
        """
        classes = splits["train"].classes
        key = "dataset.exclude" + (f"={self.path}" if self.path else "")
        if self.path and (
            name != self.name or not (set(classes) <= set(self.classes) or set(self.classes) <= set(classes))
        ):
            raise ConfigError(
                f"{key}: is a check of {self.name} with {_few(self.classes)}, the data "
                f"is {name} with {_few(classes)}; run `imgclf check` on this data"
            )
        paths = {split: relative_paths(samples.items, root) for split, samples in splits.items()}
        members = {split: set(some) for split, some in paths.items()}
        quota: Counter[tuple[str, str]] = Counter()
        for (split, path), times in self.entries.items():
            for target in [split] if path in members.get(split, ()) else members:
                quota[target, path] += times
        kept, dropped = {}, 0
        for split, samples in splits.items():
            rows = _remaining(split, paths[split], quota)
            dropped += len(samples) - len(rows)
            kept[split] = samples.take(rows)
        lost = (kept["train"].counts() == 0) & (splits["train"].counts() > 0)
        if gone := [classes[target] for target in np.flatnonzero(lost)]:
            raise DataError(
                f"{key}: no training images are left of {_few(gone)}; repair these files, or edit the list `exclude`"
            )
        missing = sum(self.entries.values()) - dropped
        rest = f"; {missing:,} more that it names aren't in the data" if missing > 0 else ""
        return kept, f"excluded {dropped:,} images named by {self.path or key}{rest}"


def read_exclusion(chosen: str | Sequence[str]) -> Exclusion:
    """Return what `dataset.exclude` leaves out: the files that the check.json at a path names, or those of `Exclusion.listed`.

    Raises `ConfigError` for any other file, and for an entry without its split.
    """
    if not isinstance(chosen, str):
        if wrong := [entry for entry in chosen if ":" not in entry]:
            raise ConfigError(f"dataset.exclude: {wrong[0]!r}: expected <split>:<file below the data's root>")
        pairs = ((split, path) for split, _, path in (entry.partition(":") for entry in chosen))
        return Exclusion(Counter(pairs))
    path = chosen
    try:
        report = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']!r}")
        entries = Counter((str(entry["split"]), str(entry["path"])) for entry in report["exclude"])
        return Exclusion(entries, path, str(report["name"]), tuple(map(str, report["classes"])))
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
    except (ValueError, TypeError, KeyError) as error:
        problem = f"is no check.json ({one_line(error, 80)})"
    raise ConfigError(f"dataset.exclude={path}: {problem}; `imgclf check` writes one, null excludes nothing")


def relative_paths(items: Sequence[str], root: Path) -> list[str]:
    """Return the items (`file.csv:12` too) as a check.json holds them: below `root`, with forward slashes."""
    base = str(root.absolute())
    return [os.path.relpath(item, base).replace(os.sep, "/") for item in items]


def _remaining(split: str, paths: Sequence[str], quota: "Counter[tuple[str, str]]") -> list[int]:
    """The rows that stay; of equal paths the last ones go."""
    rows = []
    for row in reversed(range(len(paths))):
        if quota[split, paths[row]] > 0:
            quota[split, paths[row]] -= 1
        else:
            rows.append(row)
    return rows[::-1]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more classes" if len(names) > 3 else "")
