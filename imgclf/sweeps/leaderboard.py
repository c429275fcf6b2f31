"""The leaderboard of a sweep: trials ranked by validation, seeds grouped, and the importance of each setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from imgclf.config import MONITORS, CheckpointConfig
from imgclf.console import print_table
from imgclf.errors import DataError
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import PRUNED, TrialRecord, find_trials
from imgclf.report.tables import read_history_csv, write_csv
from imgclf.sweeps.comparison import Run, read_run

__all__ = ["Leaderboard", "finish_sweep", "page_data", "read_sweep", "write_leaderboard"]

SEED, FRACTION = "seed", "dataset.fraction"
BINS = 4  # for a setting with more values, all of them numbers
_MEASURED = [
    (split, name) for split in ("val", "test") for name in ("accuracy", "loss", "macro_f1", "correct", "count")
]


@dataclass(frozen=True)
class Trial:
    """A trial as it stands now: `run` holds the results of a finished one, else None; `overrides` are its own, by key."""

    folder: Path
    record: TrialRecord
    run: Run | None
    overrides: Mapping[str, str]
    epochs: int

    @property
    def finished(self) -> bool:
        """Whether the trial can be ranked."""
        return self.run is not None and self.record.value is not None

    @property
    def value(self) -> float:
        """The metric that trials are ranked by; 0 for a trial that isn't finished."""
        return float(self.record.value or 0.0)

    @property
    def state(self) -> str:
        """The state in its record, or "pruned" for a trial that finished early because others were better."""
        return "pruned" if self.record.state == "finished" and (self.folder / PRUNED).is_file() else self.record.state

    @property
    def dataset(self) -> str:
        """The name of its data set: trials on different ones aren't ranked against each other."""
        return str((self.record.settings.get("dataset") or {}).get("name", ""))


@dataclass(frozen=True)
class TrialGroup:
    """Trials that differ in their seed alone, and the `overrides` that they share."""

    overrides: Mapping[str, str]
    trials: Sequence[Trial]

    @property
    def dataset(self) -> str:
        """The name of their data set."""
        return self.trials[0].dataset

    @property
    def value(self) -> float:
        """The mean of the metric that trials are ranked by."""
        return fmean(trial.value for trial in self.trials)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of that metric; None of a single trial."""
        return stdev(trial.value for trial in self.trials) if len(self.trials) > 1 else None

    def accuracies(self, split: str) -> list[float]:
        """Return the accuracy of each trial that has one on the split."""
        metrics = [trial.run.metrics for trial in self.trials if trial.run is not None]
        return [float(values[split]["accuracy"]) for values in metrics if split in values]

    def format_accuracy(self, split: str) -> str:
        """Return a single trial's accuracy with its exact interval; of several the mean ± standard deviation."""
        accuracies = [100 * accuracy for accuracy in self.accuracies(split)]
        if len(accuracies) > 1:
            return f"{fmean(accuracies):.1f} ± {stdev(accuracies):.1f} % ({len(accuracies)} seeds)"
        runs = [trial.run for trial in self.trials if trial.run is not None and split in trial.run.metrics]
        return runs[0].format_accuracy(split) if runs else "-"


class SizeSeries(TypedDict):
    """Accuracies over the number of training images: (images, validation, standard deviation, test), None if unknown."""

    name: str
    points: list[tuple[int, float, float | None, float | None]]


@dataclass(frozen=True)
class Leaderboard:
    """All `trials`, by folder, and their `groups`, the best of each data set first.

    `keys` are the settings in which trials differ, `metric` is the validation metric that they are ranked by.
    """

    folder: Path
    trials: Sequence[Trial]
    groups: Sequence[TrialGroup]
    keys: Sequence[str]
    metric: str

    @property
    def lower_is_better(self) -> bool:
        """Whether the smallest value of the metric is the best."""
        return MONITORS.get(self.metric) == "min"

    @property
    def importance(self) -> list[tuple[str, float]]:
        """Each key with the share of the values' variance that it explains, the largest first; a seed's is chance."""
        ranked = [trial for trial in self.trials if trial.finished]
        values = [trial.value for trial in ranked]
        shares = [(key, importance([trial.overrides.get(key, "-") for trial in ranked], values)) for key in self.keys]
        return sorted(((key, share) for key, share in shares if share is not None), key=lambda pair: -pair[1])

    @property
    def sizes(self) -> list[SizeSeries]:
        """Accuracy by number of training images, where trials differ in `dataset.fraction`: a series per other override."""
        if FRACTION not in self.keys:
            return []
        series: dict[str, SizeSeries] = {}
        for group in self.groups:
            name = ", ".join(f"{key}={value}" for key, value in group.overrides.items() if key != FRACTION)
            validation, test = group.accuracies("val"), group.accuracies("test")
            run = group.trials[0].run
            if validation and run:
                spread = stdev(validation) if len(validation) > 1 else None
                point = (int(run.metrics["train"]["count"]), fmean(validation), spread, fmean(test) if test else None)
                series.setdefault(name, SizeSeries(name=name, points=[]))["points"].append(point)
        for one in series.values():
            one["points"].sort()
        return list(series.values())


def finish_sweep(folder: Path) -> int:
    """End a sweep with its leaderboard, if it has trials, and return how many failed."""
    trials = find_trials(folder)
    if trials:
        write_leaderboard(folder)
    return sum(record.state == "failed" for _, record in trials)


def write_leaderboard(folder: Path) -> None:
    """Print and write the leaderboard of the sweep in `folder`, as it stands now; raises `DataError` for no trials."""
    from imgclf.report.page import sweep_page  # here, because it loads OpenCV

    board = read_sweep(folder)
    _print_board(board)
    _write_csv(board, folder / "sweep.csv")
    write_atomically(folder / "sweep.html", sweep_page(page_data(board)))
    written = ["sweep.csv", "sweep.html"]
    if board.sizes:
        from imgclf.report.plots import plot_sizes  # here, because it loads matplotlib

        plot_sizes(board.sizes, folder / "data_size.png")
        written.append("data_size.png")
    print(f"{folder}: {', '.join(written)}", flush=True)


def read_sweep(folder: Path) -> Leaderboard:
    """Return the sweep in `folder` as it stands now; raises `DataError` for a folder without trials."""
    trials = [_read_trial(path, record) for path, record in find_trials(folder)]
    if not trials:
        raise DataError(f"{folder}: holds no trials; pass the hydra.sweep.dir of `imgclf train -m`")
    names = sorted({key for trial in trials for key in trial.overrides})
    keys = [key for key in names if len({trial.overrides.get(key) for trial in trials}) > 1]
    metric = str((trials[0].record.settings.get("checkpoint") or {}).get("monitor", CheckpointConfig.monitor))
    members: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in trials:
        if trial.finished:
            shared = tuple((key, trial.overrides.get(key, "-")) for key in keys if key != SEED)
            members.setdefault(shared, []).append(trial)
    groups = [TrialGroup(dict(shared), same) for shared, same in members.items()]
    sign = 1 if MONITORS.get(metric) == "min" else -1
    groups.sort(key=lambda group: (group.dataset, sign * group.value))
    return Leaderboard(folder, trials, groups, keys, metric)


def _read_trial(folder: Path, record: TrialRecord) -> Trial:
    overrides = {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in record.overrides)}
    run, epochs = None, 0
    try:
        if record.state == "finished":
            run = read_run(folder, folder.name)
        history = folder / "history.csv"
        epochs = len(run.history if run else read_history_csv(history) if history.is_file() else [])
    except DataError:  # its files are missing or damaged: it can't be ranked, the others can
        pass
    return Trial(folder, record, run, overrides, epochs)


def _print_board(board: Leaderboard) -> None:
    """Print the groups as a table, and one line per trial that isn't finished."""
    keys = [key for key in board.keys if key != SEED]
    rows = []
    for rank, group in enumerate(board.groups, start=1):
        epochs = "/".join(dict.fromkeys(str(trial.epochs) for trial in group.trials))
        seconds = f"{sum(trial.record.seconds for trial in group.trials):.0f}"
        accuracies = group.format_accuracy("val"), group.format_accuracy("test")
        rows.append([str(rank), *(group.overrides.get(key, "-") for key in keys), *accuracies, epochs, seconds])
    if rows:
        print_table(["", *keys, "validation", "test", "epochs", "seconds"], rows)
        each = ", each data set by itself" if len({group.dataset for group in board.groups}) > 1 else ""
        print(f"ranked by {board.metric}{each}; look at test only for the trial that you choose")
    for trial in board.trials:
        if not trial.finished:
            reason = f": {trial.record.error}" if trial.record.error else ""
            print(f"{trial.record.state}, {trial.epochs} epochs: {trial.folder.name}{reason}")


def _write_csv(board: Leaderboard, path: Path) -> None:
    """Write one row per trial, the best first, those that aren't finished last."""
    ranks = {trial.folder: rank for rank, group in enumerate(board.groups, start=1) for trial in group.trials}
    measured = [f"{split}_{name}" for split, name in _MEASURED]
    header = ["rank", "folder", "state", *board.keys, "value", *measured, "epochs", "seconds", "error"]
    rows = []
    for trial in sorted(board.trials, key=lambda trial: ranks.get(trial.folder, len(ranks) + 1)):
        record, metrics = trial.record, trial.run.metrics if trial.run else {}
        overrides = [trial.overrides.get(key, "") for key in board.keys]
        values = [metrics.get(split, {}).get(name, "") for split, name in _MEASURED]
        value = "" if record.value is None else record.value
        ends = [trial.epochs, round(record.seconds, 1), record.error or ""]
        rows.append([ranks.get(trial.folder, ""), trial.folder.name, trial.state, *overrides, value, *values, *ends])
    write_csv(path, header, rows)


def importance(levels: Sequence[str], values: Sequence[float]) -> float | None:
    """Return the share of the variance of `values` that the `levels` of a setting explain beyond chance, from 0 to 1.

    This is epsilon squared: T. L. Kelley, PNAS 21 (1935), 554. None where there are too few values. Numbers with more
    than four levels are grouped by quartile.
    """
    levels = _quartiles(levels)
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


def _quartiles(levels: Sequence[str]) -> Sequence[str]:
    if len(set(levels)) <= BINS:
        return levels
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        return levels
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    quartiles = [""] * len(numbers)
    for rank, index in enumerate(order):
        quartiles[index] = str(rank * BINS // len(order))
    return quartiles


def page_data(board: Leaderboard) -> dict[str, object]:
    """Return the content of the page, as `sweep.js` draws it."""
    groups = [
        {
            "dataset": group.dataset,
            "overrides": group.overrides,
            "validation": group.format_accuracy("val"),
            "test": group.format_accuracy("test"),
        }
        for group in board.groups
    ]
    trials = [
        {
            "folder": trial.folder.name,
            "overrides": trial.overrides,
            "state": trial.state,
            "epochs": trial.epochs,
            "value": trial.record.value if trial.finished else None,
            "seconds": trial.record.seconds,
            "error": trial.record.error,
            "interval": trial.run.interval("val") if trial.run else None,
        }
        for trial in board.trials
    ]
    return {
        "title": f"Sweep: {board.folder.absolute().name}",
        "metric": board.metric,
        "lower_is_better": board.lower_is_better,
        "keys": board.keys,
        "groups": groups,
        "trials": trials,
        "importance": board.importance,
        "sizes": board.sizes,
    }
