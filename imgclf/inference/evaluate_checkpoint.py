"""A checkpoint's metrics on a split: of the data that it was trained on, or of other data with the same classes."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from imgclf.config import DatasetConfig, EvaluateConfig
from imgclf.console import lines_of_model, print_lines_to_copy, print_text, shell_path, silence_library_logs
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import build_data
from imgclf.errors import CheckpointError, ConfigError, DataError
from imgclf.evaluation.evaluate import ForwardFn, build_forward, evaluate_split
from imgclf.files.run_folder import describe_environment, find_checkpoint, require_unused
from imgclf.inference.torch_runner import choose_device
from imgclf.models.exported import SUFFIX, load_exported
from imgclf.models.image_model import ImageModel, load_image_model
from imgclf.report import write_evaluation
from imgclf.report.summary import print_metrics, print_per_class
from imgclf.report.tables import metrics_json
from imgclf.threads import available_cpus

__all__ = ["evaluate_checkpoint"]

_TINY = 1e-38  # the smallest probability that has a logarithm in float32


def evaluate_checkpoint(config: EvaluateConfig, folder: Path, overrides: Sequence[str] = ()) -> float:
    """Evaluate `config.checkpoint` on a split; write metrics.json, predictions, per-class table and the report into `folder`,
    and return the accuracy. Raises `DataError` when the data has other classes than the checkpoint.
    """
    began = time.perf_counter()
    silence_library_logs()
    require_unused(folder)
    split = config.split
    device = choose_device(config.device)
    config = replace(config, checkpoint=str(find_checkpoint(config.checkpoint)))
    is_exported = config.checkpoint.lower().endswith(SUFFIX)
    model = _ExportedImageModel(config) if is_exported else load_image_model(config.checkpoint).to(device)
    data = _data_for(config, model, overrides)
    if not len(data.samples[split]):
        raise DataError(f"{data.root}: no images for split={split}; choose another split or data_dir")
    count = len(data.samples[split])
    forward = (
        model.prepare(count)
        if isinstance(model, _ExportedImageModel)
        else build_forward(model, config.engine, count, config.precision)
    )
    flips = model.metadata.flips() if config.tta else ()
    evaluation = evaluate_split(model, data.loader(split), None, forward, flips)
    write_evaluation(folder, split, evaluation)
    metrics_json(folder / "metrics.json", {split: evaluation.metrics})
    print_per_class(split, evaluation.matrix, model.classes)
    print_metrics({split: evaluation.metrics})
    if config.report:
        from imgclf.report import ReportInputs, write_report  # here, because it loads matplotlib

        environment = {**describe_environment(), "seconds": {"total": round(time.perf_counter() - began, 3)}}
        trained, history = model.metadata.config or {}, model.metadata.history
        train_metrics = model.metadata.metrics.get("train", {})
        inputs = ReportInputs(model, data, {split: evaluation}, environment, trained, history, train_metrics)
        write_report(folder, inputs)
    lines = lines_of_model(Path(config.checkpoint), folder / "report.html")
    print_lines_to_copy({"results": shell_path(folder), **lines})
    return float(evaluation.metrics["accuracy"])


class _ExportedImageModel(ImageModel):
    """An exported classifier in the place of a checkpoint's: its logits are known up to a constant for each image."""

    def __init__(self, config: EvaluateConfig) -> None:
        exported = load_exported(config.checkpoint)
        super().__init__(nn.Identity(), exported.classes, exported.preprocess, exported.metadata)
        self.exported, self.config = exported, config

    def prepare(self, count: int) -> ForwardFn:
        """Return the function from uint8 [B, C, S, S] to logits float32 [B, K]; raises `ConfigError` for the engine or device."""
        if self.config.device not in ("auto", "cpu"):
            raise ConfigError(f"device {self.config.device}: an exported file runs on the CPU; leave it out")
        engine = self.exported.choose_engine(self.config.engine, count)

        def logits(images: Tensor) -> Tensor:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # [B, S, S, C]
            probabilities = torch.from_numpy(self.exported.probabilities(pixels, engine, self.config.precision))
            return probabilities.clamp_min(_TINY).log() * self.temperature

        return logits


def _data_for(config: EvaluateConfig, model: ImageModel, overrides: Sequence[str]) -> ImageDataModule:
    """Return the data to evaluate on, prepared for the model; raises `DataError` unless it has the model's classes."""
    dataset, data_dir, seed = _dataset_of(config, model, overrides)
    data = _all_images(config, model, dataset, data_dir, seed) or build_data(dataset, data_dir, seed)
    if data.classes != model.classes:
        raise DataError(_difference(data.classes, model.classes, config.checkpoint, data.root))
    data.connect(model.preprocess)
    return data


def _all_images(
    config: EvaluateConfig, model: ImageModel, dataset: DatasetConfig, data_dir: str | None, seed: int
) -> ImageDataModule | None:
    """Return another data set than that of the training with all its images as test, if it has no folders of splits.

    None for the data of the training, of which a part has to stay unseen, and where split=test or a fraction says otherwise.
    """
    trained = model.metadata.config
    own = trained is not None and DatasetConfig.from_dict(trained["dataset"]).name == dataset.name
    if own or config.split != "test" or dataset.test_fraction != DatasetConfig().test_fraction:
        return None
    data = build_data(replace(dataset, val_fraction=0.0, test_fraction=0.0), data_dir, seed)
    if str(data.root) == model.metadata.data.root or any(len(data.samples[split]) for split in ("val", "test")):
        return None
    data.samples["test"] = data.samples["train"]
    count = len(data.samples["test"])
    print_text(f"note: {data.root} has no folders of splits: all {count:,} images are measured")
    return data


def _dataset_of(
    config: EvaluateConfig, model: ImageModel, overrides: Sequence[str]
) -> tuple[DatasetConfig, str | None, int]:
    """Return data set, folder and seed: the checkpoint's own, where the command line doesn't state another.

    Of the same data set the splits must be the same too, or a checkpoint is tested on what it was trained on: only the
    settings that were typed differ.
    """
    trained, chosen = model.metadata.config, config.dataset
    if trained is None:
        if chosen is None:
            raise CheckpointError(f"{config.checkpoint}: it names no data set; pass dataset= and data_dir=")
        return chosen, config.data_dir, 0
    own, seed = DatasetConfig.from_dict(trained["dataset"]), int(trained["seed"])
    if own.num_workers:  # chosen for the machine that trained
        own = replace(own, num_workers=min(own.num_workers, available_cpus()))
    if chosen is not None and chosen.name != own.name:
        return chosen, config.data_dir, seed
    keys = [typed.lstrip("+").partition("=")[0].removeprefix("dataset.").partition(".")[0] for typed in overrides]
    changes = {key: getattr(chosen, key) for key in keys if chosen and key in DatasetConfig.field_names()}
    return replace(own, **changes), config.data_dir or model.metadata.data.root, seed


def _difference(ours: tuple[str, ...], known: tuple[str, ...], checkpoint: str, root: Path) -> str:
    new, gone = sorted(set(ours) - set(known)), sorted(set(known) - set(ours))
    parts = [
        f"only in the data: {', '.join(new[:5])}" * bool(new),
        f"only in the checkpoint: {', '.join(gone[:5])}" * bool(gone),
    ]
    difference = "; ".join(part for part in parts if part) or "the same names in another order"
    return (
        f"{root} has {len(ours)} classes and {checkpoint} {len(known)}, and they differ ({difference}); pass the data "
        "it was trained on, or choose with dataset=<name> dataset.classes=[...]"
    )
