"""`hydra/launcher=cores`: several trials of a sweep at the same time on this machine.

Each trial trains in a process of its own, so that a thread is enough to wait for it. Signals, the loading of torch and the
end of the sweep then have one home, this process; workers of a process pool would each have their own.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from imgclf.errors import ConfigError
from imgclf.signals import Interrupted, Signals, catch_signals, resumable
from imgclf.threads import available_cpus

__all__ = ["Cores", "register_cores"]

_PLUGINS = "hydra_plugins"


class Cores(Launcher):
    """Runs `n_jobs` trials at a time, -1: one per core.

    The task returns a function of the `Signals` that this process receives, which trains the trial and is called in a thread:
    Hydra's own state, which the task reads, exists once in a process.
    """

    def __init__(self, n_jobs: int) -> None:
        if n_jobs != -1 and n_jobs < 1:
            raise ConfigError(
                f"hydra.launcher.n_jobs={n_jobs}: expected a whole number of at least 1, or -1 for one per core"
            )
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra hands to a launcher."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return their results in order; raises `Interrupted` when a signal ended them."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with catch_signals() as signals:
            signals.deferring = True  # the threads look at it
            jobs = [self._begin(initial_job_idx + index, list(words)) for index, words in enumerate(job_overrides)]
            with ThreadPoolExecutor(self.n_jobs if self.n_jobs > 0 else available_cpus()) as threads:
                futures = [threads.submit(_finish, job, signals) for job in jobs]
                wait(futures)
            if signals.pending is not None:
                raise Interrupted(signals.pending, resumable(signals.pending, folder))
        for job, future in zip(jobs, futures, strict=True):
            error = future.exception()
            job.return_value = error or future.result()
            job.status = JobStatus.FAILED if error else JobStatus.COMPLETED
        return jobs

    def _begin(self, number: int, words: list[str]) -> JobReturn:
        """Compose the settings of one job, and let the task prepare it."""
        config = self.context.config_loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def register_cores() -> None:
    """Let Hydra find the launcher under the name that cores.yaml has: it takes plugins from a package of that name only."""
    Cores.__module__ = f"{_PLUGINS}.imgclf"
    try:
        package = import_module(_PLUGINS)
    except ModuleNotFoundError:  # no plugin is installed
        package = sys.modules[_PLUGINS] = ModuleType(_PLUGINS)
        package.__path__ = []
    module = sys.modules[Cores.__module__] = sys.modules[__name__]
    vars(package)["imgclf"] = module
    Plugins.instance().register(Cores)


def _finish(job: JobReturn, signals: Signals) -> Any:
    """Train the trial that a job has prepared, and return its value; nothing begins after a signal."""
    if signals.pending is not None:
        raise Interrupted(signals.pending)
    work: Any = job._return_value
    if job.status == JobStatus.FAILED:
        raise work
    return work(signals)
