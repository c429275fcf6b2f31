"""A sweep in figures: its trials ranked by validation, seeds taken together, and how much each setting mattered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from imgclf.errors import DataError
from imgclf.evaluation.calibration import accuracy_interval
from imgclf.files.run_folder import PRUNED, TrialRecord, find_trials
from imgclf.report.tables import read_history_csv
from imgclf.sweeps.comparison import Run, read_run

__all__ = ["Entry", "Leaderboard", "TrialGroup", "facts", "importance", "read_sweep"]

SEED, FRACTION = "seed", "dataset.fraction"
BINS = 4  # of a setting with more values than that, all of them numbers


@dataclass(frozen=True)
class Entry:
    """A trial as it stands now: `run` is what a finished one left, None before; `choices` are its overrides, by key."""

    folder: Path
    record: TrialRecord
    run: Run | None
    choices: Mapping[str, str]
    epochs: int

    @property
    def finished(self) -> bool:
        """Whether it can be ranked."""
        return self.run is not None and self.record.value is not None

    @property
    def state(self) -> str:
        """As its record says, or pruned: finished too, but before its time."""
        return "pruned" if self.record.state == "finished" and (self.folder / PRUNED).is_file() else self.record.state

    @property
    def dataset(self) -> str:
        """The name of its data set: trials on different ones aren't ranked against each other."""
        return str((self.record.settings.get("dataset") or {}).get("name", ""))


@dataclass(frozen=True)
class TrialGroup:
    """Trials that differ in their seed alone, taken together: the mean `value` and its sample standard deviation `spread`,
    None of a single one; `validation` and `test` in words, with exact intervals or mean ± spread.
    """

    choices: Mapping[str, str]
    entries: Sequence[Entry]
    value: float
    spread: float | None
    validation: str
    test: str


@dataclass(frozen=True)
class Leaderboard:
    """All `entries`, by folder; the `standings`, the best of each data set first; the `keys` in which trials differ; and the
    `metric` of validation that they are ranked by.
    """

    folder: Path
    entries: Sequence[Entry]
    standings: Sequence[TrialGroup]
    keys: Sequence[str]
    metric: str

    @property
    def importance(self) -> list[tuple[str, float]]:
        """The keys and the share of the values' variance that each explains, the largest first; a seed's is chance."""
        ranked = [entry for entry in self.entries if entry.finished]
        values = [float(entry.record.value or 0.0) for entry in ranked]
        shares = [(key, importance([entry.choices.get(key, "-") for entry in ranked], values)) for key in self.keys]
        return sorted(((key, share) for key, share in shares if share is not None), key=lambda pair: -pair[1])

    @property
    def sizes(self) -> list[dict[str, Any]]:
        """Accuracy against the number of training pictures, where the trials differ in `dataset.fraction`: for each of the
        other choices its `name`, and `points` (pictures, validation, spread or None, test or None), accuracies being means.
        """
        if FRACTION not in self.keys:
            return []
        series: dict[str, list[tuple[int, float, float | None, float | None]]] = {}
        for standing in self.standings:
            name = ", ".join(f"{key}={value}" for key, value in standing.choices.items() if key != FRACTION)
            metrics = [entry.run.metrics for entry in standing.entries if entry.run]
            found = [values["val"]["accuracy"] for values in metrics if "val" in values]
            tested = [values["test"]["accuracy"] for values in metrics if "test" in values]
            if found:
                series.setdefault(name, []).append((
                    metrics[0]["train"]["count"], fmean(found), stdev(found) if len(found) > 1 else None,
                    fmean(tested) if tested else None))  # fmt: skip
        return [{"name": name, "points": sorted(points)} for name, points in series.items()]


def read_sweep(folder: Path) -> Leaderboard:
    """The sweep in `folder` as it stands now; raises `DataError` for a folder that holds no trial."""
    trials = find_trials(folder)
    if not trials:
        raise DataError(f"{folder}: holds no trials; expected the hydra.sweep.dir of `imgclf.train -m`")
    entries = [_entry(path, record) for path, record in trials]
    names = sorted({key for entry in entries for key in entry.choices})
    keys = [key for key in names if len({entry.choices.get(key) for entry in entries}) > 1]
    metric = str((entries[0].record.settings.get("checkpoint") or {}).get("monitor", "val_accuracy"))
    together: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        if entry.finished:
            same = tuple((key, entry.choices.get(key, "-")) for key in keys if key != SEED)
            together.setdefault(same, []).append(entry)
    worst_last = 1 if metric.endswith("loss") else -1
    standings = sorted((_standing(dict(same), members) for same, members in together.items()),
                       key=lambda standing: (standing.entries[0].dataset, worst_last * standing.value))  # fmt: skip
    return Leaderboard(folder, entries, standings, keys, metric)


def importance(levels: Sequence[str], values: Sequence[float]) -> float | None:
    """The share of the variance of `values` that the levels explain, chance taken off (epsilon squared: T. L. Kelley, PNAS
    21 (1935), 554); 0 to 1, None where there are too few to say. Numbers of more than four levels count by their quarter.
    """
    levels = _quarters(levels)
    groups: dict[str, list[float]] = {}
    for level, value in zip(levels, values, strict=True):
        groups.setdefault(level, []).append(value)
    free = len(values) - len(groups)
    mean = fmean(values) if values else 0.0
    total = sum((value - mean) ** 2 for value in values)
    if len(groups) < 2 or free < 1 or not total > 0:
        return None
    within = sum((value - fmean(group)) ** 2 for group in groups.values() for value in group)
    return min(1.0, max(0.0, (total - within - (len(groups) - 1) * within / free) / total))


def _quarters(levels: Sequence[str]) -> Sequence[str]:
    if len(set(levels)) <= BINS:
        return levels
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        return levels
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    quarters = [""] * len(numbers)
    for rank, index in enumerate(order):
        quarters[index] = str(rank * BINS // len(order))
    return quarters


def _entry(folder: Path, record: TrialRecord) -> Entry:
    choices = {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in record.overrides)}
    run, epochs = None, 0
    try:
        if record.state == "finished":
            run = read_run(folder, folder.name)
        history = folder / "history.csv"
        epochs = len(run.history if run else read_history_csv(history) if history.is_file() else [])
    except DataError:  # its files are gone or damaged: it can't be ranked, the others can
        pass
    return Entry(folder, record, run, choices, epochs)


def _standing(choices: dict[str, str], entries: Sequence[Entry]) -> TrialGroup:
    values = [float(entry.record.value or 0.0) for entry in entries]
    spread = stdev(values) if len(values) > 1 else None
    return TrialGroup(choices, entries, fmean(values), spread, _said(entries, "val"), _said(entries, "test"))


def _said(entries: Sequence[Entry], split: str) -> str:
    """A single run's accuracy with its interval; of several the mean ± spread."""
    runs = [entry.run for entry in entries if entry.run is not None and split in entry.run.metrics]
    if len(runs) < 2:
        return runs[0].said(split) if runs else "-"
    accuracies = [100 * float(run.metrics[split]["accuracy"]) for run in runs]
    return f"{fmean(accuracies):.1f} ± {stdev(accuracies):.1f} % ({len(runs)} seeds)"


def facts(board: Leaderboard) -> dict[str, Any]:
    """What `sweep.js` draws, as plain data."""
    return {
        "title": f"Sweep: {board.folder.absolute().name}",
        "metric": board.metric,
        "lower_is_better": board.metric.endswith("loss"),
        "keys": list(board.keys),
        "standings": [
            {"dataset": standing.entries[0].dataset, "choices": standing.choices, "validation": standing.validation,
             "test": standing.test, "value": _finite(standing.value), "spread": standing.spread,
             "seeds": len(standing.entries)}
            for standing in board.standings
        ],
        "trials": [
            {"folder": entry.folder.name, "choices": dict(entry.choices), "state": entry.state, "epochs": entry.epochs,
             "value": _finite(entry.record.value) if entry.finished else None, "seconds": entry.record.seconds,
             "error": entry.record.error, "interval": _interval(entry.run)}
            for entry in board.entries
        ],
        "importance": board.importance,
        "sizes": board.sizes,
    }  # fmt: skip


def _interval(run: Run | None) -> list[float] | None:
    values = run.metrics.get("val") if run else None
    return list(accuracy_interval(values["correct"], values["count"])) if values else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
