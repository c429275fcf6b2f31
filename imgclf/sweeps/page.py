"""The content of sweep.html: a leaderboard as `sweep.js` draws it."""

from collections.abc import Mapping
from urllib.parse import quote

from imgclf.console import lines_of_model
from imgclf.sweeps.leaderboard import Leaderboard, Trial

__all__ = ["page_data"]


def page_data(board: Leaderboard) -> dict[str, object]:
    """Return the content of the page; links are relative to the sweep's folder."""
    ranked = board.ranked
    folders = {trial.folder for _, trial in ranked}
    groups = [
        {
            "rank": rank,
            "dataset": group.dataset,
            "name": board.describe(group.overrides),
            "value": group.value,
            "validation": group.format_accuracy("val"),
            "test": group.format_accuracy("test"),
            "trials": len(group.trials),
        }
        for rank, group in board.ranked_groups
    ]
    winners = [
        {
            "dataset": winner.dataset,
            "group": next(group for group in groups if group["dataset"] == winner.dataset),
            **_link(board, winner),
            "command": lines_of_model(winner.checkpoint, winner.folder)["predict"]
            if winner.checkpoint.is_file()
            else None,
        }
        for winner in board.winners
    ]
    return {
        "title": f"Sweep: {board.folder.absolute().name}",
        "metric": board.metric,
        "lower_is_better": board.lower_is_better,
        "keys": list(board.names.items()),
        "winners": winners,
        "groups": groups,
        "trials": [_trial(board, trial) | {"rank": rank} for rank, trial in ranked],
        "unfinished": [_trial(board, trial) for trial in board.trials if trial.folder not in folders],
        "importance": board.importance,
        "sizes": board.sizes,
    }


def _trial(board: Leaderboard, trial: Trial) -> dict[str, object]:
    test = trial.run.metrics.get("test", {}).get("accuracy") if trial.run else None
    return {
        **_link(board, trial),
        "overrides": trial.overrides,
        "state": trial.state,
        "value": trial.record.value if trial.finished else None,
        "validation": trial.run.format_accuracy("val") if trial.run else "",
        "test": trial.run.format_accuracy("test") if trial.run else "",
        "test_accuracy": test,
        "epochs": trial.epochs,
        "seconds": trial.record.seconds,
        "error": trial.error,
    }


def _link(board: Leaderboard, trial: Trial) -> Mapping[str, str]:
    """The trial's name, and the address of its report if it has one, else of its folder."""
    page = "report.html" if (trial.folder / "report.html").is_file() else ""
    return {
        "name": board.describe(trial.overrides),
        "folder": trial.folder.name,
        "href": f"./{quote(trial.folder.name)}/{page}",
    }
