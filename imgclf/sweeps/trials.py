"""A trial of a sweep, trained in a process of its own: its failure leaves the other trials alone, and its memory is freed.

This works under every launcher, because the task function that a launcher runs starts the process and waits. On Linux
the processes are forked from one that has already loaded torch, so that only the first trial waits for that.
"""

import codecs
import importlib.util
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import Timeout

from imgclf.config import RunConfig
from imgclf.console import print_line, print_message, progress_bar, replace_unprintable, shell_path
from imgclf.errors import ImgclfError, RunError, TrialError, one_line
from imgclf.files.atomic import delete_leftovers
from imgclf.files.run_folder import RUN_LOCK
from imgclf.files.trial_record import PRUNED, TRIAL, TRIAL_LOCK, TrialRecord, read_record, trial_lock, write_record
from imgclf.signals import Interrupted, Signals, catch_signals, exit_with_parent, resumable
from imgclf.sweeps.finished import changed_data, changed_setting, missing_results
from imgclf.sweeps.process import BEGUN, ChildProcess

__all__ = ["main", "run_trial"]

LOG = "log.txt"
_LOCK_SECONDS = 1.0  # `imgclf sweep` holds the lock for a moment, to see whether somebody has it


@dataclass(frozen=True)
class Outcome:
    """What a trial's process reports as it ends: the `value` of the sweep's metric and the data's `fingerprint`, or an
    `error`.
    """

    value: float | None = None
    error: str | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)


def run_trial(
    config: RunConfig,
    folder: Path,
    overrides: Sequence[str],
    name: str = "trial",
    label: str = "trial",
    *,
    threads: int | None = None,
    live: bool = False,
    signals: Signals | None = None,
) -> float | None:
    """Train with `config` in `folder`, or resume the trial there, and return the value of the sweep's metric.

    A finished trial returns its value at once, if its settings and data are still the same. The trial prints into log.txt
    there, and with `config.verbose` here too; else one line with its `name` and result is printed. `threads`: how many
    threads it may use. `live`: show its progress after `label` while it runs. `signals`: those that another thread
    receives for this one. Raises `TrialError` for a trial that failed in any way, or that was trained with other settings
    or data, and `Interrupted` when a signal stops this process; the trial has then saved itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = trial_lock(folder)
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise RunError(
            f"{folder}: another process trains this trial; wait for it, or pass another hydra.sweep.dir"
        ) from None
    try:
        delete_leftovers(folder)  # of a killed write
        known = read_record(folder)
        saved = (folder / "checkpoints" / "last.ckpt").is_file()
        if known and (saved or known.state == "finished"):
            _refuse_changes(config, folder, known, name)
        if known and known.state == "finished":
            if not (problem := missing_results(folder)):
                _print_result(config, name, known, folder, "finished already")
                return known.value
            print_line(f"{name}: finished already, but its folder {problem}; its results are made again")
            (folder / "environment.json").unlink(missing_ok=True)  # by which a run counts as finished
            saved = saved and (folder / "checkpoints" / "best.ckpt").is_file()
        if saved:
            config = replace(config, ckpt_path="last")
        elif (folder / TRIAL).exists():
            _clear(folder)  # of an attempt that ended before it saved anything
        record = TrialRecord(list(overrides), config.to_dict(), seconds=_seconds_so_far(folder, known))
        write_record(folder, record)
        record = _supervise(config, record, folder, name, label, threads, live, signals)
        _print_result(config, name, record, folder, f"{record.seconds:.0f} s")
        return record.value
    finally:
        lock.release()


def _refuse_changes(config: RunConfig, folder: Path, known: TrialRecord, name: str) -> None:
    """Raise `TrialError` if the trial in `folder` was trained with other settings, or finished with other data; nothing of it
    is changed.
    """
    if changed := changed_setting(known.settings, config):
        key, there, here = changed
        problem, way = f"was trained with {key}={there}, this command has {here}", "pass that value"
    elif known.state != "finished":  # the trial's own process compares the data with its checkpoint's
        return
    else:
        try:
            difference = changed_data(config, known, folder)
        except ImgclfError as error:
            problem, way = f"finished already, and its data can't be compared: {error}", "restore the data"
        else:
            if not difference:
                return
            problem, way = f"finished with other data ({difference})", "restore the data"
    others = f"delete {shell_path(folder)} to train it again, or pass another hydra.sweep.dir"
    _fail(f"{name}: {problem}; {way}, {others}")


def _fail(line: str) -> None:
    print_line(f"imgclf: {line}", error=True)
    raise TrialError(line)


def _seconds_so_far(folder: Path, known: TrialRecord | None) -> float:
    """Return the wall time of all attempts; that of a sweep which was killed ended when its trial last printed something."""
    if known is None:
        return 0.0
    last = 0.0
    if known.state == "running":
        with suppress(OSError):
            last = (folder / LOG).stat().st_mtime - (folder / TRIAL).stat().st_mtime
    return known.seconds + max(0.0, last)


def _supervise(
    config: RunConfig,
    record: TrialRecord,
    folder: Path,
    name: str,
    label: str,
    threads: int | None,
    live: bool,
    signals: Signals | None,
) -> TrialRecord:
    """Start the process, wait for it, record its outcome, and return the record."""
    process: ChildProcess | None = None
    with nullcontext(signals) if signals else catch_signals() as caught:
        try:
            process = child = ChildProcess(_work, str(folder), threads)
            _follow(config, folder, label, live, lambda seconds: child.ended(seconds, caught))
            child.join()
        except Interrupted as stop:
            seconds = record.seconds
            if process:
                process.stop(stop.signum)
                seconds += process.seconds
            write_record(folder, replace(record, state="interrupted", seconds=seconds))
            raise Interrupted(stop.signum, resumable(stop.signum, folder.parent)) from None
    record = replace(record, seconds=record.seconds + child.seconds)
    outcome = child.outcome or Outcome(error=_exit_reason(child.exitcode))
    if outcome.error is not None:
        write_record(folder, replace(record, state="failed", error=outcome.error))
        reason = textwrap.shorten(outcome.error.partition(";")[0], 160, placeholder=" ...")
        _fail(f"{name}: failed after {record.seconds:.0f} s: {reason}; see {shell_path(folder / LOG)}")
    record = replace(record, state="finished", value=outcome.value, fingerprint=outcome.fingerprint)
    write_record(folder, record)
    return record


def _follow(config: RunConfig, folder: Path, label: str, live: bool, ended: Callable[[float], bool]) -> None:
    """Until the trial has `ended`, show how many epochs are done, or all that it prints."""
    log, history = folder / LOG, folder / "history.csv"
    done, total = 0, config.trainer.max_epochs
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a chunk may end within a character
    with (
        log.open("ab+") as file,
        progress_bar(f"{label}, epochs", total, shown=live and not config.verbose) as advance,
    ):
        over = False
        while not over:
            over = ended(0.5)
            if config.verbose:
                sys.stdout.write(text.decode(file.read(), final=over))
                sys.stdout.flush()
            with suppress(OSError):
                rows = history.read_bytes().count(b"\n") - 1
                advance(max(0, rows - done))
                done = max(done, rows)


def _work(folder: str, threads: int | None, connection: Connection) -> None:
    """Train in the process, and send the outcome to the one that waits."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that it is forked from ignores it
    exit_with_parent()
    with open(Path(folder) / LOG, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    replace_unprintable()
    if threads:
        os.environ["IMGCLF_THREADS"] = str(threads)
    # Lightning starts the other processes of a distributed run with the command line of this one: `main` below.
    sys.argv = [__file__, folder]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("imgclf.sweeps.trials")
    os.environ["SLURM_JOB_NAME"] = "bash"  # tells Lightning to start them itself, without SLURM
    try:
        value = _train(folder, lambda: connection.send(BEGUN))
        outcome = Outcome(value, fingerprint=_fingerprint(folder))
    except (ImgclfError, Interrupted) as error:
        print_message(str(error))
        outcome = Outcome(error=str(error))
    except Exception as error:  # a bug, here or in a package: the log gets the traceback, the leaderboard the line
        traceback.print_exc()
        outcome = Outcome(error=f"{type(error).__name__}: {one_line(error)}")
    with suppress(OSError):  # the waiting process may have ended
        connection.send(outcome)


def _train(folder: str, begin: Callable[[], None] = lambda: None) -> float | None:
    """Train the trial whose record is in `folder`; `begin` is called when everything that it needs is loaded."""
    from imgclf.malloc import tune_malloc  # here, because the waiting process needs none of it
    from imgclf.training.run import train

    record = read_record(Path(folder))
    if record is None:
        raise RunError(f"{folder}: holds no trial; pass the folder of a trial of a sweep")
    begin()
    tune_malloc()
    if threads := os.environ.get("IMGCLF_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    return train(RunConfig.from_dict(record.settings), Path(folder), record.overrides)


def _fingerprint(folder: str) -> dict[str, Any]:
    """Return that of the data that the trained trial in `folder` has used."""
    from imgclf.models.checkpoint import read_checkpoint  # here, because it loads torch

    return read_checkpoint(Path(folder) / "checkpoints" / "last.ckpt")["imgclf"].get("fingerprint") or {}


def _exit_reason(exitcode: int | None) -> str:
    """Return why a process ended without an outcome."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        memory = ", most likely because memory ran out" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{memory}; the same command resumes it"
    return f"its process ended with exit code {exitcode}"


def _print_result(config: RunConfig, name: str, record: TrialRecord, folder: Path, state: str) -> None:
    value = "" if record.value is None else f"{config.checkpoint.monitor} {record.value:.4f}, "
    pruned = ", pruned" if (folder / PRUNED).is_file() else ""
    print_line(f"{name}: {value}{state}{pruned}, {shell_path(folder)}")


def _clear(folder: Path) -> None:
    """Empty the trial's folder; its record stays until it is replaced, so that a killed clearing is begun again."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (TRIAL, TRIAL_LOCK, RUN_LOCK):
            path.unlink()


def main(folder: str) -> None:
    """Train as another process of a distributed trial; the first one reports its errors."""
    _train(folder)


if __name__ == "__main__":
    main(sys.argv[1])
