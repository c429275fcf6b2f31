"""Held-out samples and subsamples: sizes, seeds and order."""

import numpy as np
import pytest

from imgclf.data.samples import Samples, hold_out, natural_key, subsample
from imgclf.errors import ConfigError


def fabricate(*counts: int) -> Samples:
    """Return samples named like video frames, `A1.jpg` ..., in an order that a file system may give."""
    items = tuple(
        f"{chr(65 + target)}{number}.jpg" for target, count in enumerate(counts) for number in range(1, count + 1)
    )
    targets = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(1).permutation(len(items))
    return Samples(items, targets.astype(np.int64), tuple(chr(65 + i) for i in range(len(counts)))).take(order)


@pytest.mark.parametrize("method", ["random", "blocks"])
def test_hold_out_takes_its_share_of_every_class_and_loses_no_sample(method: str) -> None:
    samples = fabricate(3000, 300, 25)
    kept, held = hold_out(samples, 0.1, seed=3, method=method)
    assert held.counts().tolist() == [300, 30, 3]  # 2.5 images are rounded to 3
    assert sorted(kept.items + held.items) == sorted(samples.items)
    again = hold_out(samples, 0.1, seed=3, method=method)[1]
    assert again.items == held.items
    assert hold_out(samples, 0.1, seed=4, method=method)[1].items != held.items


def test_blocks_are_consecutive_samples() -> None:
    _, held = hold_out(fabricate(3000, 300), 0.1, seed=0, method="blocks")
    for target, length in ((0, 300), (1, 30)):
        numbers = sorted(int(item[1:-4]) for item, t in zip(held.items, held.targets, strict=True) if t == target)
        assert numbers == list(range(numbers[0], numbers[0] + length))


def test_hold_out_leaves_at_least_one_training_sample_per_class() -> None:
    kept, held = hold_out(fabricate(1, 2, 3), 0.2, seed=0)
    assert kept.counts().tolist() == [1, 1, 2]
    assert held.counts().tolist() == [0, 1, 1]
    assert len(hold_out(fabricate(5), 0.0, seed=0)[1]) == 0


def test_subsamples_are_stratified_and_nested() -> None:
    samples = fabricate(100, 50, 3)
    parts = [subsample(samples, fraction, seed=5) for fraction in (0.1, 0.3, 1.0)]
    assert [part.counts().tolist() for part in parts] == [[10, 5, 1], [30, 15, 1], [100, 50, 3]]
    assert set(parts[0].items) < set(parts[1].items) < set(parts[2].items)
    assert subsample(samples, 0.1, seed=6).items != parts[0].items


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_fraction_outside_its_range_raises_config_error(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.fraction"):
        subsample(fabricate(4), fraction, seed=0)


def test_unknown_method_or_share_of_hold_out_raises_config_error() -> None:
    with pytest.raises(ConfigError, match="random or blocks"):
        hold_out(fabricate(4), 0.1, seed=0, method="sorted")
    with pytest.raises(ConfigError, match="of at least 0 and below 1"):
        hold_out(fabricate(4), 1.0, seed=0)


def test_natural_key_sorts_numbers_by_value() -> None:
    names = ["A10.jpg", "A2.jpg", "A1.jpg", "B1.jpg"]
    assert sorted(names, key=natural_key) == ["A1.jpg", "A2.jpg", "A10.jpg", "B1.jpg"]
