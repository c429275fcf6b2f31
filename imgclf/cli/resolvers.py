"""What `${imgclf....}` means in the files of `conf/`."""

import hashlib
import os
import re
from datetime import datetime
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from imgclf.errors import ConfigError
from imgclf.files.trial_record import find_trials

__all__ = ["register_resolvers", "trial_folder"]

_LONGEST = 90  # characters of a trial's folder


def register_resolvers() -> None:
    """`${imgclf.stamp:}`: when this run began, unlike any other run's; `${imgclf.pretrained:${data_dir}}`;
    `${imgclf.run_folder:${resume},<dataset>,<model>}`: the folder to go on in, else a new one;
    `${imgclf.trial:${hydra.job.override_dirname},<sweep folder>}`: a trial's; `${imgclf.missing:<sweep folder>,<trials>}`: how
    many of them there aren't yet, and `${imgclf.sampler_seed:<seed>,<sweep folder>}`, another each time that a search goes
    on, for it would propose the same trials again; `${imgclf.direction:<metric>}`: maximize or minimize.
    """
    # Cached in the config: launchers resolve it anew in the processes that they start.
    OmegaConf.register_new_resolver("imgclf.stamp", _stamp, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("imgclf.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("imgclf.pretrained", lambda data_dir: data_dir != "demo", replace=True)
    OmegaConf.register_new_resolver("imgclf.trial", _trial, replace=True)
    OmegaConf.register_new_resolver("imgclf.missing", _missing, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("imgclf.sampler_seed", _sampler_seed, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("imgclf.direction", _direction, replace=True)


def trial_folder(overrides: str, sweep: str = "", constant: str = "") -> str:
    """The name of the folder of a trial with these `overrides` (joined by commas): that of the folder it has in `sweep`
    already, else a readable one, without the keys in `constant`; no other trial's in either case.
    """
    digest = hashlib.blake2b(overrides.encode(), digest_size=5).hexdigest()
    if sweep and (known := sorted(Path(sweep).glob(f"*-{digest}"))):
        return known[0].name
    short = []
    for part in re.split(r",(?=[\w.@/+~]+=)", overrides):
        key, _, value = part.partition("=")
        if value and "/" not in value and key not in constant.split():
            short.append(f"{key.rpartition('.')[2].lstrip('+~')}-{value}")
    name = re.sub(r"[^\w.+-]+", "_", "_".join(short))[:_LONGEST].strip("_.-")
    return f"{name or 'trial'}-{digest}"


def _trial(overrides: str, sweep: str) -> str:
    return trial_folder(overrides, sweep, os.environ.get("IMGCLF_CONSTANT", ""))


@cache
def _stamp() -> str:
    """Date, time and microseconds: one for all trials of a sweep, and, through the environment, for all processes of a
    distributed run, each of which resolves it anew.
    """
    known = os.environ.get("IMGCLF_STAMP")
    if "LOCAL_RANK" in os.environ and known:
        return known
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun: no process knows of the others yet
        raise ConfigError(
            "each of several processes would choose a folder of its own; pass hydra.run.dir=<one for all>"
        )
    os.environ["IMGCLF_STAMP"] = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return os.environ["IMGCLF_STAMP"]


def _run_folder(resume: str | None, dataset: str, model: str) -> str:
    return str(Path(resume).expanduser().absolute()) if resume else f"outputs/{dataset}/{model}/{_stamp()}"


def _missing(folder: str, trials: int) -> int:
    return max(0, int(trials) - sum(record.state in ("finished", "failed") for _, record in find_trials(Path(folder))))


def _sampler_seed(seed: int, folder: str) -> int:
    return int(seed) + len(find_trials(Path(folder)))


def _direction(metric: str) -> str:
    return "minimize" if metric.endswith("loss") else "maximize"
