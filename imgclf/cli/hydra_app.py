"""The shell around every Hydra entry point: composing the config, and telling a user's mistake in one line.

Nothing here loads torch, so that `--help` and a wrong override answer at once.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imgclf.cli.resolvers import register_resolvers
from imgclf.errors import ConfigError, ImgclfError, RunError
from imgclf.signals import Interrupted

__all__ = ["CONF", "SweepFolder", "is_sweep", "output_folder", "run_app", "task_overrides", "to_dict", "trials_at_once"]

_ENDS = ("Config search path:", "Set the environment variable")

_PACKAGED = Path(__file__).parents[1] / "conf"  # in a wheel the folder lies inside the package, in a checkout beside it
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"

register_resolvers()  # on import: a launcher's processes resolve what this one has composed


class SweepFolder(Callback):
    """A sweep's folder, remembered and made before its first trial: Hydra tells it to nobody once a trial has failed."""

    known: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this in the process that the user started."""
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        SweepFolder.known = folder
        typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        constant = [word.key_or_group for word in typed if not word.is_sweep_override()]
        os.environ["IMGCLF_CONSTANT"] = " ".join(constant)  # what no trial need be named after


def run_app(config_name: str, task: Callable[[DictConfig], Any],
            after_sweep: Callable[[Path], int] = lambda folder: 0) -> list[Any]:  # fmt: skip
    """Run `task` with the config that the command line composes from `conf/<config_name>.yaml`; returns what it returned,
    of a sweep for each trial that this process ran (Hydra itself loses it).

    An `ImgclfError`, and whatever Hydra finds wrong, is printed as one line and exits with 2; in a sweep it is raised, so
    that the other trials go on, and in the end, whatever it is, `after_sweep` tells of those in the sweep's folder and returns
    how many failed. Any other exception is a bug and keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, over many lines
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
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
        except ImgclfError as failure:
            failures.append(failure)
        finally:
            failed = after_sweep(SweepFolder.known) if SweepFolder.known else 0
        if failed:  # a search that tolerates them raises nothing
            raise RunError(f"{failed} of the sweep's trials failed, see above; the same command tries them again")
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


def to_dict(config: DictConfig) -> dict[str, Any]:
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


def trials_at_once() -> int | None:
    """How many trials of a sweep this machine trains at a time: joblib's `n_jobs`, -1 for one a core; None for a launcher
    that leaves it to others.
    """
    jobs = HydraConfig.get().launcher.get("n_jobs") if HydraConfig.initialized() else None
    return None if jobs is None else int(jobs)


def is_sweep() -> bool:
    """Whether this is one trial of several (`-m`)."""
    return HydraConfig.initialized() and str(HydraConfig.get().mode).endswith("MULTIRUN")


def _one_line(error: BaseException) -> str:
    """Hydra's messages span lines, and the useful ones begin at the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((i for i, line in enumerate(lines) if line.startswith(_ENDS)), len(lines))  # what follows is for Hydra
    lines = [line for line in lines[:end] if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(lines) or type(error).__name__
