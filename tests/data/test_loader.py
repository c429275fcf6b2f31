"""Batches: their order, any number of DataLoader workers, and resuming within an epoch."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgclf.data.augment import Augment
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import Batch, Loader, LoaderOptions, batch_bounds
from imgclf.data.samples import Samples
from imgclf.errors import ConfigError
from imgclf.preprocess import Preprocess

SMALL = Preprocess(size=16)


def loader(colours: Path, **options: object) -> Loader:
    data = ImageDataModule(colours)
    data.setup()
    augment: Any = options.pop("augment", Augment(20, 0.1))
    chosen: dict[str, Any] = {"batch_size": 5, "seed": 3, "shuffle": "epoch", **options}
    return Loader(data.samples["train"], SMALL, LoaderOptions(**chosen), augment=augment)


def equal(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    parts = [(a, b) for one, two in pairs for a, b in zip(one[:3], two[:3], strict=True)]
    return bool(pairs) and all(a is not None and b is not None and torch.equal(a, b) for a, b in parts)


def test_batch_is_uint8_channels_last_with_targets_and_indices(colours: Path) -> None:
    batches = list(loader(colours, shuffle="never", augment=None))
    assert [len(batch.targets) for batch in batches] == [5] * 7 + [1]
    assert batches[0].images.shape == (5, 3, 16, 16)
    assert batches[0].images.dtype == torch.uint8
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(36))
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0] * 12 + [1] * 12 + [2] * 12


def test_each_epoch_has_its_own_order_of_all_samples(colours: Path) -> None:
    source = loader(colours)
    orders = []
    for epoch in (0, 1):
        source.set_epoch(epoch)
        orders.append(torch.cat([batch.indices for batch in source]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(36))
    assert orders[0] != orders[1]
    once = loader(colours, shuffle="once")
    first = torch.cat([batch.indices for batch in once]).tolist()
    once.set_epoch(1)
    assert first == torch.cat([batch.indices for batch in once]).tolist() != list(range(36))


def test_dataloader_workers_change_no_batch(colours: Path) -> None:
    plain, parallel = loader(colours), loader(colours, num_workers=2)
    for epoch in (0, 1, 2):
        plain.set_epoch(epoch)
        parallel.set_epoch(epoch)
        assert equal(plain, parallel)


def test_single_last_image_joins_the_previous_training_batch(colours: Path) -> None:
    sizes = [len(batch.targets) for batch in loader(colours, batch_size=7)]
    assert sizes == [7, 7, 7, 7, 8]  # 36 = 5 * 7 + 1
    assert len(loader(colours, batch_size=7)) == 5
    assert [len(batch.targets) for batch in loader(colours, batch_size=7, shuffle="never")] == [7, 7, 7, 7, 7, 1]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_no_process_gets_a_single_image_that_the_batch_size_does_not_ask_for(processes: int) -> None:
    for count in range(12, 60):
        options = LoaderOptions(batch_size=6, shuffle="epoch", world_size=processes)
        bounds = batch_bounds(count, options)
        sizes = [
            len(range(rank, last - first, processes)) for first, last in pairwise(bounds) for rank in range(processes)
        ]
        assert sum(sizes) == count and min(sizes) >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_loader_yields_the_remaining_batches(colours: Path, workers: int) -> None:
    whole = loader(colours)
    whole.set_epoch(1)
    expected = list(whole)
    for position in (1, 4, 6) if workers else range(1, 7):
        stopped = loader(colours)
        stopped.set_epoch(1)
        iterator = iter(stopped)
        for _ in range(position):
            next(iterator)
        resumed = loader(colours, num_workers=workers)
        resumed.load_state_dict(stopped.state_dict())
        resumed.set_epoch(1)  # as Lightning does
        assert equal(list(resumed), expected[position:])
        resumed.set_epoch(2)
        assert len(list(resumed)) == len(whole)  # the next epoch is complete


def test_processes_split_each_batch_and_refuse_one_smaller_than_their_number(colours: Path) -> None:
    whole = torch.cat([batch.indices for batch in loader(colours)])
    parts = [torch.cat([batch.indices for batch in loader(colours, rank=rank, world_size=2)]) for rank in (0, 1)]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    with pytest.raises(ConfigError, match="expected one image per process, 8"):
        loader(colours, world_size=8)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (28, 3), (40, 1), (40, 3)])
def test_images_in_memory_are_resized_and_get_the_channels(size: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), dtype=np.uint8)
    samples = Samples(tuple(map(str, range(6))), np.zeros(6, np.int64), ("a", "b"), pixels)
    (batch,) = Loader(samples, Preprocess(size=size).with_channels(channels), LoaderOptions(batch_size=8))
    assert batch.images.shape == (6, channels, size, size)
    if size == 28:
        assert np.array_equal(batch.images[:, 0].numpy(), pixels[..., 0])
