"""Suggestions before a run or a sweep: the learning rate, and the batch size that is fast on this machine.

Learning rate: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017, section 3.3.
"""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from lightning_fabric.utilities import move_data_to_device

from imgclf.config import RunConfig
from imgclf.console import print_text, silence_library_logs
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import Batch
from imgclf.data.pixel_cache import free_memory
from imgclf.errors import RunError
from imgclf.report import write_csv
from imgclf.signals import Signals
from imgclf.training.build import build_classifier, build_trainer, check_names, data_of
from imgclf.training.classifier import ImageClassifier
from imgclf.training.feature_cache import attach_features

__all__ = ["find"]

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 120
SMOOTHING, BLOWN_UP = 0.9, 4.0  # share of the mean that stays, and how far above its minimum it may rise
TURNS, ENOUGH = 5, 0.95  # steps timed per batch size, and the share of the best speed that suffices


def find(config: RunConfig, folder: Path) -> None:
    """Search for `config.find` ("lr" or "batch_size"); write a plot and a table into `folder`, and print the suggestion.

    The network is the one that a run with these settings begins with; it is not saved. Raises `RunError` where nothing can
    be suggested.
    """
    silence_library_logs()
    check_names(config)
    data = data_of(config)
    classifier = build_classifier(config, data)
    device = build_trainer(config, folder, data, Signals()).strategy.root_device
    data.connect(classifier.preprocess, attach_features(config, classifier, data, device, None))
    classifier.to(device).train()
    folder.mkdir(parents=True, exist_ok=True)
    (_find_rate if config.find == "lr" else _find_batch_size)(classifier, data, folder)


def _find_rate(classifier: ImageClassifier, data: ImageDataModule, folder: Path) -> None:
    """Take one step per learning rate, each larger than the last, until the loss blows up; suggest the steepest descent."""
    from imgclf.figures.plots import plot_rates  # here, because it loads matplotlib

    optimizer = classifier.configure_optimizers()
    initial = [group["lr"] for group in optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    smooth: list[float] = []
    mean = 0.0
    for number, batch in zip(range(STEPS), _batches(data, classifier.device), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = rate * lr / max(initial)  # the ratio of the backbone's rate to the head's stays
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
    rows = [[f"{value:.6g}" for value in row] for row in zip(rates, losses, smooth, strict=True)]
    write_csv(folder / "lr_find.csv", ["lr", "loss", "smoothed"], rows)
    plot_rates(rates, losses, smooth, chosen, folder / "lr_find.png")
    steps = f"{len(rates)} steps, {rates[0]:.0e} to {rates[-1]:.2g}"
    print_text(f"optimizer.lr={chosen:.2g} is where the loss falls fastest ({steps})")
    print_text(f"lr_find.png and lr_find.csv are in {folder}")


def _steepest(rates: list[float], smooth: list[float]) -> float:
    """Return the rate where the smoothed loss falls fastest over the logarithm of the rate, before its minimum."""
    least = smooth.index(min(smooth)) if smooth else 0
    if least < 10:
        raise RunError("find=lr: the loss never fell; check the data and the labels, or try another dataset.batch_size")
    falls = [smooth[i - 3] - smooth[i + 3] for i in range(5, min(least, len(smooth) - 4) + 1)]
    return rates[5 + falls.index(max(falls))]


def _find_batch_size(classifier: ImageClassifier, data: ImageDataModule, folder: Path) -> None:
    """Time training steps at 8, 16, 32, ... images until memory or images run out; suggest the smallest near the fastest."""
    from imgclf.figures.plots import plot_batch_sizes  # here, because it loads matplotlib

    rows: list[tuple[int, float, float]] = []  # batch size, images per second, gigabytes
    optimizer = classifier.configure_optimizers()
    size = 8
    while size <= len(data.samples["train"]) and not _would_not_fit(rows, classifier.device):
        data.batch_size = size
        try:
            seconds = []
            for number, batch in zip(range(TURNS + 2), _batches(data, classifier.device), strict=False):
                if len(batch.targets) < size:
                    continue  # the last one of an epoch
                began = time.perf_counter()
                _step(classifier, optimizer, batch, number)
                seconds.append(time.perf_counter() - began)
        except torch.cuda.OutOfMemoryError:
            break
        rows.append((size, size / median(seconds[2:] or seconds), _gigabytes(classifier.device)))
        print_text(f"batch size {size:>5}: {rows[-1][1]:,.0f} images per second, {rows[-1][2]:.2f} GB")
        size *= 2
    if not rows:
        count = len(data.samples["train"])
        raise RunError(f"find=batch_size: {count} training images are too few; expected at least 8")
    fastest = max(speed for _, speed, _ in rows)
    chosen = next(size for size, speed, _ in rows if speed >= ENOUGH * fastest)
    table = [[f"{value:.6g}" for value in row] for row in rows]
    write_csv(folder / "batch_size.csv", ["batch_size", "images_per_second", "gigabytes"], table)
    sizes, speeds, gigabytes = zip(*rows, strict=True)
    plot_batch_sizes(sizes, speeds, gigabytes, chosen, folder / "batch_size.png")
    print_text(
        f"dataset.batch_size={chosen} is the smallest within {1 - ENOUGH:.0%} of the fastest; another batch size needs "
        "another learning rate (find=lr)"
    )
    print_text(f"batch_size.png and batch_size.csv are in {folder}")


def _batches(data: ImageDataModule, device: torch.device) -> Iterator[Batch]:
    """Yield training batches without end."""
    loader = data.loader("train", shuffle="epoch", training=True)
    epoch = 0
    try:
        while True:
            loader.set_epoch(epoch)
            for batch in loader:
                yield move_data_to_device(batch, device)
            epoch += 1
    finally:
        loader.close()


def _step(classifier: ImageClassifier, optimizer: torch.optim.Optimizer, batch: Batch, number: int) -> float:
    """Make one update; return the loss before it."""
    loss = classifier.training_step(batch, number)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _would_not_fit(rows: list[tuple[int, float, float]], device: torch.device) -> bool:
    """Return whether twice the last batch needs more memory than is free, by its growth so far; a GPU reports it itself."""
    return device.type == "cpu" and len(rows) > 1 and 2e9 * (rows[-1][2] - rows[-2][2]) > 0.8 * free_memory()


def _gigabytes(device: torch.device) -> float:
    """Return the peak so far: of the GPU's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1e6 if sys.platform == "linux" else 1e9  # kB, or bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
