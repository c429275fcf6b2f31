"""One run, from its settings to the files in its folder."""

import os
import time
from pathlib import Path
from typing import Any

from imgclf.building import build_classifier, build_data, build_trainer
from imgclf.callbacks import Checkpoints
from imgclf.checkpoint import add_metrics, check_resumable, find_last
from imgclf.classifier import ImageClassifier
from imgclf.data.datamodule import ImageDataModule
from imgclf.errors import RunError
from imgclf.inference import assess
from imgclf.report.plots import plot_confusion, plot_curves
from imgclf.report.tables import metrics_json
from imgclf.run_folder import claim, refuse_taken, write_environment
from imgclf.summary import print_data, print_metrics, print_network, print_per_class, quieten

__all__ = ["train"]


def train(settings: dict[str, Any], folder: Path, overrides: list[str]) -> float | None:
    """Train a classifier, test the best of its epochs, write everything into the run's folder, and return the best value
    of `checkpoint.monitor`. Test pictures are looked at once, when all is chosen. Raises `ImgclfError`.
    """
    began = time.perf_counter()
    quieten()
    resume_from = _resume_point(settings, folder)
    data = build_data(settings)
    classifier = build_classifier(settings, data)
    if resume_from:
        check_resumable(resume_from, classifier)
    trainer = build_trainer(settings, folder, data)
    if trainer.is_global_zero:
        claim(folder, settings, overrides, resuming=settings["ckpt_path"] == "last")
        print_data(data)
        print_network(classifier)
        print(f"run folder: {folder}", flush=True)
    ready = time.perf_counter()
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=resume_from)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    fitted = time.perf_counter()
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))
    if trainer.is_global_zero:
        _finish(settings, folder, data, classifier, best.best_epoch)
        ended = time.perf_counter()
        seconds = {"setup": ready - began, "fit": fitted - ready, "evaluation": ended - fitted, "total": ended - began}
        write_environment(folder, seconds)
        print(f"done in {seconds['total']:.0f} s (fit {seconds['fit']:.0f} s); everything is in {folder}", flush=True)
    return best.best_value


def _resume_point(settings: dict[str, Any], folder: Path) -> Path | None:
    """The checkpoint to go on from, if that was asked for; a folder that is taken is refused before anything is done."""
    wanted = settings["ckpt_path"]
    if wanted == "last":
        return find_last(folder)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        refuse_taken(folder)
    return Path(wanted).expanduser().absolute() if wanted else None


def _finish(settings: dict[str, Any], folder: Path, data: ImageDataModule, trained: ImageClassifier,
            best_epoch: int | None) -> None:  # fmt: skip
    """Test the best epoch's checkpoint as it lies on disk, and write and print the results."""
    path = folder / "checkpoints" / "best.ckpt"
    if not trained.history:
        raise RunError(
            f"no epoch was trained (trainer.max_epochs={settings['trainer'].get('max_epochs')}); nothing to test"
        )
    classifier = ImageClassifier.load_from_checkpoint(path).to(trained.device)
    metrics: dict[str, Any] = {"train": trained.training_means()}
    matrices = {}
    for split in ("val", "test"):
        if len(data.samples[split]) and settings["trainer"]["limit_test_batches"] != 0:
            predictions = folder / f"predictions_{split}.csv" if split == "test" else None
            limit = settings["trainer"][
                "limit_test_batches"
            ]  # of debug=..., for both; else the whole split is measured
            loader = data.loader(split, shuffle="once" if limit else "never")  # a limit shows a fair sample
            limit = max(1, round(limit * len(loader))) if isinstance(limit, float) else limit
            metrics[split], matrices[split] = assess(classifier, loader, limit, predictions,
                                                     folder / f"per_class_{split}.csv")  # fmt: skip
    metrics_json(folder / "metrics.json", metrics)
    add_metrics(path, metrics)
    plot_curves(trained.history, folder / "curves.png")
    for split, matrix in matrices.items():
        plot_confusion(matrix, classifier.classes, folder / f"confusion_{split}.png")
    split = "test" if "test" in matrices else "val"
    if split in matrices:
        print_per_class(split, matrices[split], classifier.classes)
    print(f"best epoch: {best_epoch + 1}" if best_epoch is not None else "best epoch: none")
    print_metrics(metrics)
