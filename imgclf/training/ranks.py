"""The processes of a distributed run: how long they wait for each other, and what the others do when one is lost.

They meet within `SILENCE`, and no longer does one wait for another in training. Filling a cache may take hours: there the
loader waits for the others in a group of its own (`imgclf.data.loader`).
"""

import os
import re
import signal
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, Strategy, StrategyRegistry

from imgclf.console import print_message
from imgclf.errors import RunError, one_line
from imgclf.signals import quit_at_once

__all__ = ["SILENCE", "end_with_first_process", "lost_process", "wait_for_first_process", "with_time_limit"]

SILENCE = timedelta(minutes=10)
_FIRST = "IMGCLF_FIRST_PROCESS"  # environment variable: the id of the process that has started this one
_GRACE = 10.0  # seconds that a process has to end by itself, with an error of its own


def with_time_limit(strategy: str, timeout_seconds: float) -> str | Strategy:
    """Return Lightning's `strategy`, of DDP with a limit on the time that one process waits for another: `SILENCE`, and more
    where a DataLoader worker may take `timeout_seconds`.
    """
    entry: Any = dict.get(StrategyRegistry, strategy)  # its own `get` makes the strategy
    if entry is None or not issubclass(entry["strategy"], DDPStrategy):
        return strategy
    made: Strategy = entry["strategy"](timeout=_limit(timeout_seconds), **entry["init_params"])
    return made


def wait_for_first_process(rank: int, timeout_seconds: float) -> None:
    """Wait until the first process of the run accepts connections, in the others; raises `RunError` after the limit of
    `with_time_limit`.

    torch would wait too, but hears no signal meanwhile, and writes stack traces to stderr.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not rank or not address or not port:
        return
    limit, began = _limit(timeout_seconds).total_seconds(), time.monotonic()
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=5).close()
            return
        except OSError:
            if time.monotonic() - began > limit:
                raise RunError(
                    f"the first process of the run, at {address}:{port}, could not be reached for {limit:g} s; "
                    "see whether it has ended, and start all processes again"
                ) from None
        time.sleep(0.2)


def _limit(timeout_seconds: float) -> timedelta:
    return max(SILENCE, timedelta(seconds=2 * timeout_seconds))


def end_with_first_process() -> None:
    """Let a process that Lightning has started end, with one line, soon after the one that started it has been killed.

    The first process leaves its id to those that it starts. Others, such as torchrun's, are ended by what started them.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_FIRST] = str(os.getpid())
        return
    first = os.environ.get(_FIRST)
    if first is None:
        return

    def watch() -> None:
        while str(os.getppid()) == first:
            time.sleep(1)
        time.sleep(_GRACE)
        print_message("the first process of the run has ended, and so does this one")
        quit_at_once(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def lost_process(error: Exception) -> RunError | None:
    """Return the `RunError` for an exception that torch raises in one process when another is lost, None for any other."""
    text = one_line(error)
    again = "`imgclf resume <run folder>` continues from the last checkpoint"
    if isinstance(error, torch.distributed.DistError) and re.search("timed out|timeout", text, re.I):
        return RunError(
            f"the processes of the run didn't find each other in time: one has ended, or can't be reached ({text[:160]}); "
            "see the others' output, and start them all again"
        )
    # The backends have no exception of their own for a lost process.
    if isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and re.search("gloo|nccl|by peer", text, re.I)
    ):
        return RunError(f"another process of the run failed; see its error above. {again}")
    return None
