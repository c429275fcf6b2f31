"""What a run prints: its data, its classes, its network and its results."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from imgclf.console import make_console
from imgclf.data.datamodule import SPLITS, ImageDataModule
from imgclf.models.network import Network, count_parameters
from imgclf.preprocess import Preprocess
from imgclf.report.tables import per_class_table

__all__ = ["print_data", "print_metrics", "print_network", "print_per_class"]


def print_data(data: ImageDataModule) -> None:
    """Print counts, notes and the classes with their indices."""
    console = make_console()
    counts = ", ".join(f"{len(data.samples[split]):,} {split}" for split in SPLITS)
    console.print(Text(f"{data.name}: {counts}; {len(data.classes)} classes; from {data.root}"))
    for note in data.notes:
        console.print(Text(f"note: {note}"))
    numbered = ", ".join(f"{index} {name}" for index, name in enumerate(data.classes))
    console.print(Text(f"classes: {numbered}"))


def print_network(network: Network, preprocess: Preprocess) -> None:
    """Print a table of the network's parts with their parameters, trainable and frozen."""
    table = Table(title=None)
    table.add_column("part")
    table.add_column("kind")
    for column in ("trainable", "frozen"):
        table.add_column(column, justify="right")
    parts = [(f"backbone.{name}", part) for name, part in network.backbone.network.named_children()]
    parts += [(f"head.{name}", part) for name, part in network.head.named_children()]
    for name, part in parts:
        trainable, total = count_parameters(part)
        if total:
            table.add_row(Text(name), type(part).__name__, f"{trainable:,}", f"{total - trainable:,}")
    trainable, total = count_parameters(network)
    table.add_section()
    table.add_row("all", f"{total:,} parameters", f"{trainable:,}", f"{total - trainable:,}")
    size, shape = preprocess.size, " x ".join(map(str, network.backbone.shape))
    console = make_console()
    console.print(Text(f"{network.backbone.name} on {size} x {size} ({preprocess.resize}): features {shape}"))
    console.print(table)


def print_per_class(split: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Print precision, recall, F1 and support of each class."""
    console = make_console()
    console.print(Text(f"{split}, by class:"))
    console.print(per_class_table(classes, matrix))


def print_metrics(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per split, and one more where its probabilities are calibrated."""
    for split, values in metrics.items():
        if "temperature" in values:
            losses = f"temperature {values['temperature']:.3f}: loss {values['calibrated_loss']:.4f}"
            errors = f"calibration error {values['ece']:.2%} -> {values['calibrated_ece']:.2%}"
            print(f"{split:<5} with {losses}, {errors}")
        accuracy = f"{values['correct']} of {values['count']}, accuracy {values['accuracy']:.2%}"
        top5 = f"top-5 {values['top5']:.2%}, " if "top5" in values else ""
        print(f"{split:<5} {accuracy}, {top5}macro F1 {values['macro_f1']:.4f}, loss {values['loss']:.4f}")
