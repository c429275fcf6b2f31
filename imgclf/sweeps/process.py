"""Processes that need torch, for one that waits for them and doesn't: on Linux they are forked from one that has loaded it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any

from imgclf.signals import Interrupted, Signals

__all__ = ["BEGUN", "ChildProcess", "start_server"]

BEGUN = "begun"  # what a process sends when all is loaded and its work begins


class ChildProcess:
    """A process that runs `work(*arguments, connection)`: it sends `BEGUN`, and as the last thing its `outcome`.

    `outcome` is None for a process that ended without one.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context: Any = _context()
        self._connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(*arguments, theirs))
        self._started, self._begun = time.monotonic(), False
        self._process.start()
        theirs.close()
        self.outcome: Any = None

    @property
    def exitcode(self) -> int | None:
        """Its exit code, negative for a signal that ended it; None while it runs."""
        return self._process.exitcode

    @property
    def seconds(self) -> float:
        """The wall time since its work began; what it waited for libraries to be loaded isn't part of it."""
        return time.monotonic() - self._started

    def ended(self, seconds: float, signals: Signals | None = None) -> bool:
        """Wait for up to `seconds`, and return whether the work is done; raises `Interrupted` for a pending signal."""
        ready = wait([self._connection, self._process.sentinel], seconds)
        if signals and signals.deferring and signals.pending is not None:
            raise Interrupted(signals.pending)
        if self._connection not in ready:
            return bool(ready)
        try:
            message = self._connection.recv()
        except (EOFError, OSError):  # it was killed
            return True
        if message == BEGUN:
            self._started, self._begun = time.monotonic(), True
            return False
        self.outcome = message
        return True

    def stop(self, signum: int) -> None:
        """Send it a signal, and wait until it has ended; one whose work hasn't begun is killed: it wouldn't notice."""
        if self._connection.poll():
            self.ended(0)
        if not self._begun:
            self._process.kill()
        elif self._process.pid:
            with suppress(ProcessLookupError):  # in a session of its own, it doesn't get a terminal's Ctrl-C
                os.kill(self._process.pid, signum)
        self.join()

    def join(self) -> None:
        """Wait until the process has ended, and take what it sends until then."""
        while not self.ended(60):
            pass
        self._process.join()


def _context() -> BaseContext:
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method(None, force=True)  # joblib's own, which the new process wouldn't know
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    start_server()
    return multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Begin to load torch in the process that the others are forked from, on Linux; done again, it does nothing."""
    if sys.platform != "linux":
        return
    from multiprocessing import forkserver  # here, because not every system has it

    multiprocessing.get_context("forkserver").set_forkserver_preload(["imgclf.training.run"])
    if threading.current_thread() is not threading.main_thread():  # which has started it
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a terminal's Ctrl-C would be a traceback
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
