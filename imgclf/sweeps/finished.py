"""Whether a trial that finished in an earlier sweep can be believed: the same settings, the same data, readable results."""

import json
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from imgclf.config import CheckConfig, RunConfig
from imgclf.data.location import locate
from imgclf.data.manifest import difference
from imgclf.errors import ConfigError, DataError, ImgclfError, RunError
from imgclf.files.trial_record import TrialRecord
from imgclf.schema import flatten
from imgclf.signals import leave_group
from imgclf.sweeps.comparison import MATTER, read_run
from imgclf.sweeps.process import BEGUN, ChildProcess

__all__ = ["changed_data", "changed_setting", "missing_results"]

Plain = dict[str, Any]
_known: dict[str, Plain] = {}  # the fingerprints that this process has asked for, by the settings that they depend on
_asking = threading.Lock()  # trials that run at the same time ask once


def changed_setting(
    theirs: Mapping[str, Any], ours: RunConfig, free: Collection[str] = ()
) -> tuple[str, str, str] | None:
    """Return the first setting on which results depend and that differs, as (key, value there, value here); None without one.

    `free`: keys, or groups of keys, that may differ.
    """
    with suppress(ConfigError):  # of another version's settings
        theirs = RunConfig.from_dict(theirs).to_dict()  # a record without newer settings has their defaults
    may_change = (key for key in RunConfig.keys_with("may_change") if key not in MATTER or key == "dataset.exclude")
    ignored = tuple(f"{key}." for key in (*may_change, *free))
    there, here = flatten(theirs), flatten(ours.to_dict())
    for key in {**there, **here}:
        if not f"{key}.".startswith(ignored) and there.get(key) != here.get(key):
            return key, str(there.get(key)), str(here.get(key))
    return None


def changed_data(config: RunConfig, record: TrialRecord, folder: Path) -> str | None:
    """Return in what the data of `config` differ from those that the finished trial in `folder` was trained on; None for the
    same data. Raises `ImgclfError` for data that can't be read.
    """
    if config.check == "exclude":  # the trial's own settings have the files that it left out
        config = replace(config, dataset=replace(config.dataset, exclude=_excluded(folder)))
    settings = {**config.to_dict(), "seed": config.seed if config.dataset.fraction < 1 else 0}
    root = "demo" if config.data_dir == "demo" else str(locate(config.dataset.name, config.data_dir))
    parts = {"root": root, "seed": settings["seed"], "dataset": settings["dataset"]}
    key = json.dumps([value for name, value in flatten(parts).items() if name not in CheckConfig.unused], default=str)
    best = folder / "checkpoints" / "best.ckpt"
    old = best if not record.fingerprint and best.is_file() else None  # a record of an earlier version
    theirs: Plain = {}
    with _asking:
        if old or key not in _known:
            theirs, _known[key] = _ask(settings, old)
    theirs = record.fingerprint or theirs
    return difference(theirs, _known[key]) if theirs else None


def missing_results(folder: Path) -> str | None:
    """Return what is wrong with the results of the finished trial in `folder`, such as "has no metrics.json"; None for
    readable ones.
    """
    try:
        read_run(folder, folder.name)
    except DataError as error:
        return str(error).removeprefix(f"{folder}: ").partition(";")[0]
    return None


def _excluded(folder: Path) -> Any:
    """Return `dataset.exclude` of the trial in `folder`, None where its settings can't be read."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return flatten(settings).get("dataset.exclude") if isinstance(settings, dict) else None


def _ask(settings: Plain, checkpoint: Path | None) -> tuple[Plain, Plain]:
    """Return the fingerprints in the checkpoint, if one is given, and of the settings' data, which another process computes:
    that needs torch.
    """
    process = ChildProcess(_send_fingerprints, settings, checkpoint)
    process.join()
    if isinstance(process.outcome, ImgclfError):
        raise process.outcome
    if process.outcome is None:
        raise RunError(f"the process that looks at the data ended with exit code {process.exitcode}; try it again")
    theirs, ours = process.outcome
    return theirs, ours


def _send_fingerprints(settings: Plain, checkpoint: Path | None, connection: Connection) -> None:
    """Send (fingerprint in the checkpoint, fingerprint of the data), or the error that a user can act upon."""
    leave_group()  # a terminal's Ctrl-C is for the process that waits
    from imgclf.models.checkpoint import read_checkpoint  # here, because these load torch
    from imgclf.training.build import data_of

    connection.send(BEGUN)
    try:
        theirs = read_checkpoint(checkpoint)["imgclf"].get("fingerprint") if checkpoint else None
        connection.send((theirs or {}, data_of(RunConfig.from_dict(settings)).fingerprint()))
    except ImgclfError as error:
        connection.send(error)
