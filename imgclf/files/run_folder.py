"""A run's folder: created for one run, found by name, with its settings and where it ran."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from imgclf.console import print_text, shell_joined, shell_quoted
from imgclf.errors import CheckpointError, RunError, disk_is_full, require_value
from imgclf.files.atomic import delete_leftovers, write_atomically
from imgclf.files.trial_record import find_trials
from imgclf.names import as_json, printable
from imgclf.threads import available_cpus

__all__ = [
    "RunLock",
    "create_run_folder",
    "describe_environment",
    "find_checkpoint",
    "find_resumable",
    "find_run",
    "finished_epochs",
    "has_checkpoints",
    "is_run",
    "mark_latest",
    "missing_results",
    "require_unused",
    "write_environment",
]

PACKAGES = [
    "imgclf",
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "hydra-core",
    "torchmetrics",
    "numpy",
    "pillow",
]
_CONFIG, _ENVIRONMENT, RUN_LOCK = "config.yaml", "environment.json", ".run.lock"
_ENDING_SECONDS = 10  # that a process which was asked to end may still save for
LATEST = Path("outputs/latest")  # leads to the newest finished run of the current folder
_FILES = (".ckpt", ".csv", ".html", ".json", ".png", ".yaml")  # that a run writes
Plain = dict[str, Any]


def find_run(text: str | Path) -> Path:
    """Return the folder that `text` means: a run's (or an evaluation's) folder, its `checkpoints`, a checkpoint in there, or
    the word `latest` for the newest finished run. A file or folder here that is really called latest comes first.

    Raises `CheckpointError` where nothing of that name exists.
    """
    path = _locate(text)
    path = path.parent if path.is_file() else path
    if path.absolute().name == "checkpoints":
        path = path.parent if path.name else path.absolute().parent
    return path


def find_resumable(text: str | Path) -> Path:
    """Return what a resumed run is named by: the folder that `find_run` finds, or the checkpoint file itself.

    Raises `CheckpointError` where nothing of that name exists.
    """
    path = _locate(text)
    return path if path.is_file() else find_run(text)


def find_checkpoint(text: str | Path) -> Path:
    """Return the checkpoint that `text` means: that file, or the best.ckpt of the run that `find_run` finds.

    Raises `CheckpointError` where nothing of that name exists, and for a folder without a best.ckpt.
    """
    if "://" in str(text):
        raise CheckpointError(f"{text}: models aren't loaded from URLs; download the file, then pass its path")
    path = _locate(text)
    if path.is_file():
        return path
    folder = find_run(path)
    for best in (folder / "checkpoints" / "best.ckpt", path / "best.ckpt"):
        if best.is_file():
            return best
        if best.is_dir():
            raise CheckpointError(f"{best}: is a folder, expected a file; move it away, or pass another checkpoint")
    if any((folder / "checkpoints").glob("*.ckpt")):
        problem = f"no best.ckpt there yet, its first epoch isn't finished; imgclf resume {shell_quoted(str(folder))}"
    elif (folder / "config.yaml").is_file():
        problem = "no checkpoint there yet; wait for the run's first epoch, or begin the run again"
    elif trials := find_trials(folder):
        problem = f"holds a sweep; pass one of its trials, such as {trials[0][0]}"
    else:
        problem = "no run's folder; expected one with checkpoints/best.ckpt, a checkpoint file, or latest"
    raise CheckpointError(f"{folder}: {problem}")


def mark_latest(folder: Path) -> None:
    """Let `latest` mean the finished run in `folder`: renew the link outputs/latest in one step.

    Where the system has no links it is a text file with the path. What can't be renewed is printed, for the run is finished.
    """
    place = LATEST.parent.absolute()
    inside = folder.absolute().is_relative_to(place)  # then the whole of outputs can be moved
    target = folder.absolute().relative_to(place) if inside else folder.absolute()
    temporary = place / f".imgclf-{LATEST.name}-{os.getpid()}.tmp"
    try:
        place.mkdir(parents=True, exist_ok=True)
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except OSError:
            write_atomically(LATEST, f"{target}\n")
        else:
            temporary.replace(LATEST)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        print_text(f"{LATEST}: not renewed, `latest` isn't this run ({error.strerror or error})")


def _locate(text: str | Path) -> Path:
    """Return the file or folder called `text`, or what `latest` leads to; raises `CheckpointError` for none, and `ConfigError`
    for an empty text, which would be the current folder.
    """
    require_value("the run or checkpoint", text)
    path = Path(os.path.expanduser(text))  # noqa: PTH111, like os.path.exists, never raises: there may be no such user or name
    if str(text) == "latest" and not os.path.exists(path):  # noqa: PTH110
        if not os.path.lexists(LATEST):
            raise CheckpointError(f"latest: no run has finished here yet (there is no {LATEST}); pass a run's folder")
        path = LATEST
    if path == LATEST and not (path.is_dir() and not path.is_symlink()):
        target = path.readlink() if path.is_symlink() else Path(path.read_text(encoding="utf-8").strip())
        path = Path(os.path.normpath(LATEST.parent / target))
    if not os.path.exists(path):  # noqa: PTH110
        moved = f" (where {LATEST} leads)" if str(text) == "latest" else ""
        raise CheckpointError(
            f"{path}: no such file or folder{moved}; expected a run's folder, a checkpoint file, or latest"
        )
    # `..` behind a link is another folder for the system than for whoever shortens the text, as Hydra does.
    return path.resolve() if ".." in path.parts else path


def is_run(folder: Path) -> bool:
    """Return whether `folder` holds a run, which may have ended before its first checkpoint."""
    return (folder / _CONFIG).is_file()


def has_checkpoints(folder: Path) -> bool:
    """Return whether the run in `folder` has saved a checkpoint, readable or not."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def require_unused(folder: Path) -> None:
    """Raise `RunError` if `folder` holds a run."""
    if is_run(folder):
        raise RunError(
            f"{folder} holds a run already; pass another hydra.run.dir, or continue it: imgclf resume {shell_quoted(str(folder))}"
        )


class RunLock:
    """Held by the process that trains in `folder`, so that no other one trains or resumes the same run meanwhile.

    The system releases it when the process ends, however it ends. Used as a context manager, which releases it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / RUN_LOCK)

    def acquire(self) -> None:
        """Take the lock, unless it is held already; raises `RunError` while another process has it."""
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=_ENDING_SECONDS)
        except Timeout:
            raise RunError(
                f"{self.folder}: another process trains this run; wait for it, or stop it before you resume the run"
            ) from None
        except OSError as error:
            raise _not_writable(self.folder, error) from None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.is_locked:
            self._lock.release()


def create_run_folder(folder: Path, config: Plain, overrides: list[str], lock: RunLock, resuming: bool) -> None:
    """Create `folder` for one run, take its `lock`, and write `config.yaml` and `overrides.yaml`; a resumed run keeps the latter.

    Raises `RunError` when the folder holds a run with checkpoints already, unless that is resumed, and when another process
    trains there: of two that start at once, one wins. Also where a run couldn't write its files later, as a folder lies in
    the place of one; nothing is written then.
    """
    _require_places(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if not resuming and has_checkpoints(folder):
            require_unused(folder)
        for part in (folder, folder / "checkpoints"):
            delete_leftovers(part)
        if not resuming or not (folder / "overrides.yaml").exists():
            write_atomically(folder / "overrides.yaml", _as_yaml(overrides))
        # The last of the two: a folder with this file holds a run.
        write_atomically(folder / _CONFIG, _as_yaml(config))
    except OSError as error:
        if disk_is_full(error):
            raise
        raise _not_writable(folder, error) from None


def _not_writable(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder}: cannot write there ({error.strerror}); pass another hydra.run.dir")


def _require_places(folder: Path) -> None:
    """Raise `RunError` where a folder lies in the place of a file that a run writes, or a file in that of its checkpoints."""
    checkpoints = folder / "checkpoints"
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise RunError(f"{checkpoints}: not a folder, and a run writes its checkpoints there; move it away")
    for path in [*folder.glob("*"), *checkpoints.glob("*")]:
        if path.suffix in _FILES and path.is_dir():
            raise RunError(f"{path}: a folder, and a run writes a file of that name; move it away")


class _Dumper(yaml.SafeDumper):
    """Puts text that isn't `printable` into quotes, with YAML's escapes: without quotes PyYAML loses a U+0085."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        style = None if printable(text) == text else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _as_yaml(values: Plain | list[str]) -> str:
    """Return plain data as YAML, in its order, which is read back exactly as it is."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def describe_environment() -> Plain:
    """Return versions, commit, hardware and command: what is needed to repeat the run."""
    import torch  # here, because the commands that only read records do without it

    cuda = torch.cuda.is_available()
    return {
        "command": shell_joined([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "processor": _processor(),
        "cores": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def write_environment(
    folder: Path, seconds: dict[str, float], epochs: int, results: Sequence[str], forwards: int | None = None
) -> None:
    """Write `environment.json`, with the wall time of each part in seconds and the number of epochs trained and tested.

    It is the last file of a run, by which `finished_epochs` recognises it. `results` are the names of the files that the run
    has written besides. `forwards`: images computed by a frozen part.
    """
    values = {
        **describe_environment(),
        "epochs": epochs,
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "results": list(results),
        **({} if forwards is None else {"forwards": {"images": forwards}}),
    }
    write_atomically(folder / _ENVIRONMENT, as_json(values, indent=2) + "\n")


def finished_epochs(folder: Path) -> int | None:
    """Return the number of epochs of the finished run in `folder`; None for an unfinished one."""
    epochs = _read_environment(folder).get("epochs")
    return epochs if isinstance(epochs, int) else None


def missing_results(folder: Path) -> list[str]:
    """Return the names of the files that the finished run in `folder` wrote, or was about to write, and that aren't there."""
    results = _read_environment(folder).get("results")
    names = [name for name in results if isinstance(name, str)] if isinstance(results, list) else []
    return [name for name in names if not (folder / name).is_file()]


def _read_environment(folder: Path) -> Plain:
    try:
        values = json.loads((folder / _ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of imgclf's own checkout, with "+" where it has changes; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    options: Plain = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], **options).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
