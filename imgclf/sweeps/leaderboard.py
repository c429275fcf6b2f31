"""The leaderboard of a sweep: trials ranked by validation, seeds grouped, each named by the settings in which it differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

from imgclf.config import MONITORS, CheckpointConfig
from imgclf.console import lines_of_model, print_line, print_lines_to_copy, print_table, print_text, shell_path
from imgclf.errors import DataError
from imgclf.files.atomic import write_atomically
from imgclf.files.run_folder import mark_latest
from imgclf.files.trial_record import PRUNED, TrialRecord, find_trials, is_training
from imgclf.report.tables import read_history_csv, write_csv
from imgclf.sweeps.comparison import RunResults, read_run
from imgclf.sweeps.finished import missing_results
from imgclf.sweeps.importance import importance

__all__ = ["Leaderboard", "Trial", "TrialGroup", "finish_sweep", "read_sweep", "write_leaderboard"]

SEED, FRACTION = "seed", "dataset.fraction"
_MEASURED = [
    (split, name) for split in ("val", "test") for name in ("accuracy", "loss", "macro_f1", "correct", "count")
]


@dataclass(frozen=True)
class Trial:
    """A trial as it stands now: `run` holds the results of a finished one, else None; `overrides` are its own, by key.

    `state` is that of its record; but "interrupted" where no process trains it any more, "incomplete" for a finished one whose
    results can't be read, and "pruned" for one that finished early because others were better. `error`: what happened to it.
    """

    folder: Path
    record: TrialRecord
    run: RunResults | None
    overrides: Mapping[str, str]
    epochs: int
    state: str
    error: str | None

    @property
    def finished(self) -> bool:
        """Whether the trial can be ranked."""
        return self.run is not None and self.record.value is not None

    @property
    def value(self) -> float:
        """The metric that trials are ranked by; 0 for a trial that isn't finished."""
        return float(self.record.value or 0.0)

    @property
    def checkpoint(self) -> Path:
        """Where its best checkpoint is."""
        return self.folder / "checkpoints" / "best.ckpt"

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

    def format_short(self, split: str) -> str:
        """Return the same without the numbers of images and seeds, for a table in 80 columns."""
        text = self.format_accuracy(split)
        return text.partition(" (")[0] if len(self.trials) > 1 else text.rpartition(", ")[2]


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
    def names(self) -> Mapping[str, str]:
        """Each key's shortest ending that no other key has: "lr" for optimizer.lr."""
        endings = {key: [".".join(key.split(".")[-n:]) for n in range(1, key.count(".") + 2)] for key in self.keys}
        return {
            key: next(one for one in mine if sum(one in other for other in endings.values()) == 1 or one == key)
            for key, mine in endings.items()
        }

    def describe(self, overrides: Mapping[str, str]) -> str:
        """Return what sets a trial or a group apart: "lr=0.01, seed=1"; of paths the last part, where that is enough."""
        parts = []
        for key, name in self.names.items():
            if key in overrides:
                values = {trial.overrides.get(key, "-") for trial in self.trials}
                distinct = len({value.rpartition("/")[2] for value in values}) == len(values)
                value = overrides[key]
                parts.append(f"{name}={value.rpartition('/')[2] if distinct else value}")
        return ", ".join(parts) or "no overrides"

    @property
    def ranked_groups(self) -> list[tuple[int, TrialGroup]]:
        """(rank, group) of the groups; each data set has ranks of its own, from 1."""
        by_dataset = groupby(self.groups, key=lambda group: group.dataset)
        return [pair for _, groups in by_dataset for pair in enumerate(groups, start=1)]

    @property
    def ranked(self) -> list[tuple[int, Trial]]:
        """(rank, trial) of the finished trials, the best first; trials that differ in their seed alone share a rank."""
        sign = 1 if self.lower_is_better else -1
        return [
            (rank, trial)
            for rank, group in self.ranked_groups
            for trial in sorted(group.trials, key=lambda trial: sign * trial.value)
        ]

    @property
    def winners(self) -> list[Trial]:
        """The best trial of the best group of each data set."""
        best: dict[str, Trial] = {}
        for _, trial in self.ranked:
            best.setdefault(trial.dataset, trial)
        return list(best.values())

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
    """End a sweep with its leaderboard, if it has trials, and return how many failed; the winner of a sweep whose trials all
    finished is the latest run then.
    """
    if not find_trials(folder):
        return 0
    board = write_leaderboard(folder)
    all_finished, winners = all(trial.finished for trial in board.trials), board.winners
    if all_finished and len(winners) == 1 and winners[0].checkpoint.is_file():
        mark_latest(winners[0].folder)
    return sum(trial.state == "failed" for trial in board.trials)


def write_leaderboard(folder: Path) -> Leaderboard:
    """Print, write and return the leaderboard of the sweep in `folder`, as it stands now; raises `DataError` for no trials."""
    from imgclf.report.page import sweep_page  # here, because these load OpenCV
    from imgclf.sweeps.page import page_data

    board = read_sweep(folder)
    _print_board(board)
    _write_csv(board, folder / "sweep.csv")
    write_atomically(folder / "sweep.html", sweep_page(page_data(board)))
    written = ["sweep.csv", "sweep.html"]
    if board.sizes:
        from imgclf.figures.plots import plot_sizes  # here, because it loads matplotlib

        plot_sizes(board.sizes, folder / "data_size.png")
        written.append("data_size.png")
    print_text(f"{shell_path(folder)}: {', '.join(written)}\n")
    _print_winners(board)
    return board


def _print_winners(board: Leaderboard) -> None:
    """Print the best trial's model, the page and how to predict; of several data sets, the best trial of each."""
    page, single = board.folder / "sweep.html", len(board.winners) == 1
    models = [winner for winner in board.winners if winner.checkpoint.is_file()]
    for winner in board.winners:
        print_text(f"best trial{'' if single else f' on {winner.dataset}'}: {board.describe(winner.overrides)}")
        if winner in models:
            print_lines_to_copy(lines_of_model(winner.checkpoint, page if single else winner.folder / "report.html"))
    if not (single and models):
        print_lines_to_copy({"report": page.absolute().as_uri()})


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
    run, epochs, state, error = None, 0, record.state, record.error
    if state == "running" and not is_training(folder):
        state, error = "interrupted", "its process was killed; the same command resumes it"
    try:
        if state == "finished":
            run = read_run(folder, folder.name)
            state = "pruned" if (folder / PRUNED).is_file() else state
        history = folder / "history.csv"
        epochs = len(run.history if run else read_history_csv(history) if history.is_file() else [])
    except DataError:  # its files are missing or damaged: it can't be ranked, the others can
        if state == "finished":
            state, error = "incomplete", f"{missing_results(folder)}; the same command makes its results again"
    return Trial(folder, record, run, overrides, epochs, state, error)


def _print_board(board: Leaderboard) -> None:
    """Print the groups as a table, and one line per trial that isn't finished."""
    keys, rows = [key for key in board.keys if key != SEED], []
    seeds = any(len(group.trials) > 1 for group in board.groups)
    for rank, group in board.ranked_groups:
        epochs = "/".join(dict.fromkeys(str(trial.epochs) for trial in group.trials))
        seconds = f"{sum(trial.record.seconds for trial in group.trials):.0f}"
        results = [group.format_short("val"), group.format_short("test"), str(len(group.trials))][: 2 + seeds]
        rows.append([str(rank), *(group.overrides.get(key, "-") for key in keys), *results, epochs, seconds])
    if rows:
        names = [*(board.names[key] for key in keys), "validation", "test", "seeds"][: len(keys) + 2 + seeds]
        print_table(["", *names, "epochs", "s"], rows)
        each = ", each data set by itself" if len({group.dataset for group in board.groups}) > 1 else ""
        print_text(f"ranked by {board.metric}{each}; look at test only for the trial that you choose")
    for trial in board.trials:
        if not trial.finished:
            reason = f": {trial.error}" if trial.error else ""
            print_line(f"{trial.state}, {trial.epochs} epochs: {board.describe(trial.overrides)}{reason}")


def _write_csv(board: Leaderboard, path: Path) -> None:
    """Write one row per trial, the best first, those that aren't finished last."""
    ranks = {trial.folder: rank for rank, trial in board.ranked}
    measured = [f"{split}_{name}" for split, name in _MEASURED]
    header = ["rank", "folder", "state", *board.keys, "value", *measured, "epochs", "seconds", "error"]
    rows = []
    unranked = [trial for trial in board.trials if trial.folder not in ranks]
    for trial in [*(trial for _, trial in board.ranked), *unranked]:
        record, metrics = trial.record, trial.run.metrics if trial.run else {}
        overrides = [trial.overrides.get(key, "") for key in board.keys]
        values = [metrics.get(split, {}).get(name, "") for split, name in _MEASURED]
        value = "" if record.value is None else record.value
        ends = [trial.epochs, round(record.seconds, 1), trial.error or ""]
        rows.append([ranks.get(trial.folder, ""), trial.folder.name, trial.state, *overrides, value, *values, *ends])
    write_csv(path, header, rows)
