"""A trial of a sweep, trained in a process of its own: its failure leaves the other trials alone, and its memory is freed.

This works under every launcher, because the task function that a launcher runs starts the process and waits. On Linux
the processes are forked from one that has already loaded torch, so that only the first trial waits for that.
"""

import codecs
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

from imgclf.config import RunConfig
from imgclf.console import print_line, print_message, progress_bar, replace_unprintable, shell_path
from imgclf.errors import ImgclfError, RunError, one_line
from imgclf.files.run_folder import PRUNED, TrialRecord, read_record, write_record
from imgclf.signals import Interrupted, catch_signals, exit_with_parent

__all__ = ["main", "run_trial"]

_LOCK, LOG = ".trial.lock", "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a trial's process reports as it ends: the `value` of the sweep's metric, or an `error`."""

    value: float | None = None
    error: str | None = None


def run_trial(
    config: RunConfig,
    folder: Path,
    overrides: Sequence[str],
    name: str = "trial",
    label: str = "trial",
    *,
    threads: int | None = None,
    live: bool = False,
) -> float | None:
    """Train with `config` in `folder`, or resume the trial there, and return the value of the sweep's metric.

    A finished trial returns its value at once. The trial prints into log.txt there, and with `config.verbose` here too; else
    one line with its `name` and result is printed. `threads`: how many threads it may use. `live`: show its progress
    after `label` while it runs. Raises `RunError` for a trial that failed in any way, and `Interrupted` when a signal
    stops this process; the trial has then saved itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder}: another process trains this trial; wait for it, or pass another hydra.sweep.dir"
        ) from None
    try:
        known = read_record(folder)
        if known and known.state == "finished":
            _print_result(config, name, known, folder, "finished already")
            return known.value
        if (folder / "checkpoints" / "last.ckpt").is_file():
            config = replace(config, ckpt_path="last")
        elif known:
            _clear(folder)  # of an attempt that ended before it saved anything
        record = TrialRecord(list(overrides), config.to_dict(), seconds=known.seconds if known else 0.0)
        write_record(folder, record)
        record = _supervise(config, record, folder, name, label, threads, live)
        _print_result(config, name, record, folder, f"{record.seconds:.0f} s")
        return record.value
    finally:
        lock.release()


def _supervise(
    config: RunConfig, record: TrialRecord, folder: Path, name: str, label: str, threads: int | None, live: bool
) -> TrialRecord:
    """Start the process, wait for it, record its outcome, and return the record."""
    began = time.monotonic()
    process, connection = _start(folder, threads)
    outcome = None
    with catch_signals():
        try:
            _follow(
                config,
                folder,
                label,
                live,
                lambda seconds: _ended(process, connection, seconds),
            )
            with suppress(EOFError, OSError):
                outcome = connection.recv() if connection.poll() else None
            process.join()
        except Interrupted as stop:
            if process.pid:
                with suppress(ProcessLookupError):  # in a session of its own, it doesn't get a terminal's Ctrl-C
                    os.kill(process.pid, stop.signum)
            process.join()
            seconds = record.seconds + time.monotonic() - began
            write_record(folder, replace(record, state="interrupted", seconds=seconds))
            signal_name = signal.Signals(stop.signum).name
            again = f"the same command, with hydra.sweep.dir={folder.parent}, resumes the sweep"
            raise Interrupted(stop.signum, f"interrupted by {signal_name}; {again}") from None
    seconds = record.seconds + time.monotonic() - began
    outcome = outcome or Outcome(error=_exit_reason(process.exitcode))
    if outcome.error is not None:
        write_record(folder, replace(record, state="failed", error=outcome.error, seconds=seconds))
        reason = textwrap.shorten(outcome.error.partition(";")[0], 160, placeholder=" ...")
        failure = f"{name}: failed after {seconds:.0f} s: {reason}; see {shell_path(folder / LOG)}"
        print_line(f"imgclf: {failure}", error=True)
        raise RunError(failure)
    record = replace(record, state="finished", value=outcome.value, seconds=seconds)
    write_record(folder, record)
    return record


def _ended(process: BaseProcess, connection: Connection, seconds: float) -> bool:
    """Return whether the trial ends within some seconds."""
    return bool(wait([connection, process.sentinel], seconds))


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


def _start(folder: Path, threads: int | None) -> tuple[BaseProcess, Connection]:
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method(None, force=True)  # joblib's own, which the new process wouldn't know
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["imgclf.training.run"])
    else:
        context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(str(folder), theirs, threads))
    process.start()
    theirs.close()
    return process, ours


def _work(folder: str, connection: Connection, threads: int | None) -> None:
    """Train in the process, and send the outcome to the one that waits."""
    if hasattr(os, "setsid"):
        os.setsid()
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
        outcome = Outcome(_train(folder))
    except (ImgclfError, Interrupted) as error:
        print_message(str(error))
        outcome = Outcome(error=str(error))
    except Exception as error:  # a bug, here or in a package: the log gets the traceback, the leaderboard the line
        traceback.print_exc()
        outcome = Outcome(error=f"{type(error).__name__}: {one_line(error)}")
    with suppress(OSError):  # the waiting process may have ended
        connection.send(outcome)


def _train(folder: str) -> float | None:
    from imgclf.cli.malloc import tune_malloc  # here, because the waiting process needs none of it
    from imgclf.training.run import train

    record = read_record(Path(folder))
    if record is None:
        raise RunError(f"{folder}: holds no trial; pass the folder of a trial of a sweep")
    tune_malloc()
    if threads := os.environ.get("IMGCLF_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    return train(RunConfig.from_dict(record.settings), Path(folder), record.overrides)


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
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def main(folder: str) -> None:
    """Train as another process of a distributed trial; the first one reports its errors."""
    _train(folder)


if __name__ == "__main__":
    main(sys.argv[1])
