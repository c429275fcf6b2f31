"""SIGINT, SIGTERM and SIGHUP as one exception, raised at a moment at which nothing is lost."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from imgclf.console import shell_quoted

__all__ = [
    "Interrupted",
    "Signals",
    "catch_signals",
    "exit_with_parent",
    "leave_group",
    "quit_at_once",
    "resumable",
]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupted(BaseException):
    """A signal stopped the run; its text is for the user, and `exit_code` is 128 + the signal, as shells expect.

    Not an `Exception`: in a sweep it ends the whole sweep, and nothing that recovers from failures may swallow it.
    """

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text or f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, str]]:
        """Return how a launcher's worker sends it to the process that waits: an exception's own way has the text alone."""
        return type(self), (self.signum, str(self))


class Signals:
    """The signals received. `pending` is the first one that waits for a good moment, or None.

    While `deferring`, a signal waits in `pending` until the code that defers acts on it; else it raises `Interrupted` at
    once. A second SIGINT never waits: it ends the process and its children, in a notebook or a shell only the run.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.deferring = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: remember or raise it."""
        if self.pending is not None:
            if signum == signal.SIGINT:
                if hasattr(sys, "ps1"):  # an interactive session holds more than this run
                    raise Interrupted(signum)
                quit_at_once(signum)
            return
        self.pending = signum
        if not self.deferring:
            raise Interrupted(signum)

    def install(self) -> None:
        """Install the handler where possible: in the main thread, and not for a SIGHUP under nohup."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                signal.signal(number, self.handle)


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Handle the signals inside the block; the former handlers return after it."""
    signals = Signals()
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    signals.install()
    try:
        yield signals
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def resumable(signum: int, folder: Path) -> str:
    """Return the text of the `Interrupted` that ends the sweep in `folder`."""
    again = f"the same command, with {shell_quoted(f'hydra.sweep.dir={folder}')}, resumes the sweep"
    return f"interrupted by {signal.Signals(signum).name}; {again}"


def leave_group() -> None:
    """Let a worker process ignore a terminal's Ctrl-C, which goes to the whole process group: its parent stops it, after
    it has saved.
    """
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN if name == "SIGINT" else signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        with suppress(OSError):
            os.setpgid(0, 0)


def exit_with_parent() -> None:
    """Send this process SIGTERM when its parent process has ended, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def quit_at_once(signum: int) -> None:
    """End this process and those that it has started, with the exit code of the signal."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + signum)
