"""`dataset.exclude=check.json`: leaving out the pictures that a check named, and counting them."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imgclf.data.samples import Samples
from imgclf.errors import ConfigError, DataError

__all__ = ["FORMAT", "Exclusion", "read_exclusion", "relative_paths"]

FORMAT = "imgclf check 2"


@dataclass(frozen=True)
class Exclusion:
    """What a check.json names: (split, path below the data's root) and how often; `classes` are those that it looked at."""

    path: str
    name: str
    classes: tuple[str, ...]
    entries: Mapping[tuple[str, str], int]

    def apply(self, splits: Mapping[str, Samples], root: Path, name: str) -> tuple[dict[str, Samples], str]:
        """The splits without what is named, and a line that counts it.

        A picture that stands in another split now than when it was checked, because hold-outs were drawn anew, is left out
        there. Of a picture that a split lists twice, as many go as are named. Raises `ConfigError` when the check is one of
        other data, `DataError` when a class loses all its training pictures.
        """
        classes = splits["train"].classes
        if name != self.name or not (set(classes) <= set(self.classes) or set(self.classes) <= set(classes)):
            raise ConfigError(f"dataset.exclude={self.path}: is a check of {self.name} with {_few(self.classes)}, the data "
                              f"is {name} with {_few(classes)}; run `python -m imgclf.check` on this data")  # fmt: skip
        paths = {split: relative_paths(samples.items, root) for split, samples in splits.items()}
        found = {split: set(some) for split, some in paths.items()}
        quota: Counter[tuple[str, str]] = Counter()
        for (split, path), times in self.entries.items():
            for place in [split] if path in found.get(split, ()) else found:
                quota[place, path] += times
        kept, dropped = {}, 0
        for split, samples in splits.items():
            rows = _remaining(split, paths[split], quota)
            dropped += len(samples) - len(rows)
            kept[split] = samples.take(rows)
        if gone := [classes[target] for target in np.flatnonzero(kept["train"].counts() == 0)]:
            raise DataError(f"dataset.exclude={self.path}: nothing is left to train on of {_few(gone)}; mend these pictures, "
                            "or edit the list `exclude` in that file")  # fmt: skip
        missing = sum(self.entries.values()) - dropped
        rest = f"; {missing:,} more that it names aren't among them" if missing > 0 else ""
        return kept, f"excluded {dropped:,} pictures named by {self.path}{rest}"


def read_exclusion(path: str) -> Exclusion:
    """What the check.json at `path` names; raises `ConfigError` if it is none."""
    try:
        report = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']!r}")
        entries = Counter((str(entry["split"]), str(entry["path"])) for entry in report["exclude"])
        return Exclusion(path, str(report["name"]), tuple(map(str, report["classes"])), entries)
    except OSError as error:
        what = f"can't be read ({error.strerror})"
    except (ValueError, TypeError, KeyError) as error:
        what = f"is no check.json ({' '.join(str(error).split())[:80]})"
    raise ConfigError(f"dataset.exclude={path}: {what}; `python -m imgclf.check` writes one, null excludes nothing")


def relative_paths(items: Sequence[str], root: Path) -> list[str]:
    """The items (`file.csv:12` too) as a check.json holds them: below `root`, with forward slashes."""
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
