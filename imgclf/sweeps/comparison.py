"""Several runs side by side: their settings, their results, and whether the difference is significant."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from imgclf.errors import DataError
from imgclf.evaluation.calibration import accuracy_interval
from imgclf.evaluation.classification import format_accuracy
from imgclf.report.tables import read_history_csv, write_csv
from imgclf.schema import flatten

__all__ = ["Comparison", "McNemarResult", "Run", "compare_runs", "mcnemar", "read_run"]

# Settings that say where a run was, not what it was.
PLACES = ("data_dir", "ckpt_path", "resume", "tags", "task_name", "report", "cache", "cache_gb", "check")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Run:
    """The results in a run's folder.

    `metrics` by split, `history` rows, `settings` by dotted key, and of its test images {file: (true, predicted)}.
    """

    name: str
    metrics: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, object]
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

    def format_accuracy(self, split: str) -> str:
        """Return the accuracy on a split with its exact 95 % interval: "68 of 75, 90.7 % (81.7-96.2)"."""
        if not (interval := self.interval(split)):
            return "-"
        low, high = interval
        values = self.metrics[split]
        return f"{format_accuracy(values['correct'], values['count'])} ({100 * low:.1f}-{100 * high:.1f})"


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
    """`runs`, the best by validation first, and the dotted `keys` of the settings in which they differ."""

    runs: Sequence[Run]
    keys: Sequence[str]

    @property
    def header(self) -> list[str]:
        """The columns of `rows`."""
        return ["run", "validation", "test", "epochs", *self.keys]

    @property
    def rows(self) -> list[list[str]]:
        """One row per run: name, validation, test, epochs, then the settings in which they differ."""
        return [
            [
                run.name,
                run.format_accuracy("val"),
                run.format_accuracy("test"),
                str(len(run.history) or "-"),
                *("-" if (value := run.settings.get(key)) is None else str(value) for key in self.keys),
            ]
            for run in self.runs
        ]

    @property
    def tests(self) -> list[McNemarResult]:
        """McNemar's test for each pair of runs that were tested on the same images."""
        results = []
        for first, second in combinations(self.runs, 2):
            same = first.predictions.keys() & second.predictions.keys()
            if not same or any(first.predictions[file][0] != second.predictions[file][0] for file in same):
                continue
            hits = [(_is_hit(first.predictions[file]), _is_hit(second.predictions[file])) for file in same]
            only_first, only_second = hits.count((True, False)), hits.count((False, True))
            p = mcnemar(only_first, only_second)
            results.append(McNemarResult(first.name, second.name, len(same), only_first, only_second, p))
        return results

    def write(self, folder: Path) -> list[str]:
        """Write compare.csv, and compare.png with all validation curves, and return the names of the files written."""
        write_csv(folder / "compare.csv", self.header, self.rows)
        curves = [(run.name, run.history) for run in self.runs if run.history]
        if not curves:
            return ["compare.csv"]
        from imgclf.report.plots import plot_runs  # here, because it loads matplotlib

        plot_runs(curves, folder / "compare.png")
        return ["compare.csv", "compare.png"]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Return the comparison of the runs, or evaluations, in `folders`; raises `DataError`."""
    absolute = list(dict.fromkeys(folder.absolute() for folder in folders))
    runs = [read_run(folder, name) for folder, name in zip(absolute, _names(absolute), strict=True)]
    runs.sort(key=lambda run: (run.validation is None, -(run.validation or 0.0)))
    settings = [run.settings for run in runs if run.settings]
    keys = sorted({key for one in settings for key in one if key.partition(".")[0] not in PLACES})
    return Comparison(runs, [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1])


def read_run(folder: Path, name: str) -> Run:
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
    return Run(name, metrics, rows, settings, _read_predictions(folder / "predictions_test.csv"))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test: Q. McNemar, Psychometrika 12 (1947), 153.

    Each image that only one run classifies correctly would be either's with probability 1/2 if both were equally good.
    The exact test: A. Agresti, Categorical Data Analysis, section 11.1.
    """
    apart, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(apart, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**apart)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names without their common part."""
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath(folders))
    return [str(folder.relative_to(common)) if folder != common else folder.name for folder in folders]


def _is_hit(prediction: tuple[str, str]) -> bool:
    true, predicted = prediction
    return true == predicted


def _read_predictions(path: Path) -> dict[str, tuple[str, str]]:
    """Return {file: (true, predicted)}, empty without the file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["file"]: (row["true"], row["predicted"]) for row in csv.DictReader(file)}
