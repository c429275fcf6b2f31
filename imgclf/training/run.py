"""One run, from its settings to the files in its folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imgclf.cli.data_words import check_commands
from imgclf.config import RunConfig
from imgclf.console import (
    lines_of_model,
    print_line,
    print_lines_to_copy,
    print_text,
    shell_path,
    silence_library_logs,
)
from imgclf.data.loader import worker_failure
from imgclf.data.location import locate
from imgclf.errors import CheckpointError, ConfigError, ImageError, ImgclfError, RunError, disk_is_full, one_line
from imgclf.evaluation.calibration import fit_temperature
from imgclf.evaluation.evaluate import Evaluation, compute_metrics, evaluate_split
from imgclf.files.run_folder import (
    RunLock,
    create_run_folder,
    describe_environment,
    is_run,
    mark_latest,
    write_environment,
)
from imgclf.files.trial_record import read_record
from imgclf.models.checkpoint import update_metadata
from imgclf.models.image_model import load_image_model
from imgclf.quality import check_before_training, quick_notes
from imgclf.report.summary import print_data, print_metrics, print_network, print_per_class
from imgclf.report.tables import metrics_json, report_files, write_evaluation, write_history
from imgclf.schema import flatten
from imgclf.signals import Interrupted, Signals, catch_signals
from imgclf.training.build import Run, build_run, check_names, data_of, is_first_process
from imgclf.training.checkpointing import CheckpointCallback, TimeOver
from imgclf.training.classifier import ImageClassifier
from imgclf.training.feature_cache import validation_precision
from imgclf.training.ranks import end_with_first_process, lost_process, wait_for_first_process
from imgclf.training.resume import RunPlan, plan_run, resume_command

__all__ = ["train"]

EXPORTED = "checkpoints/best.onnx"


def train(config: RunConfig, folder: Path, overrides: list[str]) -> float | None:
    """Train a classifier, evaluate its best epoch, write everything into `folder`, and return the best monitored value.

    Test images are used once, when everything is chosen. Raises `ImgclfError`, and `Interrupted` when a signal stopped the run,
    with its checkpoint written and the command that resumes it in its text.
    """
    clock = _Clock()
    silence_library_logs()
    end_with_first_process()
    with RunLock(folder) as lock:
        if is_run(folder) and is_first_process():
            lock.acquire()
        plan = plan_run(config, folder, overrides, is_first_process())
        check_names(plan.config)
        if plan.finished and is_first_process():
            print_text(plan.finished)
        if plan.finished and plan.resume and not plan.missing:
            if is_first_process():
                plan.restore_files()
                _print_end(folder)
            return plan.resume.best_value
        with _stoppable(folder) as signals, _unreadable(plan):
            plan = _checked(plan)
            run = build_run(plan, signals)
            if run.trainer.is_global_zero:
                _announce(run, lock)
            clock.lap("setup")
            _fit(run)
            clock.lap("fit")
            best = next(c for c in run.trainer.checkpoint_callbacks if isinstance(c, CheckpointCallback))
            if run.trainer.is_global_zero:
                _finish(run, best.best_epoch, clock)
            return best.best_value


class _Clock:
    """Wall time in seconds of each part of a run."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


@contextmanager
def _stoppable(folder: Path) -> Iterator[Signals]:
    """Catch signals; one that stops the run, or a full disk, is raised again with the command that resumes it."""
    with catch_signals() as signals:
        try:
            yield signals
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop}; {resume_command(folder)}") from None
        except OSError as error:
            if not disk_is_full(error):
                raise
            file = f"{error.filename}: " if error.filename else ""
            raise RunError(f"{file}{error.strerror}; free some space; {resume_command(folder)}") from None


@contextmanager
def _unreadable(plan: RunPlan) -> Iterator[None]:
    """Tell in the error about an image that can't be read how to train without it."""
    config = plan.config
    try:
        yield
    except ImageError as error:
        root = locate(config.dataset.name, config.data_dir)
        try:
            check, exclude = check_commands(config.dataset, config.data_dir, config.seed)
        except ConfigError:  # a layout that only a YAML file can hold
            raise error from None
        raise ImageError(
            f"{str(error).removeprefix(f'{root}{os.sep}')}; run `{check}` and train with `{exclude}`, or pass check=exclude"
        ) from None


def _checked(plan: RunPlan) -> RunPlan:
    """Check the data of a new run where its settings ask for it, and return the plan without the files that check=exclude
    leaves out. A resumed run has the files that it began with.
    """
    config, exclude = plan.config, None
    if config.check and not plan.resume:
        first = is_first_process()
        exclude = check_before_training(data_of(config), plan.folder, config.check == "exclude", first)
    elif config.check == "exclude" and plan.resume:
        exclude = flatten(plan.resume.metadata.get("config") or {}).get("dataset.exclude")
    if not exclude:
        return plan
    return replace(plan, config=replace(config, dataset=replace(config.dataset, exclude=exclude)))


def _announce(run: Run, lock: RunLock) -> None:
    """Create the run's folder, and print its data, its network and where it continues."""
    plan, data = run.plan, run.data
    own = plan.in_place or bool(plan.config.resume)  # what was typed belongs to the run as it began
    create_run_folder(plan.folder, plan.config.to_dict(), plan.overrides, lock, resuming=own)
    plan.restore_files()
    data.notes += quick_notes(data)
    print_data(data)
    print_network(run.classifier.network, run.classifier.preprocess)
    if run.features:
        print_line(run.features.describe())
    print_text(f"run folder: {shell_path(plan.folder)}")
    if plan.begins_again:
        print_text("begins again: the run in this folder ended before its first checkpoint")
    if plan.resume:
        write_history(plan.folder, plan.resume.metadata["history"])
        print_text(plan.resume.describe(plan.is_trained))
        if note := plan.resume.threads_note(torch.get_num_threads()):
            print_line(note)


def _fit(run: Run) -> None:
    """Train; errors that a user can act upon become an `ImgclfError` here, and nowhere else."""
    point = run.plan.resume
    try:
        wait_for_first_process(run.trainer.global_rank, run.plan.config.dataset.timeout_seconds)
        run.trainer.fit(run.classifier, datamodule=run.data, ckpt_path=point.path if point else None)
    except ImgclfError:
        raise
    except TimeOver as place:
        max_time = run.plan.config.trainer.max_time
        if not run.classifier.history:
            again = resume_command(run.plan.folder)
            raise RunError(
                f"trainer.max_time={max_time} is over {place}, before any epoch is finished; {again}"
            ) from None
        print_line(f"stopped {place}: trainer.max_time={max_time} is over; {resume_command(run.plan.folder)}")
    except Exception as error:
        # What is raised while a batch is fetched is translated there; a signal handler raises anywhere, a RuntimeError.
        if isinstance(error, RuntimeError) and (failure := worker_failure(error)):
            raise failure from None
        if run.trainer.world_size > 1 and (failure := lost_process(error)):
            raise failure from None
        if point and not run.signals.deferring:  # Lightning was still restoring
            reason = one_line(error, 160)
            raise CheckpointError(f"cannot resume from {point.path}: {type(error).__name__}: {reason}") from error
        raise


def _finish(run: Run, best_epoch: int | None, clock: _Clock) -> None:
    """Evaluate the best epoch, and write and print the results; the report comes last, as nothing depends on it."""
    folder, trainer = run.plan.folder, run.trainer
    best, evaluations, results = _evaluate_best(run, best_epoch)
    for logger in trainer.loggers:
        values = {
            f"best_{split}_{name}": float(value)
            for split, evaluation in evaluations.items()
            for name, value in evaluation.metrics.items()
        }
        logger.log_metrics(values, trainer.global_step)
        logger.finalize("success")
    clock.lap("evaluation")
    seconds = {**clock.seconds, "total": sum(clock.seconds.values())}
    epochs, forwards = len(run.classifier.history), run.features.forwards if run.features else None
    reports = run.plan.config.report is not False
    results += report_files(evaluations, run.classifier.history) if reports else []
    results += [EXPORTED] if run.plan.config.export else []
    # From here on the run counts as finished; killed before its report is written, it writes that when it is resumed.
    write_environment(folder, seconds, epochs, results, forwards)
    if read_record(folder) is None:  # of a sweep, the winner alone becomes the latest run
        mark_latest(folder)
    if reports:
        from imgclf.report import ReportInputs, write_report  # here, because it loads matplotlib

        environment = {**describe_environment(), "seconds": seconds}
        config, trained = best.metadata.config or {}, run.classifier
        inputs = ReportInputs(
            best.eval_model,
            run.data,
            evaluations,
            environment,
            config,
            trained.history,
            trained.metadata.metrics["train"],
            best_epoch,
        )
        write_report(folder, inputs)
        clock.lap("report")
        write_environment(folder, {**seconds, "report": clock.seconds["report"]}, epochs, results, forwards)
    if run.plan.config.export:
        from imgclf.exporting import export_model  # here, because it loads onnxruntime

        export_model(load_image_model(folder / "checkpoints" / "best.ckpt"), folder / EXPORTED)
        clock.lap("export")
    print_text(f"done in {sum(clock.seconds.values()):.0f} s (training {seconds['fit']:.0f} s)")
    _print_end(folder)


def _print_end(folder: Path) -> None:
    """Print the last lines of a run: its model, its report, and how to predict."""
    print_lines_to_copy(lines_of_model(folder / "checkpoints" / "best.ckpt", folder / "report.html"))


def _evaluate_best(run: Run, best_epoch: int | None) -> tuple[ImageClassifier, dict[str, Evaluation], list[str]]:
    """Evaluate the best epoch's checkpoint as it lies on disk on validation and test; write and print the results.

    Returns the best epoch's classifier, its evaluations, and the names of the files written.
    """
    config, folder, data, trained = run.plan.config, run.plan.folder, run.data, run.classifier
    path = folder / "checkpoints" / "best.ckpt"
    if not trained.history:
        raise RunError(f"no epoch was trained (trainer.max_epochs={config.trainer.max_epochs}); nothing to evaluate")
    best = ImageClassifier.load_from_checkpoint(path).to(trained.device)
    if run.features and not run.features.attach(best):  # the best epoch's frozen part has been trained since
        data.connect(best.preprocess)
    metrics: dict[str, Any] = {"train": trained.metadata.metrics["train"]}
    results = ["history.csv", "history.json", "metrics.json", "checkpoints/best.ckpt"]
    evaluations: dict[str, Evaluation] = {}
    limit = config.trainer.limit_test_batches  # of debug=..., for both splits; else the whole split is measured
    for split in ("val", "test"):
        if not len(data.samples[split]) or limit == 0:
            continue
        loader = data.loader(split, shuffle="once" if limit else "never", limit=limit)  # a limit takes a fair sample
        with validation_precision(run.trainer, best):
            evaluation = evaluate_split(best.eval_model, loader, loader.limit)
        if split == "val" and config.calibrate:
            best.metadata.temperature = fit_temperature(evaluation.logits, evaluation.targets)
            evaluation = compute_metrics(best.eval_model, evaluation.samples, evaluation.order, evaluation.logits)
        results += write_evaluation(folder, split, evaluation, predictions=split == "test")
        evaluations[split], metrics[split] = evaluation, evaluation.metrics
    metrics_json(folder / "metrics.json", metrics)
    update_metadata(path, metrics=metrics, **({"temperature": best.temperature} if config.calibrate else {}))
    last = "test" if "test" in evaluations else "val"
    if last in evaluations:
        print_per_class(last, evaluations[last].matrix, best.classes)
    print_text(f"best epoch: {best_epoch}")
    print_metrics(metrics)
    return best, evaluations, results
