"""Going on with a run: which checkpoint, with which settings, and whether the data is still what it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imgclf.data.datamodule import ImageDataModule
from imgclf.data.manifest import difference
from imgclf.errors import CheckpointError, ConfigError, RunError
from imgclf.models.checkpoint import read_checkpoint

__all__ = ["ResumePoint", "check_data", "check_settings", "find_checkpoint", "load_run_config"]

# What a resumed run may do otherwise than it began: how long, where and how loud, but nothing that a result depends on.
# `trainer` stands for trainer=<cpu|gpu|...> on the command line; weights come from the checkpoint.
FREE = (
    "trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "dataset.num_workers",
    "dataset.timeout_seconds", "dataset.exclude", "data_dir", "ckpt_path", "resume", "task_name", "tags", "report",
    "logger",
    "checkpoint.keep", "checkpoint.every_minutes", "checkpoint.every_n_steps", "model.weights", "model.pretrained",
    "model.name", "check", "trials", "find", "cache", "cache_gb", "calibrate", "dataset.flips",
)  # fmt: skip
BY_RESUME = ("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
             "dataset.num_workers", "dataset.timeout_seconds")  # fmt: skip


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on: the checkpoint's `path` and contents, how many `epochs` it has behind it, and whether early
    stopping had ended it.
    """

    path: Path
    checkpoint: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """Whole epochs, validated and saved."""
        return len(self.checkpoint["imgclf"]["history"])

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping had ended the run."""
        return bool(self.checkpoint["imgclf"].get("stopped_early"))

    @property
    def best_value(self) -> float | None:
        """The best value so far of what the run watches."""
        callbacks = self.checkpoint["callbacks"]
        return next((state["best_value"] for state in callbacks.values() if "best_value" in state), None)

    def says(self) -> str:
        """The line that tells where the run goes on."""
        return f"going on from {self.path}: {self.epochs} epochs and {self.checkpoint['global_step']:,} steps are done"


def find_checkpoint(wanted: str | None, folder: Path) -> ResumePoint | None:
    """The checkpoint that `ckpt_path=wanted` means: "last" for the newest valid one of the run in `folder`, else a path.

    `last.ckpt` is always the newest; if it can't be read, the other one with the most steps behind it serves, and what
    was skipped is printed. Raises `CheckpointError` where none is found: never does a run begin anew by mistake.
    """
    if not wanted:
        return None
    if wanted != "last":
        path = Path(wanted).expanduser().absolute()
        return _read(wanted if "://" in wanted else path)
    place = folder / "checkpoints"
    last, skipped = place / "last.ckpt", []
    others = [path for path in sorted(place.glob("*.ckpt")) if path != last]
    found: list[ResumePoint] = []
    for group in ([last] if last.exists() else [], others):
        for path in group:
            try:
                found.append(_read(path))
            except CheckpointError as error:
                skipped.append(str(error))
        if found:
            break
    for reason in skipped:
        print(f"skipped {reason}", flush=True)
    if not found:
        what = "none of the checkpoints can be read (see above)" if skipped else "there is no checkpoint"
        raise CheckpointError(f"ckpt_path=last: {what} in {place}; pass hydra.run.dir=<the run to go on with> "
                              "or begin a new run without ckpt_path")  # fmt: skip
    return max(found, key=lambda start: start.checkpoint["global_step"])


def _read(path: str | Path) -> ResumePoint:
    """The checkpoint at `path`, with all that a resumed run asks it for; raises `CheckpointError`."""
    checkpoint = read_checkpoint(path)
    extra = checkpoint["imgclf"]
    right = isinstance(checkpoint.get("global_step"), int) and isinstance(checkpoint.get("callbacks"), dict)
    right = right and isinstance(checkpoint["hyper_parameters"].get("classes"), list)
    right = right and isinstance(extra.get("history"), list)
    if not right or any(not isinstance(extra.get(key) or {}, dict) for key in ("config", "fingerprint")):
        raise CheckpointError(f"{path}: holds a classifier, but not what a run needs to go on; pass a run's last.ckpt")
    return ResumePoint(Path(path), checkpoint)


def load_run_config(settings: Mapping[str, Any], folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The settings of the run in `folder`, for `resume=<folder>`, with what may change taken from the command line.

    Raises `ConfigError` for an override that may not change, `RunError` when no run lives there.
    """
    if Path(settings["resume"]).expanduser().absolute() != folder.absolute():
        raise ConfigError(f"resume={settings['resume']}: it goes on in that folder; leave out hydra.run.dir and -m")
    typed = [text.lstrip("+~").partition("=")[0] for text in overrides]
    if refused := [
        text for text, key in zip(overrides, typed, strict=True) if key not in (*BY_RESUME, "resume", "trainer")
    ]:
        raise ConfigError(f"resume goes on with the run's own settings; {refused[0]} can't change (only "
                          f"{', '.join(BY_RESUME)} and trainer=... can)")  # fmt: skip
    path = folder / "config.yaml"
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        saved = {
            **saved,
            "dataset": dict(saved["dataset"]),
            "trainer": dict(saved["trainer"]),
            "resume": settings["resume"],
        }
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise RunError(
            f"{path}: holds no run's settings ({type(error).__name__}); pass resume=<a run's folder>"
        ) from None
    keys = [key for key in BY_RESUME if key in typed]
    if "trainer" in typed:
        keys += [key for key in BY_RESUME if key.startswith("trainer.") and key != "trainer.max_epochs"]
    for group, _, name in (key.partition(".") for key in keys):
        saved[group].pop(name, None)
        if name in settings[group]:
            saved[group][name] = settings[group][name]
    saved["ckpt_path"] = "last"
    return saved


def check_settings(start: ResumePoint, settings: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if a setting that results depend on differs from the checkpoint's run."""
    theirs = _flat(start.checkpoint["imgclf"].get("config") or {})
    if not theirs:  # made from Python: there are no settings to compare
        return
    ours = _flat(settings)
    for key in {**theirs, **ours}:
        if f"{key}.".startswith(tuple(f"{free}." for free in FREE)) or theirs.get(key) == ours.get(key):
            continue
        raise CheckpointError(f"{start.path}: its run had {key}={theirs.get(key)}, this one has {ours.get(key)}; a run goes "
                              "on with the settings that it began with (resume=<its folder> takes them all)")  # fmt: skip


def check_data(start: ResumePoint, data: ImageDataModule) -> None:
    """Raise `CheckpointError`, with the difference named, if the classes or the files aren't those of the checkpoint."""
    theirs, ours = list(start.checkpoint["hyper_parameters"]["classes"]), list(data.classes)
    if theirs != ours:
        gone, new = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
        what = f"only there: {', '.join(gone) or 'none'}; only in the data: {', '.join(new) or 'none'}"
        raise CheckpointError(f"{start.path}: its classes are others than the data's ({what}); a run goes on with the data "
                              "that it began with")  # fmt: skip
    prints = start.checkpoint["imgclf"].get("fingerprint")
    if prints and (change := difference(prints, data.fingerprint())):
        raise CheckpointError(f"{start.path}: the data has changed since ({change}); a run goes on with the data that it began "
                              "with: bring it back, or begin a new run")  # fmt: skip


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat
