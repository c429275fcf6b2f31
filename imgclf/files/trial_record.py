"""The record of a trial of a sweep in the trial's folder, and the lock of the process that trains it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from imgclf.files.atomic import write_atomically
from imgclf.names import as_json

__all__ = [
    "PRUNED",
    "TRIAL",
    "TRIAL_LOCK",
    "TrialRecord",
    "find_trials",
    "is_training",
    "read_record",
    "trial_lock",
    "write_record",
]

TRIAL, TRIAL_LOCK = "trial.json", ".trial.lock"
PRUNED = "pruned.txt"  # also there, in a trial that was stopped because others were better
STATES = ("running", "finished", "failed", "interrupted")
Plain = dict[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a sweep: the `overrides` that identify it and its whole `settings` as plain data.

    `state` is one of `STATES`, `value` the metric that the sweep optimises, `error` the reason of a failure, `seconds` the
    wall time of all attempts. `fingerprint`: of the data that a finished trial was trained on, as its checkpoint has it.
    """

    overrides: list[str]
    settings: Plain = field(repr=False)
    state: str = "running"
    value: float | None = None
    error: str | None = None
    seconds: float = 0.0
    fingerprint: Plain = field(default_factory=dict, repr=False)


def read_record(folder: Path) -> TrialRecord | None:
    """Return the trial's record in `folder`; None where no readable one exists."""
    try:
        record = TrialRecord(**json.loads((folder / TRIAL).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    right = record.state in STATES and isinstance(record.overrides, list) and isinstance(record.settings, dict)
    right = right and isinstance(record.fingerprint, dict)
    return record if right and isinstance(record.seconds, (int, float)) else None


def write_record(folder: Path, record: TrialRecord) -> None:
    """Replace the record in `folder`."""
    write_atomically(folder / TRIAL, as_json(asdict(record), indent=2) + "\n")


def trial_lock(folder: Path) -> FileLock:
    """Return the lock that the process which trains the trial in `folder` holds; it ends with that process."""
    return FileLock(folder / TRIAL_LOCK)


def is_training(folder: Path) -> bool:
    """Return whether a process trains the trial in `folder` now, as far as can be known: a folder that can't be written to
    may be another user's.
    """
    if not (folder / TRIAL_LOCK).is_file():
        return False
    try:
        with trial_lock(folder).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True


def find_trials(folder: Path) -> list[tuple[Path, TrialRecord]]:
    """Return (folder, record) of every trial of the sweep in `folder`, by name."""
    records = ((path.parent, read_record(path.parent)) for path in sorted(folder.glob(f"*/{TRIAL}")))
    return [(path, record) for path, record in records if record is not None]
