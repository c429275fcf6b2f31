"""What a run says on the console: its data, its classes, its network and its results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from imgclf.console import make_console
from imgclf.data.datamodule import SPLITS, ImageDataModule
from imgclf.models.network import count_parameters
from imgclf.report.tables import correct_phrase, per_class_table
from imgclf.training.classifier import ImageClassifier

__all__ = ["print_data", "print_metrics", "print_network", "print_per_class"]


def print_data(data: ImageDataModule) -> None:
    """Print counts, notes and the classes with their indices."""
    console = make_console(120)
    counts = ", ".join(f"{len(data.samples[split]):,} {split}" for split in SPLITS)
    console.print(Text(f"{data.name}: {counts}; {len(data.classes)} classes; from {data.root}"))
    for note in data.notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(_numbered(data.classes)))


def print_network(classifier: ImageClassifier) -> None:
    """Print a table of the network's parts with their parameters, trainable and frozen."""
    network, model = classifier.network, classifier.model_config
    table = Table(title=None)
    table.add_column("part")
    table.add_column("kind")
    for column in ("trainable", "frozen"):
        table.add_column(column, justify="right")
    children = [(f"backbone.{name}", part) for name, part in network.backbone.network.named_children()]
    for name, part in [*children, *((f"head.{name}", part) for name, part in network.head.named_children())]:
        trainable, total = count_parameters(part)
        if total:
            table.add_row(Text(name), type(part).__name__, f"{trainable:,}", f"{total - trainable:,}")
    trainable, total = count_parameters(network)
    table.add_section()
    table.add_row("all", f"{total:,} parameters", f"{trainable:,}", f"{total - trainable:,}")
    size, shape = classifier.preprocess.size, " x ".join(map(str, network.backbone.shape))
    console = make_console(120)
    console.print(Text(f"{model.backbone} on {size} x {size} ({classifier.preprocess.resize}): features {shape}"))
    console.print(table)


def print_per_class(split: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Print precision, recall, F1 and support of each class."""
    console = make_console(120)
    console.print(Text(f"{split}, a class:"))
    console.print(per_class_table(classes, matrix))


def print_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line a split."""
    for split, values in metrics.items():
        if "temperature" in values:
            print(f"{split:<5} with temperature {values['temperature']:.3f}: loss {values['calibrated_loss']:.4f}, calibration "
                  f"error {values['ece']:.2%} -> {values['calibrated_ece']:.2%}")  # fmt: skip
        print(f"{split:<5} {correct_phrase(values['correct'], values['count'])}, accuracy {values['accuracy']:.2%}, "
              f"top-5 {values['top5']:.2%}, macro F1 {values['macro_f1']:.4f}, loss {values['loss']:.4f}")  # fmt: skip


def _numbered(classes: Sequence[str]) -> str:
    return "classes: " + ", ".join(f"{index} {name}" for index, name in enumerate(classes))
