"""One run, from its settings to the files in its folder."""

import re
import shlex
import time
from pathlib import Path
from typing import Any

from imgclf.config import RunConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import worker_failure
from imgclf.errors import CheckpointError, ConfigError, ImgclfError, RunError
from imgclf.evaluation.calibration import fit_temperature
from imgclf.evaluation.evaluate import Evaluation, compute_metrics, evaluate_split
from imgclf.files.run_folder import (
    create_run_folder,
    describe_environment,
    finished_epochs,
    require_unused,
    write_environment,
)
from imgclf.models.checkpoint import update_metadata
from imgclf.quality.oddities import quick_notes
from imgclf.quality.run import check_before_training
from imgclf.report.summary import print_data, print_metrics, print_network, print_per_class, silence_library_logs
from imgclf.report.tables import metrics_json
from imgclf.signals import Interrupted, Signals, catch_signals
from imgclf.training.build import build_classifier, build_data, build_trainer, is_first_process, restore_classifier
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.classifier import ImageClassifier
from imgclf.training.feature_cache import FeatureCache, attach_features
from imgclf.training.resume import ResumePoint, check_data, check_settings, find_checkpoint, load_run_config

__all__ = ["train"]


def train(settings: dict[str, Any], folder: Path, overrides: list[str]) -> float | None:
    """Train a classifier, test the best of its epochs, write everything into the run's folder, and return the best value
    of `checkpoint.monitor`. Test pictures are looked at once, when all is chosen. Raises `ImgclfError`, and `Interrupted`
    when a signal stopped it, with the checkpoint written and the command to go on in its text.
    """
    began = time.perf_counter()
    silence_library_logs()
    if settings["resume"]:
        settings = load_run_config(settings, folder, overrides)
    settings = _with_absolute_paths(settings)
    start = find_checkpoint(settings["ckpt_path"], folder)
    if settings["ckpt_path"] != "last" and is_first_process():
        require_unused(folder)
    if start:
        check_settings(start, settings)
    if start and settings["ckpt_path"] == "last" and (done := _already_done(settings, folder, start)):
        print(done, flush=True)
        return start.best_value
    with catch_signals() as signals:
        try:
            return _run(settings, folder, overrides, start, signals, began)
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop}; {_way_on(folder)}") from None


def _run(settings: dict[str, Any], folder: Path, overrides: list[str], start: ResumePoint | None, signals: Signals,
         began: float) -> float | None:  # fmt: skip
    data = build_data(settings)
    if settings.get("calibrate") and not len(data.samples["val"]):
        raise ConfigError("calibrate=true: there are no validation pictures to fit a temperature on; leave it out")
    if start:
        check_data(start, data)
        classifier = restore_classifier(settings, data, start.path)
    else:
        classifier = build_classifier(settings, data)
    trainer = build_trainer(settings, folder, data, signals)
    data.interrupted = lambda: signals.pending is not None
    features = attach_features(RunConfig.from_dict(settings), classifier, data, trainer.strategy.root_device,
                               start.checkpoint["imgclf"].get("engine") if start else None)  # fmt: skip
    if start and start.stopped_early:
        trainer.fit_loop.max_epochs = start.epochs
    if trainer.is_global_zero:
        create_run_folder(folder, settings, overrides, resuming=settings["ckpt_path"] == "last")
        data.notes += quick_notes(data)
        print_data(data)
        if settings["check"] and not start:
            check_before_training(data, folder)
        print_network(classifier)
        if features:
            print(features.describe(), flush=True)
        print(f"run folder: {folder}" + (f"\n{start.says()}" if start else ""), flush=True)
    ready = time.perf_counter()
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=start.path if start else None)
    except Exception as error:
        if failure := worker_failure(error):
            raise failure from None
        if (
            trainer.world_size > 1
            and isinstance(error, RuntimeError)
            and re.search("gloo|nccl|by peer", str(error), re.I)
        ):
            raise RunError("another of the run's processes has ended; why, it says above. resume=<run folder> goes on from the "
                           "last checkpoint") from None  # fmt: skip
        if start and not signals.deferring and not isinstance(error, ImgclfError):  # Lightning was still restoring
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{start.path}: can't be gone on from ({type(error).__name__}: {reason})") from error
        raise
    fitted = time.perf_counter()
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, CheckpointCallback))
    if trainer.is_global_zero:
        tested, measured = _finish(settings, folder, data, classifier, best.best_epoch, features)
        for logger in trainer.loggers:
            logger.log_metrics({f"best_{split}_{name}": float(value) for split, found in measured.items()
                                for name, value in found.metrics.items()}, trainer.global_step)  # fmt: skip
            logger.finalize("success")
        ended = time.perf_counter()
        seconds = {"setup": ready - began, "fit": fitted - ready, "evaluation": ended - fitted, "total": ended - began}
        forwards = features.forwards if features else None
        write_environment(
            folder, seconds, len(classifier.history), forwards
        )  # the run is finished, whatever a report meets
        if settings["report"] is not False:
            from imgclf.report.run_report import write_report  # here, because it loads matplotlib

            write_report(folder, tested, data, measured, {**describe_environment(), "seconds": seconds})
            seconds["report"] = time.perf_counter() - ended
            print(f"report.html in {seconds['report']:.1f} s", flush=True)
            write_environment(folder, seconds, len(classifier.history), forwards)
        print(f"done in {seconds['total']:.0f} s (fit {seconds['fit']:.0f} s); everything is in {folder}", flush=True)
    return best.best_value


def _with_absolute_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """The run may be resumed from another working directory."""
    data_dir, exclude = settings["data_dir"], settings["dataset"].get("exclude")
    if data_dir and data_dir != "demo":
        settings = {**settings, "data_dir": str(Path(data_dir).expanduser().absolute())}
    if exclude:
        exclude = str(Path(exclude).expanduser().absolute())
        settings = {**settings, "dataset": {**settings["dataset"], "exclude": exclude}}
    return settings


def _already_done(settings: dict[str, Any], folder: Path, start: ResumePoint) -> str | None:
    """What to say about a run that has nothing left to do; None for any other."""
    if finished_epochs(folder) != start.epochs or not (
        start.stopped_early or start.epochs >= settings["trainer"]["max_epochs"]
    ):
        return None
    how = "early stopping ended it" if start.stopped_early else "pass a larger trainer.max_epochs to go on"
    return f"{folder}: this run is finished, after {start.epochs} epochs; nothing to do ({how})"


def _way_on(folder: Path) -> str:
    """What to type to go on."""
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return "nothing was saved yet, begin the run again"
    text = f"resume={folder}"
    if not re.fullmatch(r"[\w./=~+-]+", text) or text.count("=") > 1:  # what Hydra would read as more than a word
        escaped = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        text = shlex.quote(f"resume='{escaped}'")
    return f"go on with: python -m imgclf.train {text}"


def _finish(settings: dict[str, Any], folder: Path, data: ImageDataModule, trained: ImageClassifier,
            best_epoch: int | None, features: FeatureCache | None
            ) -> tuple[ImageClassifier, dict[str, Evaluation]]:  # fmt: skip
    """Test the best epoch's checkpoint as it lies on disk, write and print the results, and return them."""
    path = folder / "checkpoints" / "best.ckpt"
    if not trained.history:
        raise RunError(
            f"no epoch was trained (trainer.max_epochs={settings['trainer'].get('max_epochs')}); nothing to test"
        )
    classifier = ImageClassifier.load_from_checkpoint(path).to(trained.device)
    if features and not features.attach(classifier):  # the best epoch's frozen part has been trained since
        data.features = None
    metrics: dict[str, Any] = {"train": trained.training_means()}
    measured: dict[str, Evaluation] = {}
    for split in ("val", "test"):
        if len(data.samples[split]) and settings["trainer"]["limit_test_batches"] != 0:
            limit = settings["trainer"][
                "limit_test_batches"
            ]  # of debug=..., for both; else the whole split is measured
            loader = data.loader(
                split, shuffle="once" if limit else "never", limit=limit
            )  # a limit shows a fair sample
            measured[split] = evaluate_split(classifier.eval_model, loader, loader.limit)
            if split == "val" and settings.get("calibrate"):
                found = measured[split]
                classifier.metadata.temperature = fit_temperature(found.logits, found.targets)
                measured[split] = compute_metrics(classifier.eval_model, found.samples, found.order, found.logits)
            measured[split].write(folder, split, predictions=split == "test")
            metrics[split] = measured[split].metrics
    metrics_json(folder / "metrics.json", metrics)
    update_metadata(path, metrics=metrics, **({"temperature": classifier.temperature} if settings.get("calibrate") else {}))
    split = "test" if "test" in measured else "val"
    if split in measured:
        print_per_class(split, measured[split].matrix, classifier.classes)
    print(f"best epoch: {best_epoch + 1}" if best_epoch is not None else "best epoch: none")
    print_metrics(metrics)
    return classifier, measured
