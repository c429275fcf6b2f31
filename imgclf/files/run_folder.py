"""A run's folder: claimed by one run alone, with what was asked for and where it ran."""

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from imgclf.errors import RunError
from imgclf.files.atomic import delete_leftovers, write_atomically
from imgclf.threads import available_cpus

__all__ = ["create_run_folder", "describe_environment", "finished_epochs", "require_unused", "write_environment"]

PACKAGES = (
    "imgclf",
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "hydra-core",
    "torchmetrics",
    "numpy",
    "pillow",
)


def require_unused(folder: Path) -> None:
    """Raise `RunError` if a run lives in `folder`."""
    if (folder / "config.yaml").exists():
        raise RunError(
            f"{folder} holds a run already; pass another hydra.run.dir, or ckpt_path=last to go on with that run"
        )


def create_run_folder(folder: Path, config: dict[str, Any], overrides: list[str], resuming: bool) -> None:
    """Make `folder` this run's own and write `config.yaml` and `overrides.yaml` into it; a resumed run keeps the latter.

    Raises `RunError` when a run lives there already, unless it is being resumed: of two that start at once, one wins.
    """
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resuming:
            write_atomically(folder / "config.yaml", text)
        else:
            with open(folder / "config.yaml", "x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        require_unused(folder)
        raise
    except OSError as error:
        raise RunError(
            f"{folder}: can't be written ({error.strerror}); pass hydra.run.dir=<a folder of yours>"
        ) from None
    if not resuming:
        write_atomically(folder / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))
    for part in (folder, folder / "checkpoints"):
        delete_leftovers(part)


def describe_environment() -> dict[str, Any]:
    """Versions, commit, hardware and command: what somebody needs to repeat the run."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "processor": _processor(),
        "cores": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def write_environment(folder: Path, seconds: dict[str, float], epochs: int, forwards: int | None = None) -> None:
    """Write `environment.json`, with the wall time of each part in seconds and the epochs that are trained and tested:
    the last file of a run, by which `finished_epochs` knows it. `forwards`: how many pictures were run through a frozen part.
    """
    values = {
        **describe_environment(),
        "epochs": epochs,
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        **({} if forwards is None else {"forwards": {"pictures": forwards}}),
    }
    write_atomically(folder / "environment.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def finished_epochs(folder: Path) -> int | None:
    """How many epochs the run in `folder` had when it was finished; None for a run that never was."""
    try:
        epochs = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epochs if isinstance(epochs, int) else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of imgclf's own checkout, with "+" where it has changes; None outside one."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
