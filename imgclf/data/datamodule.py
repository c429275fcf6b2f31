"""From a folder to batches: the one `LightningDataModule`, of which each known data set is a few lines of facts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from imgclf.data.augment import Augment
from imgclf.data.exclusion import read_exclusion
from imgclf.data.labelling import absent_classes, class_names, label
from imgclf.data.layouts import SplitFiles, find_split, find_train
from imgclf.data.loader import Features, Loader
from imgclf.data.location import missing
from imgclf.data.manifest import fingerprint
from imgclf.data.pixel_cache import CacheConfig, Cached, pixel_cache
from imgclf.data.samples import Samples, hold_out, subsample
from imgclf.errors import ConfigError, DataError
from imgclf.images.decode import decode
from imgclf.preprocess import Preprocess
from imgclf.threads import available_cpus

__all__ = ["SPLITS", "ImageDataModule"]

SPLITS = ("train", "val", "test")


class FeatureSource(Protocol):
    """Whoever computes features in place of pictures."""

    def of(self, loader: Loader, split: str, root: Path, name: str, keeping: CacheConfig) -> Features | None:
        """Those of the samples of `loader`, kept as `keeping` says; None where there are none."""


class ImageDataModule(LightningDataModule):
    """Pictures below `root` as batches of uint8 pixels, split and labelled; the training set defines the classes.

    The class attributes are the facts of a data set; a subclass, or the arguments of the same name, states its own.
    `splits`: the layout of train, val and test (see `imgclf.data.layouts`); a split without a layout, or not found, is
    held out from train: first `test_fraction` of each class for test, then `val_fraction` of the rest for validation, by
    `holdout` ("random", "blocks") and `split_seed`. `classes`: the names to use, None for all that are found.
    `fraction`: how much of train is used, after the hold-outs. `batch_size` is global. `num_workers` None: chosen by
    the number of cores; it never changes a result. `timeout_seconds`: how long a worker may take over a batch. `preprocess`
    may be replaced until the first loader is made. `views`: augmentation begins anew after so many epochs. `cache`: where
    decoded training and validation pictures are kept, "disk", "ram" or "off", and `cache_gb`, how much of them. `flips`:
    the mirror images ("horizontal", "vertical") that show the same class.
    `exclude`: the path of a check.json; what it names is left out, after the splits are cut.
    `notes` holds, after `setup`, what a user should know, a line each.
    Raises `DataError` and `ConfigError` from `setup`, never from the constructor.
    """

    name: str = "custom"
    handle: str | None = None  # on Kaggle
    licence: str | None = None
    splits: Mapping[str, Mapping[str, Any]] = {
        "train": {"kind": "folders", "names": ["train", "training", "."]},
        "val": {"kind": "folders", "names": ["valid", "val", "validation"]},
        "test": {"kind": "folders", "names": ["test", "testing"]},
    }
    expected: Mapping[int, tuple[int, int, int]] = {}  # number of classes -> pictures in train, val, test
    holdout: str = "random"
    flips: Sequence[str] = ()

    def __init__(self, root: str | Path, *, name: str | None = None,
                 splits: Mapping[str, Mapping[str, Any]] | None = None,
                 preprocess: Preprocess | None = None, classes: Sequence[str] | None = None, batch_size: int = 32,
                 augment: Mapping[str, Any] | None = None, augment_val: bool = False, holdout: str | None = None,
                 val_fraction: float = 0.2, test_fraction: float = 0.1, fraction: float = 1.0, seed: int = 0,
                 split_seed: int = 0, views: int | None = None, num_workers: int | None = None,
                 timeout_seconds: float = 300, exclude: str | None = None, flips: Sequence[str] | None = None,
                 cache: str = "disk", cache_gb: float = 32.0, check_counts: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.name = name or type(self).name
        self.root = Path(root).expanduser()
        self.splits = {**type(self).splits, **(splits or {})}
        self.preprocess = preprocess or Preprocess()
        self.wanted_classes = classes
        self.batch_size, self.augment, self.augment_val = batch_size, augment, augment_val
        self.holdout = holdout or type(self).holdout
        self.val_fraction, self.test_fraction, self.fraction = val_fraction, test_fraction, fraction
        self.seed, self.split_seed = seed, split_seed
        self.num_workers, self.timeout_seconds = num_workers, timeout_seconds
        self.exclude, self.check_counts = exclude, check_counts
        self.flips = type(self).flips if flips is None else flips
        self.views, self.keeping = views, CacheConfig(cache, cache_gb)
        self.interrupted: Callable[[], bool] = lambda: False  # what ends the making of a cache early
        self.features: FeatureSource | None = None
        self._caches: dict[str, Cached | None] = {}
        self.notes: list[str] = []
        self.samples: dict[str, Samples] = {}
        self._lent: list[Loader] = []

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their indices; `setup` comes first."""
        self.setup()
        return self.samples["train"].classes

    def setup(self, stage: str | None = None) -> None:
        """Find and label every picture of every split, once; opens no picture."""
        if self.samples:
            return
        self._check_options()
        self.notes = []
        base, found = self._find_train()
        train = label(found, class_names(found, self.wanted_classes), "train", self.wanted_classes is not None)
        splits = {"train": train}
        for split in ("test", "val"):
            layout = self.splits.get(split)
            other = find_split(self.root, base, layout) if layout else None
            if other:
                splits[split] = label(other, train.classes, split, self.wanted_classes is not None)
                if absent := absent_classes(splits[split]):
                    self.notes.append(f"{split} has no pictures of {', '.join(absent)} ({other.place})")
            else:
                fraction = self.test_fraction if split == "test" else self.val_fraction
                splits["train"], splits[split] = hold_out(splits["train"], fraction, self.split_seed, self.holdout)
                self.notes.append(self._held_out_note(split, len(splits[split]), fraction))
        self._compare_counts(splits)
        splits["train"] = subsample(splits["train"], self.fraction, self.seed)
        if self.exclude:
            splits, note = read_exclusion(self.exclude).apply(splits, self.root, self.name)
            self.notes.append(note)
        self.samples = {split: splits[split] for split in SPLITS}

    def fingerprint(self) -> dict[str, dict[str, list[Any]]]:
        """{split: {class: [number of samples, digest]}}: what a resumed run compares with what it began with."""
        self.setup()
        return {split: fingerprint(samples) for split, samples in self.samples.items()}

    def loader(self, split: str, *, shuffle: str = "never", training: bool = False, shared: bool = False,
               limit: int | float | None = None) -> Loader:  # fmt: skip
        """Batches of `split`, augmented when `training`; `shared` with the other processes of a distributed run, else
        whole in each. `limit`: how many batches, or what fraction of them, will be asked for. For `shuffle` see `Loader`.
        """
        self.setup()
        augmented = self.augment and (training or (split == "val" and self.augment_val))
        distributed = shared and torch.distributed.is_available() and torch.distributed.is_initialized()
        made = Loader(
            self.samples[split], self.preprocess, batch_size=self.batch_size, seed=self.seed, shuffle=shuffle,
            augment=Augment.from_dict(self.augment or {}) if augmented else None, num_workers=self._workers(split),
            timeout_seconds=self.timeout_seconds, views=self.views if augmented else None,
            cache=self._pixel_cache(split), stop=self.interrupted,
            rank=torch.distributed.get_rank() if distributed else 0,
            world=torch.distributed.get_world_size() if distributed else 1,
        )  # fmt: skip
        made.limit = max(1, int(limit * len(made))) if isinstance(limit, float) else limit
        if self.features is not None:
            made.features = self.features.of(made, split, self.root, self.name, self.keeping)
        if shared:  # with a Trainer, whose objects refer to each other in circles and live on
            self._lent.append(made)
        return made

    def teardown(self, stage: str | None = None) -> None:
        """Stop the worker processes of the loaders that a Trainer had; Lightning calls this in the end."""
        while self._lent:
            self._lent.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out after a failure."""
        self.teardown()

    def train_dataloader(self) -> Loader:
        """Batches to train on: shuffled anew each epoch, and augmented."""
        trainer: Any = self.trainer
        overfitting = trainer is not None and trainer.overfit_batches > 0
        limit = trainer.overfit_batches if overfitting else getattr(trainer, "limit_train_batches", None)
        return self.loader("train", shuffle="once" if overfitting else "epoch", training=True, shared=True, limit=limit)

    def val_dataloader(self) -> Loader:
        """Batches to validate on, in one order for all epochs: a few of them are then a fair sample."""
        return self.loader("val", shuffle="once", shared=True, limit=getattr(self.trainer, "limit_val_batches", None))

    def test_dataloader(self) -> Loader:
        """Batches to test on, in the samples' order."""
        return self.loader("test", shared=True)

    def predict_dataloader(self) -> Loader:
        """Batches of the test split, in the samples' order."""
        return self.loader("test", shared=True)

    def statistics(self, channels: int = 3, limit: int = 512) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation a channel, in units of 1, of up to `limit` training pictures: what a network that
        starts from nothing is normalised by.
        """
        self.setup()
        train = self.samples["train"]
        chosen = np.sort(np.random.default_rng(self.split_seed).permutation(len(train))[:limit])
        images = train.take(chosen)
        small = replace(self.preprocess, size=min(self.preprocess.size, 64)).with_channels(channels)
        batches = Loader(images, small, batch_size=64)
        pixels = torch.cat([batch.images for batch in batches if batch.images is not None]).double() / 255  # [N,C,S,S]
        mean, deviation = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3)).clamp_min(1e-3)
        return tuple(round(x, 4) for x in mean.tolist()), tuple(round(x, 4) for x in deviation.tolist())

    def picture(self, split: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One sample as it is on disk, at its own size: uint8 [H, W, 3 or 1]."""
        samples = self.samples[split]
        return decode(samples.items[index]) if samples.pixels is None else samples.pixels[index]

    def _check_options(self) -> None:
        counts = {
            "batch_size": (self.batch_size, 1),
            "views": (1 if self.views is None else self.views, 1),
            "num_workers": (self.num_workers or 0, 0),
            "seed": (self.seed, 0),
        }
        for name, (value, least) in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                where = name if name == "views" else f"dataset.{name}"
                raise ConfigError(f"{where}={value!r}: expected a whole number of at least {least}")
        if self.augment:
            Augment.from_dict(self.augment)
        if isinstance(self.flips, str) or set(self.flips) - {"horizontal", "vertical"}:
            raise ConfigError(f"dataset.flips={self.flips!r}: expected a list of horizontal and vertical, or []")

    def _find_train(self) -> tuple[Path, SplitFiles]:
        layout = self.splits["train"]
        slug = (self.handle or "").rpartition("/")[2]
        match = find_train(self.root, layout, [self.name, slug]) if self.root.is_dir() else None
        if match is None:
            what = " or ".join(map(str, layout.get("names", layout.get("files", ["?"]))))
            state = "has nothing like it down to 3 levels below it" if self.root.is_dir() else "doesn't exist"
            looked = f"looked for {what} ({layout.get('kind')}) in {self.root}, which {state}"
            raise DataError(missing(self.name, looked, self.handle))
        return match

    def _held_out_note(self, split: str, count: int, fraction: float) -> str:
        if not fraction:
            return f"no {split} split: dataset.{split}_fraction is 0"
        return f"no {split} folder: held out {fraction:.0%} of each class of train ({self.holdout}), {count:,} pictures"

    def _compare_counts(self, splits: Mapping[str, Samples]) -> None:
        counts = tuple(len(splits[split]) for split in SPLITS)
        expected = self.expected.get(len(splits["train"].classes)) if self.check_counts else None
        if expected and counts != expected:
            self.notes.append(f"{self.name}: found {_slashed(counts)} pictures in train / val / test, the whole data set "
                              f"has {_slashed(expected)}")  # fmt: skip
        if self.expected and not expected and self.check_counts and self.wanted_classes is None:
            self.notes.append(f"{self.name}: found {len(splits['train'].classes)} classes, the whole data set has "
                              f"{' or '.join(map(str, self.expected))}")  # fmt: skip

    def _pixel_cache(self, split: str) -> Cached | None:
        """One for all loaders of a split; test pictures are seen once, and not kept."""
        if split == "test":
            return None
        if split not in self._caches:
            self._caches[split] = pixel_cache(self.samples[split], self.preprocess, self.keeping, self.name, self.root,
                                              self.timeout_seconds)  # fmt: skip
        return self._caches[split]

    def _workers(self, split: str) -> int:
        if self.num_workers is not None:
            return self.num_workers
        in_memory = self.samples[split].pixels is not None and not self.augment
        return (
            0
            if in_memory or available_cpus() <= 2 or len(self.samples[split]) < 2 * self.batch_size
            else min(8, available_cpus() // 2)
        )


def _slashed(counts: Sequence[int]) -> str:
    return " / ".join(f"{count:,}" for count in counts)
