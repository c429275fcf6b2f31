"""Several runs side by side: what they were told, what came of it, and whether that difference can be chance."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from imgclf.errors import DataError
from imgclf.evaluation.calibration import accuracy_interval
from imgclf.report.tables import read_history_csv

__all__ = ["McNemarResult", "Run", "differing", "duels", "mcnemar", "read_run"]

# Settings that say where a run was, not what it was.
PLACES = ("data_dir", "ckpt_path", "resume", "tags", "task_name", "report", "cache", "cache_gb", "check")


@dataclass(frozen=True)
class Run:
    """What a run's folder tells: `metrics` a split, `history` rows, `settings` flattened to dotted keys, and of its test
    pictures {file: (true, predicted)}.
    """

    name: str
    metrics: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    answers: Mapping[str, tuple[str, str]]

    @property
    def validation(self) -> float | None:
        """Its accuracy on validation, by which runs are sorted; None for what has none, such as an evaluation."""
        value = self.metrics.get("val", {}).get("accuracy")
        return None if value is None else float(value)

    def said(self, split: str) -> str:
        """The accuracy on a split with its exact 95 % interval: "68 of 75, 90.7 % (81.7-96.2)"."""
        values = self.metrics.get(split)
        if not values:
            return "-"
        low, high = accuracy_interval(values["correct"], values["count"])
        return f"{values['correct']} of {values['count']}, {100 * values['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class McNemarResult:
    """Two runs on the same test pictures: how many only the first (`only_first`) and only the second got right, of `count`,
    and the probability `p` of a difference like that if both were equally good.
    """

    first: str
    second: str
    count: int
    only_first: int
    only_second: int
    p: float


def read_run(folder: Path, name: str) -> Run:
    """The run, or evaluation, in `folder`; raises `DataError` for a folder without metrics.json, or one that is damaged."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{folder}: no metrics.json there; expected the folder of a finished run or evaluation")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        for values in metrics.values():
            accuracy_interval(values["correct"], values["count"])
            float(values["accuracy"])
        config = folder / "config.yaml"
        settings = _flat(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{folder}: can't be read as a run ({' '.join(str(error).split())[:120]}); "
                        "pass another, or run it again") from None  # fmt: skip
    history = folder / "history.csv"
    return Run(name, metrics, read_history_csv(history) if history.is_file() else [], settings,
               _answers(folder / "predictions_test.csv"))  # fmt: skip


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings, by dotted key, in which the runs differ, places left aside."""
    keys = sorted({key for run in runs for key in run.settings})
    return [
        key for key in keys
        if key.partition(".")[0] not in PLACES and len({repr(run.settings.get(key)) for run in runs if run.settings}) > 1
    ]  # fmt: skip


def duels(runs: Sequence[Run]) -> list[McNemarResult]:
    """Each pair of runs that were tested on the same pictures, by file and class."""
    found = []
    for first, second in combinations(runs, 2):
        same = first.answers.keys() & second.answers.keys()
        if not same or any(first.answers[file][0] != second.answers[file][0] for file in same):
            continue
        hits = [(first.answers[file][0] == first.answers[file][1], second.answers[file][0] == second.answers[file][1])
                for file in same]  # fmt: skip
        only_first, only_second = hits.count((True, False)), hits.count((False, True))
        found.append(
            McNemarResult(first.name, second.name, len(same), only_first, only_second, mcnemar(only_first, only_second))
        )
    return found


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test: of the pictures that one alone got right, each would be either's with
    probability 1/2. Q. McNemar, Psychometrika 12 (1947), 153; exact: A. Agresti, Categorical Data Analysis, section 11.1.
    """
    apart, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(apart, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**apart)


def _answers(path: Path) -> dict[str, tuple[str, str]]:
    """{file: (true, predicted)}; nothing where the file isn't there."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["file"]: (row["true"], row["predicted"]) for row in csv.DictReader(file)}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat
