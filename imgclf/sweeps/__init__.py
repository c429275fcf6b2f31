"""Sweeps: runs each trial in its own process, ranks and compares runs. Nothing here loads torch.

Names resolve lazily: `python -m imgclf.sweeps.trials` must not find its module imported already.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.sweeps.leaderboard import finish_sweep, read_sweep, write_leaderboard
    from imgclf.sweeps.process import start_server
    from imgclf.sweeps.search import start_search
    from imgclf.sweeps.trials import run_trial

__all__ = ["finish_sweep", "read_sweep", "run_trial", "start_search", "start_server", "write_leaderboard"]

_HOMES = {"run_trial": "trials", "start_search": "search", "start_server": "process"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'leaderboard')}"), name)
