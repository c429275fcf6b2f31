"""Several runs side by side: their settings, their results, and whether the difference is significant."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from imgclf.config import RunConfig
from imgclf.errors import CheckpointError, DataError
from imgclf.evaluation.calibration import accuracy_interval
from imgclf.evaluation.classification import format_accuracy
from imgclf.report.tables import read_history_csv, read_predictions_csv, write_csv
from imgclf.schema import flatten

__all__ = ["Comparison", "McNemarResult", "RunResults", "compare_runs", "mcnemar", "read_run", "write_comparisons"]

# Of the settings that a resumed run may change, those that results depend on.
MATTER = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "model.pretrained",
    "model.weights",
    "dataset.exclude",
)
# Of the others, those that say where files lie and how fast the run is.
_RUNTIME = ("dataset.splits", "engine", "features", "trainer.benchmark")
# What decides which images are in which split.
_SPLIT = ("name", "splits", "classes", "holdout", "val_fraction", "test_fraction", "split_seed")
_WIDTH = 20  # characters of a name or value in a table
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class RunResults:
    """The results in a run's `folder`.

    `metrics` by split, `history` rows, `settings` by dotted key, and of its test images, in and below the folder `root`,
    {path below root: (true, predicted)}.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, object]
    root: str
    predictions: Mapping[str, tuple[str, str]]

    @property
    def validation(self) -> float | None:
        """The validation accuracy, by which runs are sorted; None without one, such as for an evaluation."""
        value = self.metrics.get("val", {}).get("accuracy")
        return None if value is None else float(value)

    def interval(self, split: str) -> tuple[float, float] | None:
        """Return the exact 95 % interval of the accuracy on a split; None for a split without metrics."""
        values = self.metrics.get(split)
        return accuracy_interval(values["correct"], values["count"]) if values else None

    def format_accuracy(self, split: str, counts: bool = True) -> str:
        """Return the accuracy on a split with its exact 95 % interval: "68 of 75, 90.7 % (81.7-96.2)"."""
        if not (interval := self.interval(split)):
            return "-"
        low, high = interval
        text = format_accuracy(self.metrics[split]["correct"], self.metrics[split]["count"])
        return f"{text if counts else text.rpartition(', ')[2]} ({100 * low:.1f}-{100 * high:.1f})"

    def difference(self, other: "RunResults") -> str | None:
        """Return in what the data of the two runs differ, None where they have the same test images or splits.

        Data that moved as a whole are the same; a run that was not tested is compared by its validation.
        """
        both_tested = bool(self.predictions and other.predictions)
        truths = [{file: true for file, (true, _) in run.predictions.items()} for run in (self, other)]
        same = both_tested and truths[0] == truths[1]
        if same and self.root == other.root:
            return None
        if self.settings and other.settings:
            for key in _SPLIT:
                if self._setting(f"dataset.{key}") != other._setting(f"dataset.{key}"):
                    names = f": {self.settings['dataset.name']}, {other.settings['dataset.name']}" * (key == "name")
                    return f"dataset.{key} differs{names}"
        elif not both_tested:
            return "what they were tested on is not known"
        return (
            None if not both_tested or (same and _same_files(self.folder, other.folder)) else "the test images differ"
        )

    def value(self, key: str) -> str:
        """Return the value of a setting as text; "on" for a group of settings, "-" for none."""
        value = self.settings.get(key)
        if key == "dataset.exclude" and isinstance(value, list):
            return f"{len(value):,} images"
        if value is not None:
            return str(value)
        return "on" if self._setting(key).keys() - {key} else "-"

    def _setting(self, key: str) -> dict[str, object]:
        """Return a setting, or all settings of a group, by dotted key."""
        return {name: value for name, value in self.settings.items() if f"{name}.".startswith(f"{key}.")}


@dataclass(frozen=True)
class McNemarResult:
    """Two runs on the same `count` test images.

    `only_first` images are classified correctly by the first run alone, `only_second` by the second alone; `p` is the
    probability of a difference at least as large if both were equally good.
    """

    first: str
    second: str
    count: int
    only_first: int
    only_second: int
    p: float

    def __str__(self) -> str:
        verdict = "they differ" if self.p < SIGNIFICANT else "the difference may be chance"
        return (
            f"{self.first} : {self.second} on the same {self.count:,} test images: "
            f"{self.only_first} correct only by the first, {self.only_second} only by the second; "
            f"p = {self.p:.3g} (exact McNemar test), {verdict}"
        )


@dataclass(frozen=True)
class Comparison:
    """`runs` on the same data, the best by validation first, and the dotted `keys` of the settings in which they differ."""

    runs: Sequence[RunResults]
    keys: Sequence[str]

    def difference(self, other: "Comparison") -> str:
        """Return in what the data of the runs differ from those of another comparison."""
        found = (one.difference(two) for one in self.runs for two in other.runs)
        return next((text for text in found if text), "")

    @property
    def title(self) -> str:
        """The data set, and the number of its test images: "cards, 265 test images"."""
        name = next((str(run.settings["dataset.name"]) for run in self.runs if "dataset.name" in run.settings), "")
        tested = next((values["count"] for run in self.runs if (values := run.metrics.get("test"))), None)
        return ", ".join(part for part in (name, f"{tested:,} test images" if tested else "") if part) or "unknown data"

    @property
    def names(self) -> list[str]:
        """The names of the runs, shortened where they stay apart."""
        for width in (_WIDTH, 2 * _WIDTH, 4 * _WIDTH):
            short = [shortened(run.name, width) for run in self.runs]
            if len(set(short)) == len(short):
                return short
        return [run.name for run in self.runs]

    @property
    def untested(self) -> list[str]:
        """The names of the runs without test results, where others have them."""
        tested = ["test" in run.metrics for run in self.runs]
        return [name for name, has in zip(self.names, tested, strict=True) if any(tested) and not has]

    @property
    def results(self) -> list[list[str]]:
        """One row per run for 80 columns: name, validation, test, epochs."""
        return [
            [name, run.format_accuracy("val", False), run.format_accuracy("test", False), str(len(run.history) or "-")]
            for name, run in zip(self.names, self.runs, strict=True)
        ]

    @property
    def settings(self) -> list[list[str]]:
        """One row per setting in which the runs differ: the key, and the value of each run."""
        return [[shortened(key, 30), *(shortened(run.value(key)) for run in self.runs)] for key in self.keys]

    @property
    def tests(self) -> list[McNemarResult]:
        """McNemar's test for each pair of runs that were tested on the same images."""
        results = []
        for (name, first), (other, second) in combinations(zip(self.names, self.runs, strict=True), 2):
            same = first.predictions.keys() & second.predictions.keys()
            if not same:
                continue
            hits = [(_is_hit(first.predictions[file]), _is_hit(second.predictions[file])) for file in same]
            only_first, only_second = hits.count((True, False)), hits.count((False, True))
            p = mcnemar(only_first, only_second)
            results.append(McNemarResult(name, other, len(same), only_first, only_second, p))
        return results


def compare_runs(folders: Sequence[Path]) -> list[Comparison]:
    """Return one comparison for each data set, or selection of test images, of the runs or evaluations in `folders`.

    Raises `DataError` for a folder without a run.
    """
    absolute = list(dict.fromkeys(folder.resolve() for folder in folders))  # latest may be one of the others
    runs = [read_run(folder, name) for folder, name in zip(absolute, _names(absolute), strict=True)]
    runs.sort(key=lambda run: (run.validation is None, -(run.validation or 0.0)))
    groups: list[list[RunResults]] = []
    for run in runs:
        group = next((group for group in groups if all(one.difference(run) is None for one in group)), None)
        if group:
            group.append(run)
        else:
            groups.append([run])
    return [Comparison(group, _differing(group)) for group in groups]


def write_comparisons(comparisons: Sequence[Comparison], folder: Path) -> list[str]:
    """Write compare.csv, and compare.png with all validation curves, and return the names of the files written."""
    keys = sorted({key for comparison in comparisons for key in comparison.keys})
    runs = [(one.title, run) for one in comparisons for run in one.runs]
    rows = [
        [
            title,
            run.name,
            *map(run.format_accuracy, ("val", "test")),
            str(len(run.history) or "-"),
            *map(run.value, keys),
        ]
        for title, run in runs
    ]
    write_csv(folder / "compare.csv", ["data", "run", "validation", "test", "epochs", *keys], rows)
    curves = [(run.name, run.history) for _, run in runs if run.history]
    if not curves:
        return ["compare.csv"]
    from imgclf.figures.plots import plot_runs  # here, because it loads matplotlib

    plot_runs(curves, folder / "compare.png")
    return ["compare.csv", "compare.png"]


def read_run(folder: Path, name: str) -> RunResults:
    """Return the run, or evaluation, in `folder`; raises `DataError` for missing or damaged files."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{folder}: has no metrics.json; pass the folder of a finished run or evaluation")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        for values in metrics.values():
            accuracy_interval(values["correct"], values["count"])
            float(values["accuracy"])
        config = folder / "config.yaml"
        settings = flatten(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{folder}: can't be read as a run ({reason}); pass another folder, or repeat the run"
        ) from None
    history = folder / "history.csv"
    rows = read_history_csv(history) if history.is_file() else []
    return RunResults(name, folder, metrics, rows, settings, *_read_predictions(folder / "predictions_test.csv"))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: Q. McNemar, Psychometrika 12 (1947), 153.

    Each image that only one run classifies correctly would be either's with probability 1/2 if both were equally good.
    The exact test: A. Agresti, Categorical Data Analysis, section 11.1.
    """
    apart, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(apart, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**apart)


def shortened(text: str, width: int = _WIDTH) -> str:
    """Return the text in at most `width` characters: of a path its end, of anything else both ends."""
    if len(text) <= width:
        return text
    last = text.rpartition("/")[2]
    if text.startswith(("/", "~")) and len(last) < width - 1:
        return f"…/{last}"
    return f"{text[: width // 3]}…{text[len(text) - (width - 1 - width // 3) :]}"


def _differing(runs: Sequence[RunResults]) -> list[str]:
    """Return the settings in which the runs differ and that results depend on."""
    settings = [run.settings for run in runs if run.settings]
    hidden = (*(key for key in RunConfig.keys_with("may_change") if key not in MATTER), *_RUNTIME)
    prefixes = tuple(f"{key}." for key in hidden)
    keys = sorted({key for one in settings for key in one if not f"{key}.".startswith(prefixes)})
    return [key for key in keys if _differs(key, settings)]


def _differs(key: str, settings: Sequence[Mapping[str, object]]) -> bool:
    """Return whether a setting differs among those that have its group, or a group is there for some only."""
    if len({any(name.startswith(f"{key}.") for name in one) for one in settings}) > 1:
        return True
    groups = [key[: match.start()] for match in re.finditer(r"\.", key)]
    values = [one.get(key) for one in settings if all(one.get(group, "") is not None for group in groups)]
    return len(set(map(repr, values))) > 1


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names without their common part."""
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath(folders))
    return [str(folder.relative_to(common)) if folder != common else folder.name for folder in folders]


def _is_hit(prediction: tuple[str, str]) -> bool:
    true, predicted = prediction
    return true == predicted


def _read_predictions(path: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the folder that the files share, and {path below it: (true, predicted)}; both empty without the file."""
    if not path.is_file():
        return "", {}
    rows = {file: (true, predicted) for file, true, predicted, *_ in read_predictions_csv(path)[1]}
    root = os.path.commonpath({str(Path(name).parent) for name in rows}) if rows else ""
    return root, {name[len(root) :]: row for name, row in rows.items()}


def _same_files(first: Path, second: Path) -> bool:
    """Return whether the test files of two runs had the same names and sizes; True where a checkpoint doesn't tell."""
    from imgclf.models.checkpoint import read_checkpoint  # here, because it loads torch

    prints = []
    for folder in (first, second):
        try:
            metadata = read_checkpoint(folder / "checkpoints" / "best.ckpt")["imgclf"]
        except CheckpointError:
            return True
        prints.append((metadata.get("fingerprint") or {}).get("test"))
    return None in prints or prints[0] == prints[1]
