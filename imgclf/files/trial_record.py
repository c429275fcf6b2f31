"""What is known of one trial of a sweep: a file in its folder, by which the trial is found again and ranked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imgclf.files.atomic import write_atomically

__all__ = ["PRUNED", "STATES", "TrialRecord", "find_trials", "read_record", "write_record"]

_NAME = "trial.json"
PRUNED = "pruned.txt"  # beside it, in one that was stopped because others were better
STATES = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class TrialRecord:
    """A trial with the `overrides` that it is known by and the whole `settings`; `state` is one of `STATES`, `value` what the
    sweep maximises or minimises, `error` why it failed, `seconds` its wall time so far, in all attempts.
    """

    overrides: list[str]
    settings: Mapping[str, Any] = field(repr=False)
    state: str = "running"
    value: float | None = None
    error: str | None = None
    seconds: float = 0.0


def read_record(folder: Path) -> TrialRecord | None:
    """The record in `folder`; None where there is none that can be read."""
    try:
        record = TrialRecord(**json.loads((folder / _NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    right = record.state in STATES and isinstance(record.overrides, list) and isinstance(record.settings, dict)
    return record if right and isinstance(record.seconds, (int, float)) else None


def write_record(folder: Path, record: TrialRecord) -> None:
    """Replace the record in `folder`."""
    write_atomically(folder / _NAME, json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")


def find_trials(folder: Path) -> list[tuple[Path, TrialRecord]]:
    """Every trial of the sweep in `folder`, by the names of their folders."""
    found = ((path.parent, read_record(path.parent)) for path in sorted(folder.glob(f"*/{_NAME}")))
    return [(path, record) for path, record in found if record is not None]
