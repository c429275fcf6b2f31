"""The plan of a run, fresh or resumed: its settings, its checkpoint, and whether the data is still the same."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from imgclf.config import RunConfig
from imgclf.console import shell_quoted
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.manifest import difference
from imgclf.errors import CheckpointError, ConfigError, RunError, one_line
from imgclf.files.run_folder import find_checkpoint, find_run, finished_epochs, require_unused
from imgclf.models.checkpoint import read_checkpoint
from imgclf.schema import flatten

__all__ = ["ResumePoint", "RunPlan", "find_resume_point", "plan_run", "resume_command"]


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run continues from: its `path` and contents."""

    path: Path
    checkpoint: Mapping[str, Any]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the checkpoint holds besides weights and loops."""
        return self.checkpoint["imgclf"]

    @property
    def epochs(self) -> int:
        """Number of whole epochs, validated and saved."""
        return len(self.metadata["history"])

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the run."""
        return bool(self.metadata.get("stopped_early"))

    @property
    def best_value(self) -> float | None:
        """Best value so far of the monitored metric."""
        callbacks = self.checkpoint["callbacks"]
        return next((state["best_value"] for state in callbacks.values() if "best_value" in state), None)

    def describe(self, max_epochs: int) -> str:
        """Return the line that tells where the run continues; the first epoch is 1."""
        trained = self.stopped_early or self.epochs >= max_epochs > 0
        where = "with its evaluation" if trained else f"in epoch {self.epochs + 1}"
        return f"continues {where}, after {self.checkpoint['global_step']:,} steps, from {self.path.name}"

    def threads_note(self, threads: int) -> str | None:
        """Return a line if `threads`, those of this process, aren't those that the checkpoint was written with."""
        theirs = self.metadata.get("threads")
        if not theirs or theirs == threads:
            return None
        written = f"{theirs} thread{'s' * (theirs != 1)}"
        return f"note: the checkpoint was written with {written}, this process uses {threads}; sums may differ in the last digits"

    def check_data(self, data: ImageDataModule) -> None:
        """Raise `CheckpointError`, naming the difference, if classes or files aren't those of the checkpoint."""
        theirs, ours = list(self.checkpoint["hyper_parameters"]["classes"]), list(data.classes)
        if theirs != ours:
            gone, new = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
            change = f"only there: {', '.join(gone) or 'none'}; only in the data: {', '.join(new) or 'none'}"
            raise CheckpointError(
                f"{self.path}: its classes differ from the data's ({change}); a run is resumed with the data that it began with"
            )
        prints = self.metadata.get("fingerprint")
        if prints and (change := difference(prints, data.fingerprint()) or ""):
            raise CheckpointError(
                f"{self.path}: the data has changed since ({change}); restore the data that the run began with, "
                "or begin a new run"
            )

    def check_config(self, config: RunConfig) -> None:
        """Raise `CheckpointError` if a setting that results depend on differs from the checkpoint's run."""
        theirs = flatten(self.metadata.get("config") or {})
        if not theirs:  # trained from Python: there are no settings to compare
            return
        ours = flatten(config.to_dict())
        free = tuple(f"{key}." for key in RunConfig.keys_with("may_change"))
        for key in {**theirs, **ours}:
            if f"{key}.".startswith(free) or theirs.get(key) == ours.get(key):
                continue
            raise CheckpointError(
                f"{self.path}: its run had {key}={theirs.get(key)}, this one has {ours.get(key)}; a run is resumed "
                "with the settings that it began with (imgclf resume <its folder> takes them all)"
            )


@dataclass(frozen=True)
class RunPlan:
    """What a run does: its settings, its `folder`, the `overrides` that were typed, and the checkpoint that it continues from,
    if any.
    """

    config: RunConfig
    folder: Path
    overrides: list[str]
    resume: ResumePoint | None = None

    @property
    def in_place(self) -> bool:
        """Whether the run that `folder` holds is continued, rather than a new one begun."""
        return self.config.ckpt_path == "last"

    @property
    def finished(self) -> str | None:
        """The message for a run that has nothing left to do; None for any other."""
        point = self.resume
        if not point or not self.in_place or finished_epochs(self.folder) != point.epochs:
            return None
        if not point.stopped_early and point.epochs < self.config.trainer.max_epochs:
            return None
        reason = "early stopping ended it" if point.stopped_early else "a larger trainer.max_epochs continues it"
        return f"this run is finished, after {point.epochs} epochs; {reason}"


def plan_run(config: RunConfig, folder: Path, overrides: list[str], first_process: bool = True) -> RunPlan:
    """Decide whether a run is new or resumed, and from which checkpoint.

    Raises `RunError` when `folder` holds another run, `CheckpointError` when the checkpoint or its settings don't fit.
    """
    if config.resume:
        config = _load_run_config(config, folder, overrides)
    config = _with_absolute_paths(config)
    point = find_resume_point(config.ckpt_path, folder)
    if config.ckpt_path != "last" and first_process:
        require_unused(folder)
    if point:
        point.check_config(config)
    return RunPlan(config, folder, overrides, point)


def find_resume_point(wanted: str | None, folder: Path) -> ResumePoint | None:
    """Return the checkpoint that `ckpt_path=wanted` means: "last" for the newest valid one of the run in `folder`, or another
    run's, by any name that `find_checkpoint` takes.

    `last.ckpt` is always the newest; if it can't be read, the other one with the most steps is used, and every skipped file is
    printed. Raises `CheckpointError` where there is none: a run never begins from scratch by mistake.
    """
    if not wanted:
        return None
    if wanted != "last":
        return _read(find_checkpoint(wanted).absolute())
    checkpoints = folder / "checkpoints"
    last, skipped = checkpoints / "last.ckpt", []
    others = [path for path in sorted(checkpoints.glob("*.ckpt")) if path != last]
    points: list[ResumePoint] = []
    for group in ([last] if last.exists() else [], others):
        for path in group:
            try:
                points.append(_read(path))
            except CheckpointError as error:
                skipped.append(str(error))
        if points:
            break
    for reason in skipped:
        print(f"skipped {reason}", flush=True)
    if not points:
        problem = "none of the checkpoints can be read (see above)" if skipped else "there is no checkpoint"
        raise CheckpointError(
            f"ckpt_path=last: {problem} in {checkpoints}; pass another run's folder, or begin a new run"
        )
    return max(points, key=lambda point: point.checkpoint["global_step"])


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in `folder`, quoted for the shell."""
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return "nothing was saved yet, begin the run again"
    return f"resume it with: imgclf resume {shell_quoted(str(folder))}"


def _read(path: str | Path) -> ResumePoint:
    """Read a checkpoint with all that a resumed run needs; raises `CheckpointError`."""
    checkpoint = read_checkpoint(path)
    extra = checkpoint["imgclf"]
    right = isinstance(checkpoint.get("global_step"), int) and isinstance(checkpoint.get("callbacks"), dict)
    lists = (checkpoint["hyper_parameters"].get("classes"), extra.get("history"))
    right = right and all(isinstance(values, list) for values in lists)
    if not right or any(not isinstance(extra.get(key) or {}, dict) for key in ("config", "fingerprint")):
        raise CheckpointError(f"{path}: holds a classifier, but not the state of a run; pass a run's last.ckpt")
    return ResumePoint(Path(path), checkpoint)


def _load_run_config(config: RunConfig, folder: Path, overrides: list[str]) -> RunConfig:
    """Return the settings of the run in `folder`, for `resume=<folder>`, with what may change from the command line.

    Raises `ConfigError` for an override that may not change, `RunError` when `folder` holds no run.
    """
    if find_run(config.resume or "").absolute() != folder.absolute():
        raise ConfigError(f"resume={config.resume}: a run is resumed in its own folder; leave out hydra.run.dir and -m")
    overridable = RunConfig.keys_with("on_resume")
    typed = {text.lstrip("+~").partition("=")[0]: text for text in overrides}
    if refused := [text for key, text in typed.items() if key not in (*overridable, "resume", "trainer")]:
        raise ConfigError(
            f"resume keeps the run's own settings; {refused[0]} can't change (only {', '.join(overridable)} "
            "and trainer=... can)"
        )
    path = folder / "config.yaml"
    try:
        saved = RunConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ConfigError) as error:
        reason = one_line(error, 160)
        raise RunError(f"{path}: holds no run's settings ({reason}); pass a run's folder, or latest") from None
    keys = [key for key in overridable if key in typed]
    if "trainer" in typed:
        keys += [key for key in overridable if key.startswith("trainer.") and key != "trainer.max_epochs"]
    for group, _, name in (key.partition(".") for key in keys):
        changed = replace(getattr(saved, group), **{name: getattr(getattr(config, group), name)})
        saved = replace(saved, **{group: changed})
    return replace(saved, resume=config.resume, ckpt_path="last")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The run may be resumed from another working directory."""
    data_dir, exclude = config.data_dir, config.dataset.exclude
    if data_dir and data_dir != "demo":
        config = replace(config, data_dir=str(Path(data_dir).expanduser().absolute()))
    if isinstance(exclude, str):
        exclude = str(Path(exclude).expanduser().absolute())
        config = replace(config, dataset=replace(config.dataset, exclude=exclude))
    return config
