"""Values that Hydra computes when it composes settings: the names of run folders and trials, and what a search lacks."""

import hashlib
import os
import re
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imgclf.errors import ConfigError
from imgclf.files.run_folder import find_run
from imgclf.files.trial_record import find_trials

__all__ = ["new_stamp", "register_resolvers", "trial_folder"]

_LONGEST = 90  # characters of a trial's folder


def register_resolvers() -> None:
    """Register what the YAML files call as `${imgclf.<name>:...}`.

    - `stamp`: when this run began, unlike any other run's.
    - `run_folder`, of (resume, data set, model): the folder of the run to resume, else a new one.
    - `pretrained`, of (data_dir): whether a model begins with pretrained weights.
    - `trial`, of (overrides, sweep folder): the name of a trial's folder.
    - `missing`, of (sweep folder, trials): how many trials a search lacks.
    - `sampler_seed`, of (seed, sweep folder): another one whenever a search is resumed, which would otherwise propose the same
      trials again.
    - `direction`, of (metric): maximize or minimize.
    """

    def register(name: str, function: Callable[..., Any], cached: bool = False) -> None:
        OmegaConf.register_new_resolver(f"imgclf.{name}", function, replace=True, use_cache=cached)

    # Cached in the config: launchers resolve it again in the processes that they start.
    register("stamp", _stamp, cached=True)
    register("run_folder", _run_folder)
    register("pretrained", lambda data_dir: data_dir != "demo")
    register("trial", lambda overrides, sweep: trial_folder(overrides, sweep, os.environ.get("IMGCLF_CONSTANT", "")))
    register("missing", _missing_trials, cached=True)
    register("sampler_seed", lambda seed, folder: int(seed) + len(find_trials(Path(folder))), cached=True)
    register("direction", lambda metric: "minimize" if metric.endswith("loss") else "maximize")


def new_stamp() -> None:
    """Let the next run of this process have a stamp of its own."""
    _stamp.cache_clear()


def trial_folder(overrides: str, sweep: str = "", constant: str = "") -> str:
    """Return the folder name of a trial with these `overrides` (joined by commas): that of its folder in `sweep`, else a
    readable one without the keys in `constant`; different overrides have different names.
    """
    digest = hashlib.blake2b(overrides.encode(errors="surrogatepass"), digest_size=5).hexdigest()
    if sweep and (known := sorted(Path(sweep).glob(f"*-{digest}"))):
        return known[0].name
    short = []
    for part in re.split(r",(?=[\w.@/+~]+=)", overrides):
        key, _, value = part.partition("=")
        if value and "/" not in value and key not in constant.split():
            short.append(f"{key.rpartition('.')[2].lstrip('+~')}-{value}")
    name = re.sub(r"[^\w.+-]+", "_", "_".join(short))[:_LONGEST].strip("_.-")
    return f"{name or 'trial'}-{digest}"


@cache
def _stamp() -> str:
    """Date, time and microseconds: one for all trials of a sweep, and, through the environment, for all processes of a
    distributed run, each of which resolves it by itself.
    """
    known = os.environ.get("IMGCLF_STAMP")
    if "LOCAL_RANK" in os.environ and known:
        return known
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun: no process knows of the others yet
        raise ConfigError("with torchrun each process would choose its own folder; pass hydra.run.dir=<one for all>")
    os.environ["IMGCLF_STAMP"] = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return os.environ["IMGCLF_STAMP"]


def _run_folder(resume: str | None, dataset: str, model: str) -> str:
    if not resume:
        return f"outputs/{dataset}/{model}/{_stamp()}"
    return str(find_run(resume).absolute())


def _missing_trials(folder: str, trials: int) -> int:
    done = sum(record.state in ("finished", "failed") for _, record in find_trials(Path(folder)))
    return max(0, int(trials) - done)
