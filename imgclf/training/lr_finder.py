"""Before a run or a sweep: which learning rate to begin with, and which batch size this machine likes.

Learning rate: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017, section 3.3.
"""

import csv
import io
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from imgclf.config import RunConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import Batch
from imgclf.data.pixel_cache import free_memory
from imgclf.errors import ConfigError, RunError
from imgclf.files.atomic import write_atomically
from imgclf.report.summary import silence_library_logs
from imgclf.signals import Signals
from imgclf.training.build import build_classifier, build_data, build_trainer
from imgclf.training.classifier import ImageClassifier
from imgclf.training.feature_cache import attach_features

__all__ = ["find"]

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 120
SMOOTHING, BLOWN_UP = 0.9, 4.0  # how much of the mean stays, and how far above its least it may rise
TURNS, ENOUGH = 5, 0.95  # steps timed a batch size, and the share of the best speed that does


def find(settings: Mapping[str, Any], folder: Path) -> None:
    """Do what `settings["find"]` says: "lr" or "batch_size"; write a plot and a table into `folder`, and print the suggestion.

    The network is the one that a run with these settings begins with; nothing of it is kept. Raises `ConfigError` for
    another word, `RunError` where nothing can be suggested.
    """
    if settings["find"] not in ("lr", "batch_size"):
        raise ConfigError(f"find={settings['find']!r}: expected lr or batch_size")
    silence_library_logs()
    data = build_data(settings)
    classifier = build_classifier(settings, data)
    device = build_trainer(settings, folder, data, Signals()).strategy.root_device
    attach_features(RunConfig.from_dict(settings), classifier, data, device, None)
    classifier.to(device).train()
    classifier.sums.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    (_find_rate if settings["find"] == "lr" else _find_batch_size)(classifier, data, folder)


def _find_rate(classifier: ImageClassifier, data: ImageDataModule, folder: Path) -> None:
    """One step a learning rate, each larger than the last, until the loss blows up; the steepest descent is suggested."""
    from imgclf.report.search import plot_rates  # here, because it loads matplotlib

    optimizer: Any = classifier.configure_optimizers()
    asked = [group["lr"] for group in optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    smooth: list[float] = []
    mean = 0.0
    for number, batch in zip(range(STEPS), _batches(data, classifier.device), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        for group, wanted in zip(optimizer.param_groups, asked, strict=True):
            group["lr"] = rate * wanted / max(asked)  # a backbone's stays as much smaller than the head's
        loss = _step(classifier, optimizer, batch, number)
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smooth.append(mean / (1 - SMOOTHING ** (number + 1)))
        if smooth[-1] > BLOWN_UP * min(smooth):
            break
    chosen = _steepest(rates, smooth)
    _table(folder / "lr_find.csv", ("lr", "loss", "smoothed"), zip(rates, losses, smooth, strict=True))
    plot_rates(rates, losses, smooth, chosen, folder / "lr_find.png")
    print(
        f"optimizer.lr={chosen:.2g} is where the loss falls fastest ({len(rates)} steps, {rates[0]:.0e} to {rates[-1]:.2g})"
    )
    print(f"lr_find.png and lr_find.csv are in {folder}", flush=True)


def _steepest(rates: list[float], smooth: list[float]) -> float:
    """The rate where the smoothed loss falls fastest over the logarithm of the rate; of the steps before its least."""
    least = smooth.index(min(smooth)) if smooth else 0
    if least < 10:
        raise RunError("find=lr: the loss didn't fall at any learning rate; look at the data and the labels, or train longer "
                       "than a few batches by hand")  # fmt: skip
    falls = [smooth[i - 3] - smooth[i + 3] for i in range(5, min(least, len(smooth) - 4) + 1)]
    return rates[5 + falls.index(max(falls))]


def _find_batch_size(classifier: ImageClassifier, data: ImageDataModule, folder: Path) -> None:
    """Training steps at 8, 16, 32, ... pictures until memory or pictures run out; the smallest that is near the fastest."""
    from imgclf.report.search import plot_batch_sizes  # here, because it loads matplotlib

    rows: list[tuple[int, float, float]] = []
    optimizer = classifier.configure_optimizers()
    size = 8
    while size <= len(data.samples["train"]):
        if len(rows) > 1 and _would_not_fit(rows, classifier.device):
            break
        data.batch_size = size
        try:
            seconds = []
            for number, batch in zip(range(TURNS + 2), _batches(data, classifier.device), strict=False):
                if len(batch.targets) < size:
                    continue  # an epoch's last
                began = time.perf_counter()
                _step(classifier, optimizer, batch, number)
                seconds.append(time.perf_counter() - began)
        except torch.cuda.OutOfMemoryError:
            break
        rows.append((size, size / median(seconds[2:] or seconds), _gigabytes(classifier.device)))
        print(f"batch size {size:>5}: {rows[-1][1]:,.0f} pictures a second, {rows[-1][2]:.2f} GB", flush=True)
        size *= 2
    if not rows:
        raise RunError(
            f"find=batch_size: {len(data.samples['train'])} training pictures are too few; expected 8 at least"
        )
    fastest = max(speed for _, speed, _ in rows)
    chosen = next(size for size, speed, _ in rows if speed >= ENOUGH * fastest)
    _table(folder / "batch_size.csv", ("batch_size", "pictures_per_second", "gigabytes"), iter(rows))
    sizes, speeds, gigabytes = zip(*rows, strict=True)
    plot_batch_sizes(sizes, speeds, gigabytes, chosen, folder / "batch_size.png")
    print(f"dataset.batch_size={chosen} is the smallest within {1 - ENOUGH:.0%} of the fastest; another batch size wants another "
          "learning rate (find=lr)")  # fmt: skip
    print(f"batch_size.png and batch_size.csv are in {folder}", flush=True)


def _batches(data: ImageDataModule, device: torch.device) -> Iterator[Batch]:
    """Training batches without end."""
    loader = data.loader("train", shuffle="epoch", training=True)
    epoch = 0
    try:
        while True:
            loader.set_epoch(epoch)
            for batch in loader:
                yield Batch._make(part if part is None else part.to(device) for part in batch)
            epoch += 1
    finally:
        loader.close()


def _step(classifier: ImageClassifier, optimizer: Any, batch: Batch, number: int) -> float:
    """One update; the loss before it."""
    loss: Any = classifier.training_step(batch, number)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _would_not_fit(rows: list[tuple[int, float, float]], device: torch.device) -> bool:
    """Whether twice the last batch would take more than is free, by how memory grew so far; a GPU says so by itself."""
    return device.type == "cpu" and 2e9 * (rows[-1][2] - rows[-2][2]) > 0.8 * free_memory()


def _gigabytes(device: torch.device) -> float:
    """The most that was held so far: of the GPU's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "linux" else 1e9
    )  # kB, or bytes


def _table(path: Path, names: tuple[str, ...], rows: Iterator[tuple[float, ...]]) -> None:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    write_atomically(path, lines.getvalue())
