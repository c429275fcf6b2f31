"""The plan of a run, fresh or resumed: its settings, its checkpoint, and whether the data is still the same."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from imgclf.cli.data_words import word_of
from imgclf.config import RunConfig
from imgclf.console import print_text, shell_joined, shell_quoted
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.manifest import difference
from imgclf.errors import CheckpointError, ConfigError, RunError, one_line
from imgclf.files.atomic import delete_leftovers
from imgclf.files.run_folder import (
    find_checkpoint,
    find_resumable,
    find_run,
    finished_epochs,
    has_checkpoints,
    is_run,
    missing_results,
    require_unused,
)
from imgclf.models.checkpoint import read_checkpoint
from imgclf.schema import flatten
from imgclf.training.checkpointing import copy_checkpoint, epoch_files

__all__ = ["ResumePoint", "RunPlan", "find_best", "find_resume_point", "plan_run", "resume_command"]


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
        return self._saved("best_value")

    @property
    def best_epoch(self) -> int | None:
        """Epoch of that value, from 1 on; None before the first one has ended."""
        return self._saved("best_epoch")

    @property
    def finished_epoch(self) -> int | None:
        """Epoch at whose end the checkpoint was written; None within an epoch."""
        return self._saved("finished_epoch")

    def _saved(self, name: str) -> Any:
        """Return a value of the state of `CheckpointCallback`; None for a checkpoint without it."""
        states = (state for state in self.checkpoint["callbacks"].values() if isinstance(state, dict))
        return next((state[name] for state in states if name in state), None)

    def is_end_of(self, epoch: int, run: "ResumePoint") -> bool:
        """Return whether this is the end of `epoch` of the run that `run` is a later state of."""
        rows, later = ([{**row, "seconds": None} for row in point.metadata["history"][:epoch]] for point in (self, run))
        same = repr(rows) == repr(later)  # as text, NaN equals NaN
        return self.finished_epoch == epoch == self.epochs and same

    def describe(self, is_trained: bool) -> str:
        """Return the line that tells where the run continues; the first epoch is 1."""
        where = "with its evaluation" if is_trained else f"in epoch {self.epochs + 1}"
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
    None for a new run. `best`: the checkpoint of the best epoch so far; None where there is none, or none any more.
    `begins_again`: the folder holds a run that ended before its first checkpoint.
    """

    config: RunConfig
    folder: Path
    overrides: list[str]
    resume: ResumePoint | None = None
    best: Path | None = None
    begins_again: bool = False

    @property
    def in_place(self) -> bool:
        """Whether the run that `folder` holds is continued, rather than a new one begun."""
        return self.config.ckpt_path == "last"

    @property
    def is_trained(self) -> bool:
        """Whether no epoch and no step is left to train."""
        point, epochs = self.resume, self.config.trainer.max_epochs
        return point is not None and (point.stopped_early or point.epochs >= epochs >= 0 or self._steps_are_over(point))

    def _steps_are_over(self, point: ResumePoint) -> bool:
        return 0 < (self.config.trainer.max_steps or 0) <= int(point.checkpoint["global_step"])

    @property
    def missing(self) -> list[str]:
        """Names of the files that a finished run has lost, or hasn't written before it was killed."""
        return missing_results(self.folder)

    @property
    def finished(self) -> str | None:
        """The message for a run that has nothing left to train; None for any other."""
        point = self.resume
        if not point or not self.in_place or not self.is_trained or finished_epochs(self.folder) != point.epochs:
            return None
        if missing := self.missing:
            return f"this run is finished, after {point.epochs} epochs; it is evaluated again, for {', '.join(missing)}"
        limit = "max_steps" if self._steps_are_over(point) else "max_epochs"
        reason = "early stopping ended it" if point.stopped_early else f"a larger trainer.{limit} continues it"
        return f"this run is finished, after {point.epochs} epochs; {reason}"

    def restore_files(self) -> None:
        """Write the checkpoints that a crash kept from being written after last.ckpt, each with a line; delete leftovers."""
        checkpoints = self.folder / "checkpoints"
        for part in (self.folder, checkpoints):
            delete_leftovers(part)
        point = self.resume
        if not point:
            return
        sources = {"best.ckpt": self.best} if self.best else {}
        if self.in_place and point.finished_epoch:
            names = epoch_files(self.config.checkpoint.keep, point.finished_epoch, point.best_epoch)
            sources |= {name: point.path for name in names if name != "best.ckpt" and not (checkpoints / name).exists()}
        for name, source in sources.items():
            if source.absolute() != (checkpoints / name).absolute():
                copy_checkpoint(source, checkpoints / name)
                if self.in_place:
                    print_text(f"{name}: written from {source.name}")
        if not self.best and point.best_epoch:
            print_text(
                f"the best epoch is chosen from here on: the checkpoint of epoch {point.best_epoch}, the best before "
                f"{point.path.name}, isn't beside it"
            )


def plan_run(config: RunConfig, folder: Path, overrides: list[str], first_process: bool = True) -> RunPlan:
    """Decide whether a run is new or resumed, and from which checkpoint.

    A run that ended before its first checkpoint begins again. Raises `RunError` when `folder` holds another run,
    `CheckpointError` when the checkpoint, that of the best epoch, or its settings don't fit.
    """
    if config.resume:
        config = _load_run_config(config, folder, overrides)
    config = _with_absolute_paths(config)
    again = is_run(folder) and not has_checkpoints(folder)
    if again and config.ckpt_path == "last":
        config = replace(config, ckpt_path=None)
    point = find_resume_point(config.ckpt_path, folder)
    if point and config.resume and not again:
        _require_newest(find_resumable(config.resume), point, folder)
    if config.ckpt_path != "last" and first_process and not again:
        require_unused(folder)
    if not point:
        return RunPlan(config, folder, overrides, begins_again=again)
    if config.ckpt_path != "last":
        config = replace(config, ckpt_path=str(point.path))  # `latest` is another one soon
    point.check_config(config)
    best = find_best(point)
    if config.ckpt_path == "last" and point.best_epoch and not best:
        raise CheckpointError(
            f"{folder / 'checkpoints' / 'best.ckpt'}: not the checkpoint of epoch {point.best_epoch}, the best of this run, "
            f"and no other file is; put it back, or train on as a new run: pass the run's settings with "
            f"{shell_quoted(f'ckpt_path={point.path}')} and another hydra.run.dir"
        )
    return RunPlan(config, folder, overrides, point, best, again)


def find_best(point: ResumePoint) -> Path | None:
    """Return the file, beside the checkpoint of `point`, that holds the best epoch of its run; None for none.

    A run that is killed between two files of an epoch has a last.ckpt that is ahead of best.ckpt: it is the best epoch
    itself then.
    """
    epoch, checkpoints = point.best_epoch, point.path.parent
    if epoch is None:
        return None
    for path in (checkpoints / "best.ckpt", point.path, checkpoints / f"epoch_{epoch:03}.ckpt"):
        try:
            held = point if path == point.path else _read(path)
        except CheckpointError:  # it isn't there, or damaged
            continue
        if held.is_end_of(epoch, point):
            return path
    return None


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
        print_text(f"skipped {reason}")
    if not points:
        problem = "none of the checkpoints can be read (see above)" if skipped else "there is no checkpoint"
        raise CheckpointError(
            f"ckpt_path=last: {problem} in {checkpoints}; pass another run's folder, or begin a new run"
        )
    return max(points, key=lambda point: point.checkpoint["global_step"])


def _require_newest(named: Path, newest: ResumePoint, folder: Path) -> None:
    """Raise `CheckpointError` if the checkpoint file `named` isn't the run's newest state: going back would overwrite what
    came after it.
    """
    if not named.is_file() or _read(named).checkpoint["global_step"] == newest.checkpoint["global_step"]:
        return
    try:
        words = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
        words = [str(word) for word in words if not str(word).startswith(("ckpt_path=", "++ckpt_path="))]
    except (OSError, yaml.YAMLError, TypeError):
        words = ["<the run's settings>"]
    again = shell_joined(["imgclf", "train", *words, word_of("ckpt_path", str(named.absolute()))])
    raise CheckpointError(
        f"{named}: a run is resumed from its newest checkpoint, which is {newest.path.name}; pass the run's folder for that, "
        f"or begin a new run from this one: {again}"
    )


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
    if find_run(config.resume or "").resolve() != folder.resolve():
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
        length = ("trainer.max_epochs", "trainer.max_time")
        keys += [key for key in overridable if key.startswith("trainer.") and key not in length]
    for group, _, name in (key.partition(".") for key in keys):
        chosen = getattr(config, group)
        saved = replace(
            saved, **{group: replace(getattr(saved, group), **{name: getattr(chosen, name)}) if name else chosen}
        )
    begun_from = None if has_checkpoints(folder) else saved.ckpt_path  # another run's, with which it begins again
    return replace(saved, resume=config.resume, ckpt_path=begun_from or "last")


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The run may be resumed from another working directory."""
    data_dir, exclude = config.data_dir, config.dataset.exclude
    if data_dir and data_dir != "demo":
        config = replace(config, data_dir=str(Path(data_dir).expanduser().absolute()))
    if isinstance(exclude, str):
        exclude = str(Path(exclude).expanduser().absolute())
        config = replace(config, dataset=replace(config.dataset, exclude=exclude))
    return config
