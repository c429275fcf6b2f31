"""The shell around every Hydra entry point: composing the config, and telling a user's mistake in one line.

Nothing here loads torch, so that `--help` and a wrong override answer at once.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imgclf.errors import ConfigError, ImgclfError
from imgclf.interrupts import Interrupted

__all__ = ["CONF", "is_sweep", "output_folder", "plain", "register_resolvers", "run_app", "task_overrides"]

_ENDS = ("Config search path:", "Set the environment variable")

_PACKAGED = Path(__file__).parent / "conf"  # in a wheel the folder lies inside the package, in a checkout beside it
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


def run_app(config_name: str, task: Callable[[DictConfig], Any]) -> list[Any]:
    """Run `task` with the config that the command line composes from `conf/<config_name>.yaml`; returns what it returned,
    of a sweep for each trial that this process ran (Hydra itself loses it).

    An `ImgclfError`, and whatever Hydra finds wrong, is printed as one line and exits with 2; in a sweep it is raised, so
    that the other trials go on. Any other exception is a bug and keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, over many lines
    register_resolvers()
    failures: list[ImgclfError] = []
    results: list[Any] = []

    def guarded(config: DictConfig) -> Any:
        try:
            results.append(task(config))
            return results[-1]
        except ImgclfError as error:
            if is_sweep():
                raise
            failures.append(error)  # Hydra would announce it with lines of its own
            with suppress(OSError):
                output_folder().rmdir()  # Hydra made it; it goes if nothing was written
            return None

    try:
        if (asked := _only_help(sys.argv[1:])) is not None:
            print(_help(config_name, asked))
            return results
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
        for error in failures:
            raise error
    except ImgclfError as error:
        fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        fail(_one_line(error), ConfigError.exit_code)
    except Interrupted as stop:
        fail(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        fail("interrupted by SIGINT", 130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `... --help | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            fail(f"{error.filename or 'the operating system'}: {error.strerror or error}", ConfigError.exit_code)
    return results


def fail(message: str, code: int) -> None:
    """Print `message` to stderr as the last line, and exit."""
    sys.stdout.flush()
    print(f"imgclf: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def _only_help(words: list[str]) -> list[str] | None:
    """The overrides beside a `--help`; None where nobody asks for help, or with flags that are Hydra's affair."""
    overrides = [word for word in words if word not in ("--help", "-h")]
    return overrides if len(overrides) < len(words) and not any(word.startswith("-") for word in overrides) else None


def _help(config_name: str, overrides: list[str]) -> str:
    """What Hydra would print, from its own template; it takes twice as long, reading every folder again for every group."""
    with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        config = hydra.compose(config_name, overrides, return_hydra_config=True)
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config.hydra
    groups = {
        path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in sorted(CONF.iterdir()) if path.is_dir()
    }
    listed = "\n".join(f"{name}: {', '.join(choices)}" for name, choices in groups.items() if choices)
    return template.safe_substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(config))


def register_resolvers() -> None:
    """`${imgclf.stamp:}`: when this run began, unlike any other run's; `${imgclf.pretrained:${data_dir}}`;
    `${imgclf.run_folder:${resume},<dataset>,<model>}`: the folder to go on in, else a new one.
    """
    OmegaConf.register_new_resolver("imgclf.stamp", _stamp, replace=True)
    OmegaConf.register_new_resolver("imgclf.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("imgclf.pretrained", lambda data_dir: data_dir != "demo", replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config with everything resolved, as dictionaries, lists and numbers; raises `ConfigError` for what is missing."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def output_folder() -> Path:
    """The folder that this run writes into: `hydra.run.dir`, or its own below `hydra.sweep.dir`."""
    return Path(HydraConfig.get().runtime.output_dir)


def task_overrides() -> list[str]:
    """What the user typed, as `key=value`."""
    return list(HydraConfig.get().overrides.task)


def is_sweep() -> bool:
    """Whether this is one trial of several (`-m`)."""
    return HydraConfig.initialized() and str(HydraConfig.get().mode).endswith("MULTIRUN")


@cache
def _stamp() -> str:
    """Date, time and microseconds: one for all trials of a sweep, and, through the environment, for all processes of a
    distributed run, each of which resolves it anew.
    """
    if "LOCAL_RANK" not in os.environ or "IMGCLF_STAMP" not in os.environ:
        os.environ["IMGCLF_STAMP"] = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return os.environ["IMGCLF_STAMP"]


def _run_folder(resume: str | None, dataset: str, model: str) -> str:
    return str(Path(resume).expanduser().absolute()) if resume else f"outputs/{dataset}/{model}/{_stamp()}"


def _one_line(error: BaseException) -> str:
    """Hydra's messages span lines, and the useful ones begin at the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((i for i, line in enumerate(lines) if line.startswith(_ENDS)), len(lines))  # what follows is for Hydra
    lines = [line for line in lines[:end] if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(lines) or type(error).__name__
