"""What a report says in words: how its numbers were measured, on which data, where and with which settings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from imgclf.config import AugmentConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.evaluation import Evaluation
from imgclf.schema import Settings

__all__ = ["data_rows", "environment_rows", "measuring_notes"]

_LISTED = 100  # values of a setting that are named


def measuring_notes(
    network: nn.Module,
    evaluations: Mapping[str, Evaluation],
    config: Mapping[str, object],
    epochs: int,
    best_epoch: int | None,
    with_train: bool,
) -> Iterator[str]:
    """Yield how the numbers of a report were measured: sentences that are true of this run.

    `config` are its settings, `with_train` whether there are metrics of the training split; the rest is as in `ReportInputs`.
    """
    if with_train:
        augment, mixing = _part(_part(config, "dataset"), "augment"), _part(config, "mixing")
        trained = _trained_modules(network)
        conditions = (
            ("augmented images", AugmentConfig.from_dict(augment) != AugmentConfig()),
            ("mixed images", any(mixing.values())),
            ("dropout", any(isinstance(module, nn.Dropout) and module.p > 0 for module in trained)),
        )
        how = "".join(f", with {name}" for name, holds in conditions if holds)
        yield f"train: measured during the last epoch, while the weights changed{how}."
    names = " and ".join(evaluations)
    if best_epoch and "val" in evaluations:
        monitor = _part(config, "checkpoint").get("monitor", "val_accuracy")
        yield f"{names}: measured with the weights of epoch {best_epoch} of {epochs}, the best by {monitor}."
    elif best_epoch:
        yield f"{names}: measured with the weights of the last epoch; without validation none is known to be better."
    if config.get("ema_decay"):
        yield f"{names}: measured with the moving average of the weights."
    for name, evaluation in evaluations.items():
        if len(evaluation.order) < len(evaluation.samples):
            yield f"{name}: measured on a sample of {len(evaluation.order):,} of its {len(evaluation.samples):,} images."
    if any("temperature" in evaluation.metrics for evaluation in evaluations.values()):
        yield "The probabilities on this page are those with temperature, which was fitted on validation."


def _trained_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are in training mode while the network is trained: frozen ones stay in eval mode."""
    for module in network.children():
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield from module.modules()


def _part(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a group of the settings; empty where there is none."""
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}


def data_rows(data: ImageDataModule) -> list[list[str]]:
    """Return (name, value) of what was read: its folder, its splits and their augmentation."""
    counts = [[name, f"{len(samples):,} images"] for name, samples in data.samples.items()]
    augmentation = format_settings(data.augment) if data.augment else "none"
    notes = [["notes", "; ".join(data.notes)]] if data.notes else []
    return [["data set", data.name], ["folder", str(data.root)], *counts, ["augmentation", augmentation], *notes]


def environment_rows(environment: Mapping[str, Any], config: Mapping[str, object]) -> list[list[str]]:
    """Return (name, value) of the command, the machine, the versions and the main settings; see `describe_environment`."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in environment["seconds"].items())
    processor = f"{environment['processor']}, {environment['cores']} cores, {environment['torch_threads']} threads"
    names = ("optimizer", "scheduler", "loss", "trainer", "seed")
    return [
        ["command", environment["command"]],
        ["time", seconds],
        ["processor", f"{processor}; GPU: {', '.join(environment['gpus']) or 'none'}"],
        ["system", f"{environment['platform']}, Python {environment['python']}"],
        ["versions", versions],
        ["imgclf commit", environment["git_commit"] or "installed from a package"],
        *([name, format_settings(config[name])] for name in names if name in config),
    ]


def format_settings(value: object) -> str:
    """Return settings in one line, without empty ones: "name adamw, lr 0.001"."""
    if isinstance(value, Settings):
        value = value.to_dict()
    if isinstance(value, Mapping):
        items: Iterable[tuple[str, object]] = value.items()
        return ", ".join(f"{key} {format_settings(inner)}" for key, inner in items if inner not in (None, {}, [], ""))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and len(value) > _LISTED:
        return f"[{', '.join(map(str, value[:3]))} and {len(value) - 3:,} more]"
    return str(value) if value is not None else ""
