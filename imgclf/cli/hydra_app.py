"""The shell around every Hydra command: it composes the settings, runs the task, and prints a user's mistake in one line.

Nothing here loads torch, so that `--help` and a wrong override answer at once.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, ClassVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from imgclf.cli.compose import (
    CONF,
    FLAGS_WITH_VALUE,
    check_overrides,
    explain_error,
    help_text,
    split_flags,
    to_settings,
)
from imgclf.cli.cores import Cores, register_cores
from imgclf.config import KNOWN, RunConfig
from imgclf.console import print_message, print_text, replace_unprintable
from imgclf.errors import ConfigError, ImgclfError, RunError, TrialError, line_of_os_error
from imgclf.files.run_folder import find_checkpoint, find_resumable
from imgclf.schema import quoted
from imgclf.signals import Interrupted

__all__ = [
    "OutputFolders",
    "Search",
    "is_sweep",
    "output_folder",
    "run_app",
    "runs_in_threads",
    "task_overrides",
    "trial_label",
    "trial_name",
    "trials_at_once",
]


_FIND = {"resume": find_resumable, "checkpoint": find_checkpoint}  # key -> what its words mean


@dataclass(frozen=True)
class Search:
    """A search that remembers its trials: the `settings` that all share, the `swept` keys, and where they are remembered."""

    settings: RunConfig
    folder: Path
    storage: str
    study: str
    swept: Sequence[str]


class OutputFolders(Callback):
    """Remembers the folders that Hydra makes for a run, and makes that of a sweep before its first trial: Hydra forgets it once
    a trial has failed.
    """

    sweep: ClassVar[Path | None] = None
    prepare: ClassVar[Callable[["Search"], None]] = lambda search: None  # called before a search's first trial
    made: ClassVar[Sequence[Path]] = ()  # the run's folder and those above it that weren't there before, deepest first

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this before it makes the run's folder."""
        with suppress(
            OmegaConfBaseException, ImgclfError, OSError
        ):  # Hydra raises it again, without a warning about this callback
            folder = Path(config.hydra.run.dir).absolute()
            OutputFolders.made = [path for path in (folder, *folder.parents) if not path.exists()]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this in the process that the user started."""
        folder = Path(config.hydra.sweep.dir).absolute()
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = {override.key_or_group: override for override in overrides if override.is_sweep_override()}
        if storage := OmegaConf.select(config, "hydra.sweeper.storage"):  # of a search, which is continued
            try:
                OutputFolders.prepare(_search(config, folder, storage, list(swept)))
            except ImgclfError as error:
                fail(str(error), error.exit_code)  # Hydra turns what a callback raises into a warning
        folder.mkdir(parents=True, exist_ok=True)
        OutputFolders.sweep = folder
        constant = [override.key_or_group for override in overrides if override.key_or_group not in swept]
        os.environ["IMGCLF_CONSTANT"] = " ".join(constant)  # keys that trials need not be named after
        total = OmegaConf.select(config, "hydra.sweeper.n_trials")  # of a search
        with suppress(HydraException, TypeError):  # an interval has no number of values
            total = total or prod(len(list(override.sweep_string_iterator())) for override in swept.values())
        os.environ["IMGCLF_TRIALS"] = str(total or "")


def _search(config: DictConfig, folder: Path, storage: str, swept: list[str]) -> Search:
    sweeper, own = config.hydra.sweeper, config.copy()
    OmegaConf.set_readonly(own, False)
    with open_dict(own):
        del own["hydra"]
    settings = cast(RunConfig, to_settings("train", own))
    return Search(settings, folder, storage, str(sweeper.study_name), [*swept, *(sweeper.get("params") or {})])


def run_app(
    command: str,
    task: Callable[[Any], Any],
    after_sweep: Callable[[Path], int] = lambda folder: 0,
    positional: str | None = None,
    before_search: Callable[[Search], None] = lambda search: None,
) -> list[Any]:
    """Run `task` with the settings that the command line composes; return its results, one per trial of a sweep that this
    process ran (Hydra itself drops them). `positional`: the key whose value a word without "=" is.

    An `ImgclfError`, and any mistake that Hydra reports, is printed as one line and exits with 2. In a sweep it is raised, so
    that the other trials go on, and `after_sweep` reports on the sweep's folder in any case and returns how many trials
    failed. `before_search` may refuse a search that can't be continued, before its first trial. Any other exception is a bug
    and keeps its traceback.
    """
    replace_unprintable()
    OutputFolders.prepare = before_search
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, over many lines
    results: list[Any] = []
    try:
        sys.argv[1:] = split_flags(command, sys.argv[1:])
        _require_dataset(command, sys.argv[1:])
        if positional:
            sys.argv[1:] = _with_key(sys.argv[1:], positional)
        if (overrides := _help_wanted(sys.argv[1:])) is not None:
            print_text(help_text(command, overrides))
        else:
            sys.argv[1:] = check_overrides(command, sys.argv[1:])
            _run(command, task, after_sweep, results)
        sys.stdout.flush()
    except ImgclfError as error:
        fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain_error(command, error), ConfigError.exit_code)
    except Interrupted as stop:
        fail(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        fail("interrupted by SIGINT", 130)
    except BrokenPipeError:  # `... --help | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        fail(line_of_os_error(error), ConfigError.exit_code)
    return results


def _run(command: str, task: Callable[[Any], Any], after_sweep: Callable[[Path], int], results: list[Any]) -> None:
    failures: list[ImgclfError] = []

    def guarded(config: DictConfig) -> Any:
        try:
            results.append(task(to_settings(command, config)))
            return results[-1]
        except ImgclfError as error:
            failures.append(error)
            if is_sweep():
                raise
            # Hydra would announce it with lines of its own.
            with suppress(OSError):  # a folder that isn't empty stays, and so do those above it
                for folder in OutputFolders.made:
                    folder.rmdir()
            return None

    try:
        register_cores()
        with _without_note():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(guarded)()
    except ImgclfError as failure:
        failures.append(failure)
    finally:
        failed = after_sweep(OutputFolders.sweep) if OutputFolders.sweep else 0
    if failed:  # a search that tolerates them raises nothing
        raise RunError(f"{failed} of the trials failed, see above; the same command tries them again")
    for error in sorted(failures, key=lambda error: isinstance(error, TrialError)):  # those that weren't printed first
        raise RunError("not all trials could be used, see above") if isinstance(error, TrialError) else error


@contextmanager
def _without_note() -> Iterator[None]:
    """Drop the line in which Hydra lists all overrides of a failed trial: the trial's own line has what sets it apart."""
    stream = sys.stderr
    write = stream.write
    stream.write = lambda text: 0 if text.startswith("Error executing job with") else write(text)  # type: ignore[method-assign]
    try:
        yield
    finally:
        stream.write = write  # type: ignore[method-assign]


def fail(message: str, code: int) -> None:
    """Print `message` to stderr as the last line, and exit with `code`."""
    sys.stdout.flush()
    print_message(message)
    sys.exit(code)


def _with_key(words: list[str], key: str) -> list[str]:
    """Return the words with the one that is a run, a checkpoint or `latest` as Hydra takes it: `key='<word>'`.

    Lightning starts the other processes of a distributed run with these words. Raises `ConfigError` for none or several,
    `CheckpointError` for one that isn't there.
    """
    options = [word for word in words if word.startswith("-")]
    found = [word for above, word in pairwise(["", *words]) if above not in FLAGS_WITH_VALUE and _is_name(word)]
    given = [*found, *(word for word in words if word.startswith(f"{key}="))]
    if len(given) > 1 or not (given or options):
        came = f"{' and '.join(given)} came" if given else f"no {'run' if key == 'resume' else 'model'} is given"
        raise ConfigError(f"{came}; expected one: a run's folder, a checkpoint file, or latest")
    paths = {word: str(_FIND[key](word)) for word in found}
    values = {word: f"./{path}" if path.startswith("~") else path for word, path in paths.items()}  # no user's home
    return [f"{key}={quoted(values[word])}" if word in values else word for word in words]


def _require_dataset(command: str, words: Sequence[str]) -> None:
    """Raise `ConfigError` for a folder of data, or a download, without a data set's name: cards would be a guess."""
    given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in words}
    named = {"dataset", "experiment", "resume", "checkpoint", "ckpt_path", "--help", "-h"}.intersection(given)
    if command == "download" and not named:
        raise ConfigError(f"no dataset is given: pass dataset=<name>, one of {', '.join(KNOWN)}")
    if command in ("train", "check") and given.get("data_dir", "demo") != "demo" and not named:
        raise ConfigError(
            "data_dir without dataset: pass dataset=folders for class folders, or the name of the data set"
        )


def _is_name(word: str) -> bool:
    """Return whether a word is a path or `latest`, not `key=value`: a path may have an "=" too, but no key has a slash."""
    before, equals, _ = word.partition("=")
    is_key = equals and re.fullmatch(r"\+*(hydra/[\w/]+|[\w.@:]+)", before)
    return not word.startswith(("-", "~")) and not is_key


def _help_wanted(words: list[str]) -> list[str] | None:
    """Return the overrides given with `--help`; None without it, or with flags that Hydra answers itself."""
    if not {"--help", "-h"}.intersection(words):
        return None
    overrides: list[str] = []
    rest = iter(word for word in words if word not in ("--help", "-h", "-m", "--multirun"))
    for word in rest:
        if word in ("--config-dir", "-cd"):
            overrides.append(f"hydra.searchpath=[{Path(next(rest, '.')).absolute().as_uri()}]")
        else:
            overrides.append(word)
    return None if any(word.startswith("-") for word in overrides) else overrides


def output_folder() -> Path:
    """Return the folder that this run writes into: `hydra.run.dir`, or its own below `hydra.sweep.dir`."""
    return Path(HydraConfig.get().runtime.output_dir)


def task_overrides() -> list[str]:
    """Return the overrides that the user typed, as `key=value`."""
    return list(HydraConfig.get().overrides.task)


def trial_label() -> str:
    """Return the number of this trial in words: "trial 3 of 12"."""
    total = os.environ.get("IMGCLF_TRIALS")
    return f"trial {HydraConfig.get().job.num + 1}" + (f" of {total}" if total else "")


def trial_name() -> str:
    """Return the number of this trial and what sets it apart: "[3/12] lr=0.001 seed=1"."""
    number, total = HydraConfig.get().job.num + 1, os.environ.get("IMGCLF_TRIALS")
    constant = os.environ.get("IMGCLF_CONSTANT", "").split()
    pairs = [text.lstrip("+~").partition("=") for text in task_overrides()]
    own = [f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs if key not in constant]
    return " ".join([f"[{number}/{total}]" if total else f"[{number}]", *own])


def trials_at_once() -> int | None:
    """Return how many trials of a sweep this machine trains at a time: the launcher's `n_jobs`, -1 for one per core; None for
    a launcher that decides elsewhere.
    """
    jobs = HydraConfig.get().launcher.get("n_jobs") if HydraConfig.initialized() else None
    return None if jobs is None else int(jobs)


def runs_in_threads() -> bool:
    """Return whether the launcher takes a function that trains the trial, to call it in a thread."""
    return str(HydraConfig.get().launcher.get("_target_")) == f"{Cores.__module__}.{Cores.__name__}"


def is_sweep() -> bool:
    """Return whether this is one trial of several (`-m`)."""
    return HydraConfig.initialized() and str(HydraConfig.get().mode).endswith("MULTIRUN")
