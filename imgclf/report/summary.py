"""What a run prints: its data, its classes, its network and its results."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from imgclf.console import make_console, print_text
from imgclf.data.datamodule import SPLITS, ImageDataModule
from imgclf.jupyter import in_notebook
from imgclf.models.network import Network, count_parameters, layer_table
from imgclf.names import printable
from imgclf.preprocess import Preprocess
from imgclf.report.tables import per_class_table

__all__ = ["network_rows", "print_data", "print_metrics", "print_network", "print_per_class"]


def print_data(data: ImageDataModule) -> None:
    """Print counts, notes and the classes with their indices."""
    console = make_console()
    counts = ", ".join(f"{len(data.samples[split]):,} {split}" for split in SPLITS)
    lines = [f"{data.name}: {counts} images; {len(data.classes)} classes", f"data folder: {data.root}"]
    lines += [*(f"note: {note}" for note in data.notes), f"classes: {_first(data.classes)}"]
    for number, line in enumerate(lines):
        console.print(Text(printable(line)), soft_wrap=number == 1)  # a path is never broken


def print_network(network: Network, preprocess: Preprocess) -> None:
    """Print the network in one line, and outside of notebooks a table of its parts with their parameters."""
    size, shape = preprocess.size, " x ".join(map(str, network.backbone.shape))
    line = f"{network.backbone.name} on {size} x {size} ({preprocess.resize}): features {shape}"
    if in_notebook():
        trainable, total = count_parameters(network)
        print_text(f"{line}, {total:,} parameters, {trainable:,} of them trainable")
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    header, *rows = network_rows(network, preprocess)
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row), end_section=row is rows[-2])
    console = make_console()
    console.print(Text(line))
    console.print(table)


def network_rows(network: Network, preprocess: Preprocess) -> list[list[str]]:
    """Return the network's table, as the console and report.html show it: a header, a row for each part, and the sums."""
    parts = layer_table(network, preprocess.channels, preprocess.size)
    rows = [
        [part.name, part.kind, " x ".join(map(str, part.output)), f"{part.trainable:,}", f"{part.frozen:,}"]
        for part in parts
    ]
    trainable, total = count_parameters(network)
    sums = ["all", f"{total:,} parameters", "", f"{trainable:,}", f"{total - trainable:,}"]
    return [["part", "kind", "output", "trainable", "frozen"], *rows, sums]


def print_per_class(split: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Print precision, recall, F1 and support of each class; not in a notebook, where the report shows them."""
    if in_notebook():
        return
    console = make_console()
    console.print(Text(f"{split}, by class"))
    console.print(per_class_table(classes, matrix))


def print_metrics(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table with one row per split, and a line for each whose probabilities are calibrated."""
    has_top5 = any("top5" in values for values in metrics.values())
    heading = f"{'':6}{'correct':>20}{'accuracy':>11}" + f"{'top-5':>10}" * has_top5
    print_text(f"{heading}{'macro F1':>11}{'loss':>10}")
    for split, values in metrics.items():
        correct = f"{values['correct']:,} of {values['count']:,}"
        line = f"{split:<6}{correct:>20}{values['accuracy']:>11.2%}"
        if has_top5:
            line += f"{values['top5']:>10.2%}" if "top5" in values else f"{'-':>10}"
        print_text(f"{line}{values['macro_f1']:>11.4f}{values['loss']:>10.4f}")
    for split, values in metrics.items():
        if "temperature" in values:
            losses = f"temperature {values['temperature']:.3f}: loss {values['calibrated_loss']:.4f}"
            errors = f"calibration error {values['ece']:.2%} -> {values['calibrated_ece']:.2%}"
            print_text(f"{split:<5} at {losses}, {errors}")


def _first(names: Sequence[str], most: int = 150) -> str:
    """Return the names that `most` characters hold, and the number of the others."""
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > most:
        shown.pop()
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else "")
