"""A search (Optuna) that is continued: with the settings and data that it began with, and with the trials that were stopped."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from imgclf.config import RunConfig
from imgclf.errors import RunError
from imgclf.files.trial_record import TrialRecord, find_trials
from imgclf.sweeps.finished import changed_data, changed_setting

if TYPE_CHECKING:
    from imgclf.cli.hydra_app import Search

__all__ = ["start_search"]

_locks: list[FileLock] = []  # held until this process ends


def start_search(search: "Search") -> None:
    """Prepare the search for its next trials.

    Raises `RunError` if its finished trials had other settings than those that are searched, or other data: what they have
    shown is not about this search. The trials that a killed or interrupted process left behind are ended in its storage, and
    those that had begun are queued: they are the next, and resume.
    """
    trials = find_trials(search.folder)
    _check_trials(search, [(folder, record) for folder, record in trials if record.state == "finished"])
    if search.folder.is_dir() and _is_alone(search.folder):
        _end_stopped_trials(search, [record for _, record in trials])


def _check_trials(search: "Search", finished: Sequence[tuple[Path, TrialRecord]]) -> None:
    for key in search.swept:
        if key.partition(".")[0].lstrip("+~") not in RunConfig.field_names():
            return  # an experiment, say, which may set anything
    other = "pass another hydra.sweep.dir for another search"
    for folder, record in finished:
        if changed := changed_setting(record.settings, search.settings, [key.lstrip("+~") for key in search.swept]):
            key, there, here = changed
            raise RunError(
                f"{search.folder}: this search was made with {key}={there} ({folder.name}), this command has {here}; "
                f"pass that value, or {other}"
            )
        config = RunConfig.from_dict(record.settings)
        if "data_dir" not in search.swept:
            config = replace(config, data_dir=search.settings.data_dir)
        if difference := changed_data(config, record, folder):
            raise RunError(
                f"{search.folder}: this search was made with other data ({folder.name}: {difference}); "
                f"restore the data, or {other}"
            )


def _is_alone(folder: Path) -> bool:
    """Return whether no other process searches in `folder`, and keep others from being alone."""
    lock = FileLock(folder / ".search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _locks.append(lock)
    return True


def _end_stopped_trials(search: "Search", records: Sequence[TrialRecord]) -> None:
    """End the trials that the storage takes for running, and queue those that a record shows to have begun.

    A storage outside the search's folder may be shared with other machines: trials that aren't in this folder stay as they
    are.
    """
    import optuna  # here, because it is an extra

    optuna.logging.set_verbosity(logging.WARNING)
    ours = search.folder.as_posix() in search.storage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy about its next version, and of Optuna: queueing is experimental
        try:
            study = optuna.load_study(study_name=search.study, storage=search.storage)
        except KeyError:  # it begins now
            return
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            record = next((record for record in records if _is_same(trial.params, record.overrides)), None)
            if record and record.state == "finished":
                study.tell(trial.number, record.value)
            elif record or ours:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                if record and record.state != "failed":
                    study.enqueue_trial(trial.params)


def _is_same(params: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Return whether a trial's `overrides` have these values."""
    return bool(params) and {f"{key}={value}" for key, value in params.items()} <= set(overrides)
