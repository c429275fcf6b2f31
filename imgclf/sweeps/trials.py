"""A trial of a sweep, trained in a process of its own: whatever becomes of that, the other trials go on, and its memory is
given back. Works under every launcher, because the task function that a launcher runs starts the process and waits.

On Linux the processes are forked from one that has loaded torch already, so that only the first waits for that.
"""

import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from imgclf.errors import ImgclfError, RunError
from imgclf.files.run_folder import TrialRecord, read_record, write_record
from imgclf.signals import Interrupted, catch_signals, exit_with_parent

__all__ = ["main", "run_trial"]

_LOCK, LOG = ".trial.lock", "log.txt"


def run_trial(settings: Mapping[str, Any], folder: Path, overrides: Sequence[str], log: bool = False,
              threads: int | None = None) -> float | None:  # fmt: skip
    """Train with `settings` in `folder`, or go on where that was begun, and return the value that the sweep is about; of a
    trial that is finished already, at once. With `log` what it says goes into log.txt there. `threads`: how many it may use.

    Raises `RunError` for a trial that failed, whatever the way, and `Interrupted` when this process is told to stop; the
    trial has then saved itself.
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
            print(f"trial {folder.name}: finished already{_said(known.value)}", flush=True)
            return known.value
        if (folder / "checkpoints" / "last.ckpt").is_file():
            settings = {**settings, "ckpt_path": "last"}
        elif known:
            _clear(folder)  # of an attempt that ended before it saved anything
        record = TrialRecord(list(overrides), settings, seconds=known.seconds if known else 0.0)
        write_record(folder, record)
        print(f"trial {folder.name}: {' '.join(overrides) or 'no overrides'}", flush=True)
        return _supervise(record, folder, log, threads)
    finally:
        lock.release()


def _supervise(record: TrialRecord, folder: Path, log: bool, threads: int | None) -> float | None:
    """ResumePoint the process, wait for it, and write down what became of it."""
    began = time.monotonic()
    process, connection = _start(folder, log, threads)
    told: tuple[str, Any] | None = None
    with catch_signals():
        try:
            wait([connection, process.sentinel])
            with suppress(EOFError, OSError):
                told = connection.recv() if connection.poll() else None
            process.join()
        except Interrupted as stop:
            with suppress(ProcessLookupError):  # it doesn't get a terminal's Ctrl-C, being in a session of its own
                os.kill(process.pid, stop.signum)
            process.join()
            write_record(
                folder, replace(record, state="interrupted", seconds=record.seconds + time.monotonic() - began)
            )
            raise Interrupted(stop.signum, f"interrupted by {signal.Signals(stop.signum).name}; the same command, with "
                              f"hydra.sweep.dir={folder.parent}, goes on") from None  # fmt: skip
    seconds = record.seconds + time.monotonic() - began
    what, value = told or ("error", None)
    if what == "error":
        reason = str(value or _fate(process.exitcode))
        where = f"; see {folder / LOG}" if log else ""
        write_record(folder, replace(record, state="failed", error=reason, seconds=seconds))
        print(f"imgclf: trial {folder.name} failed: {reason}{where}", file=sys.stderr, flush=True)
        raise RunError(f"trial {folder.name} failed: {reason}{where}")
    write_record(folder, replace(record, state="finished", value=value, seconds=seconds))
    print(f"trial {folder.name}: finished in {seconds:.0f} s{_said(value)}", flush=True)
    return value


def _start(folder: Path, log: bool, threads: int | None) -> tuple[Any, Connection]:
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method(None, force=True)  # joblib's own, of which the new process would know nothing
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["imgclf.training.run"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(str(folder), theirs, log, threads))
    process.start()
    theirs.close()
    return process, ours


def _work(folder: str, connection: Connection, log: bool, threads: int | None) -> None:
    """What the process does: train, and tell the one that waits what came of it."""
    if hasattr(os, "setsid"):
        os.setsid()
    exit_with_parent()
    if log:
        with open(Path(folder) / LOG, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    if threads:
        os.environ["IMGCLF_THREADS"] = str(threads)
    # Lightning starts the other processes of a distributed run with the command line of this one: `main` below.
    sys.argv = [__file__, folder]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("imgclf.sweeps.trials")
    os.environ["SLURM_JOB_NAME"] = "bash"  # by which Lightning knows that it shall start them, not SLURM
    told: tuple[str, Any]
    try:
        told = "value", _train(folder)
    except ImgclfError as error:
        told = "error", str(error)
    except Interrupted as stop:
        print(f"imgclf: {stop}", file=sys.stderr, flush=True)
        told = "error", str(stop)
    except Exception as error:  # a bug, or a package's: the traceback is for whoever mends it, the line for the table
        traceback.print_exc()
        told = "error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    with suppress(OSError):  # there may be nobody left who waits
        connection.send(told)


def _train(folder: str) -> float | None:
    from imgclf.cli.malloc import tune_malloc  # here, because the process that waits needs none of it
    from imgclf.training.run import train

    record = read_record(Path(folder))
    if record is None:
        raise RunError(f"{folder}: holds no trial; expected the folder of a trial of a sweep")
    tune_malloc()
    if threads := os.environ.get("IMGCLF_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    return train(dict(record.settings), Path(folder), record.overrides)


def _fate(exitcode: int | None) -> str:
    """Why a process ended that said nothing."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        memory = ", most likely because memory ran out" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{memory}; the same command goes on with it"
    return f"its process ended with exit code {exitcode}"


def _said(value: float | None) -> str:
    return "" if value is None else f", {value:.4f}"


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def main(folder: str) -> None:
    """What another process of a distributed trial does; its errors are told by the first."""
    _train(folder)


if __name__ == "__main__":
    main(sys.argv[1])
