"""Measuring a checkpoint on data, from plain settings."""

import time
from pathlib import Path
from typing import Any

import torch

from imgclf.data.datamodule import SPLITS
from imgclf.errors import CheckpointError, ConfigError, DataError
from imgclf.evaluation.evaluate import build_forward, evaluate_split
from imgclf.files.run_folder import describe_environment, require_unused
from imgclf.report.summary import print_metrics, print_per_class, silence_library_logs
from imgclf.report.tables import metrics_json
from imgclf.training.build import build_data
from imgclf.training.classifier import ImageClassifier

__all__ = ["evaluate"]


def evaluate(settings: dict[str, Any], folder: Path) -> float:
    """Measure `settings["checkpoint"]` on a split; writes metrics.json, predictions, per-class table and the report
    into `folder`, and returns the accuracy. Raises `DataError` when the data has other classes than the checkpoint.
    """
    began = time.perf_counter()
    silence_library_logs()
    require_unused(folder)
    split = settings["split"]
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    classifier = ImageClassifier.load_from_checkpoint(settings["checkpoint"]).to(_device(settings["device"]))
    data = build_data(_data_settings(settings, classifier))
    if data.classes != classifier.classes:
        raise DataError(_difference(data.classes, classifier.classes, settings["checkpoint"], data.root))
    data.preprocess = classifier.preprocess
    if not len(data.samples[split]):
        raise DataError(f"{data.root}: no pictures for split={split}; choose another split or data_dir")
    model = classifier.eval_model
    answer = build_forward(model, settings["engine"], len(data.samples[split]), settings["precision"])
    flips = classifier.flips() if settings["tta"] else ()
    measured = evaluate_split(model, data.loader(split), None, answer, flips)
    measured.write(folder, split)
    metrics_json(folder / "metrics.json", {split: measured.metrics})
    print_per_class(split, measured.matrix, classifier.classes)
    print_metrics({split: measured.metrics})
    if settings["report"]:
        from imgclf.report.run_report import write_report  # here, because it loads matplotlib

        environment = {**describe_environment(), "seconds": {"total": round(time.perf_counter() - began, 3)}}
        measured_at = time.perf_counter()
        write_report(folder, classifier, data, {split: measured}, environment)
        print(f"report.html in {time.perf_counter() - measured_at:.1f} s")
    print(f"everything is in {folder}", flush=True)
    return float(measured.metrics["accuracy"])


def _data_settings(settings: dict[str, Any], classifier: ImageClassifier) -> dict[str, Any]:
    """What the checkpoint was trained on, where the command line doesn't say otherwise.

    Of the same data set the splits must be the same too, or a checkpoint is tested on what it was trained on: only what
    was typed differs.
    """
    trained, chosen = classifier.metadata.config, settings.get("dataset")
    if trained is None:
        if chosen is None:
            raise CheckpointError(
                f"{settings['checkpoint']}: doesn't say what it was trained on; pass dataset= and data_dir="
            )
        return {"dataset": chosen, "seed": 0, "data_dir": settings["data_dir"]}
    dataset, data_dir = trained["dataset"], settings["data_dir"]
    if chosen is not None and chosen["name"] != dataset["name"]:
        return {"dataset": chosen, "seed": trained["seed"], "data_dir": data_dir}
    keys = [typed.lstrip("+").partition("=")[0].removeprefix("dataset.") for typed in settings.get("typed", ())]
    dataset = {**dataset, **{key: chosen[key] for key in keys if chosen and key in chosen}}
    return {"dataset": dataset, "seed": trained["seed"], "data_dir": data_dir or classifier.metadata.data.root}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}; pass device=cpu") from None


def _difference(found: tuple[str, ...], known: tuple[str, ...], checkpoint: str, root: Path) -> str:
    new, gone = sorted(set(found) - set(known)), sorted(set(known) - set(found))
    parts = [
        f"only in the data: {', '.join(new[:5])}" * bool(new),
        f"only in the checkpoint: {', '.join(gone[:5])}" * bool(gone),
    ]
    return (f"{root} has {len(found)} classes and {checkpoint} {len(known)}, and they differ ("
            f"{'; '.join(part for part in parts if part) or 'the same names in another order'}); pass the data it was "
            "trained for, or choose with dataset=<name> dataset.classes=[...]")  # fmt: skip
