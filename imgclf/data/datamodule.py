"""From a folder to batches: the one `LightningDataModule`; each known data set adds a few facts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from imgclf.config import AugmentConfig, CacheConfig, DatasetConfig, LayoutConfig
from imgclf.console import silence_advertisements, silence_trainer_warnings
from imgclf.data.augment import Augment
from imgclf.data.layouts import SplitFiles, absent_classes, class_names, find_split, find_train, label
from imgclf.data.loader import Features, Loader, LoaderOptions, batch_bounds
from imgclf.data.location import locate, missing
from imgclf.data.manifest import fingerprint, read_exclusion
from imgclf.data.pixel_cache import CachedRows, pixel_cache
from imgclf.data.samples import Samples, hold_out, subsample
from imgclf.data.show import show_classes
from imgclf.data.unused import Unused, find_unused, refuse_empty
from imgclf.data.value_range import significant_bits
from imgclf.errors import ConfigError, DataError, require_value
from imgclf.images import decode
from imgclf.preprocess import Preprocess
from imgclf.threads import available_cpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SPLITS", "ImageDataModule"]

SPLITS = ("train", "val", "test")


class FeatureSource(Protocol):
    """Computes features that replace images."""

    def of(self, loader: Loader, split: str, root: Path, name: str, cache: CacheConfig) -> Features | None:
        """Return the features of the loader's samples, cached by `cache`; None where images are needed."""


class ImageDataModule(LightningDataModule):
    """Images below `root` as batches of uint8 pixels, split and labelled; the training set defines the classes.

    Without `root` they are looked for in `$IMGCLF_DATA/<name>`, else where `imgclf download` puts them; `root="demo"` draws a
    small synthetic edition of a known data set.

    The class attributes are the facts of a data set; a subclass states its own. `settings` (or its fields as keywords:
    `CardsDataModule(root, batch_size=64, classes=["joker", "ace of clubs"])`) describes splits, hold-outs and batches; see
    `DatasetConfig`. A split that isn't on disk is held out from train: first `test_fraction` of each class for test, then
    `val_fraction` of the rest for validation. `preprocess` may be replaced by `connect` until the first loader is made.
    `cache`: where decoded training and validation images are cached. `views`: augmentation repeats after so many epochs.
    `empty_classes`: a class without training images is an error unless they are allowed. `notes` holds, after `setup`, what
    a user should know, one line each, and `unused` the files below `root` that no split has.
    Raises `DataError` and `ConfigError` from `setup`; the constructor raises `ConfigError` for settings only.
    """

    name: str = "custom"
    handle: str | None = None  # on Kaggle
    licence: str | None = None
    splits: Mapping[str, LayoutConfig | None] = {
        "train": LayoutConfig("folders", names=["train", "training", "."]),
        "val": LayoutConfig("folders", names=["valid", "val", "validation"]),
        "test": LayoutConfig("folders", names=["test", "testing"]),
    }
    expected: Mapping[int, tuple[int, int, int]] = {}  # number of classes -> images in train, val, test
    class_counts: Sequence[int] = ()  # numbers of classes, where those of images differ between editions
    holdout: str = "random"
    flips: Sequence[str] = ()

    def __init__(
        self,
        root: str | Path | None = None,
        settings: DatasetConfig | None = None,
        *,
        preprocess: Preprocess | None = None,
        cache: CacheConfig | None = None,
        views: int | None = None,
        seed: int = 0,
        check_counts: bool = True,
        empty_classes: bool = False,
        **changes: Any,
    ) -> None:
        super().__init__()
        silence_advertisements()
        require_value("root", root)
        given = settings or DatasetConfig(name=type(self).name)
        self.settings = DatasetConfig.from_dict({**vars(given), **changes})
        self.name = self.settings.name
        self.root = locate(self.name, None) if root is None else Path(root).expanduser()
        self.splits = {**type(self).splits, **self.settings.splits}
        if foreign := set(self.splits) - {"train", "val", "test"}:
            raise ConfigError(f"dataset.splits.{min(foreign)}: unknown split; expected train, val or test")
        self.holdout = self.settings.holdout or type(self).holdout
        self.flips = type(self).flips if self.settings.flips is None else self.settings.flips
        augment = self.settings.augment or AugmentConfig()
        self.augment = Augment(**vars(augment)) if augment != AugmentConfig() else None
        self.batch_size = self.settings.batch_size
        self._preprocess, self.cache = preprocess or Preprocess(), cache or CacheConfig()
        self._measured = self.settings.range == "full"
        self.views, self.seed, self.check_counts, self.empty_classes = views, seed, check_counts, empty_classes
        self.notes: list[str] = []
        self.unused, self.train_location = Unused(), self.root
        self.samples: dict[str, Samples] = {}
        self._features: FeatureSource | None = None
        self._stop: Callable[[], bool] = _never
        self._caches: dict[str, CachedRows | None] = {}
        self._lent: list[Loader] = []
        if unknown := set(self.flips) - {"horizontal", "vertical"}:
            raise ConfigError(f"dataset.flips: {min(unknown)!r}; expected a list of horizontal and vertical, or []")

    def connect(
        self,
        preprocess: Preprocess,
        features: FeatureSource | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """Prepare images as a model needs them, replace them by `features` where these are given, and end the filling of
        caches early when `stop` returns true.
        """
        self._preprocess, self._features, self._stop, self._measured = preprocess, features, stop or _never, True

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the images; with `range="auto"`, its `bits` are measured on the training images first.

        That of a model, after `connect`, has the bits of the images that the model was trained on.
        """
        if not self._measured:
            self.setup()
            bits = significant_bits(self.samples["train"], self.settings.timeout_seconds)
            self._preprocess, self._measured = replace(self._preprocess, bits=bits), True
            self.notes.append(f"dataset.range=auto: {2**bits - 1:,} is white in 16-bit grey ({bits} bits are used)")
        return self._preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their indices; calls `setup`."""
        self.setup()
        return self.samples["train"].classes

    def prepare_data(self) -> None:
        """Silence warnings; Lightning calls this first."""
        silence_trainer_warnings()

    def setup(self, stage: str | None = None) -> None:
        """Find and label the images of every split, once; opens no image."""
        if self.samples:
            return
        if str(self.root) == "demo":
            self.root, self.check_counts = locate(self.name, "demo"), False
        settings, self.notes = self.settings, []
        base, files = self._find_train()
        self.train_location = files.location
        subset = settings.classes is not None
        found, splits = {"train": files}, {"train": label(files, class_names(files, settings.classes), "train", subset)}
        if not self.empty_classes:
            refuse_empty(files, absent_classes(splits["train"]))
        for split, fraction in (("test", settings.test_fraction), ("val", settings.val_fraction)):
            layout = self.splits.get(split)
            other = find_split(self.root, base, layout) if layout else None
            if other:
                found[split] = other
                splits[split] = label(other, splits["train"].classes, split, subset)
                if absent := absent_classes(splits[split]):
                    self.notes.append(f"{split} has no images of {', '.join(absent)} ({other.location})")
            else:
                splits["train"], splits[split] = hold_out(splits["train"], fraction, settings.split_seed, self.holdout)
                self.notes.append(self._held_out_note(split, len(splits[split]), fraction))
        self._compare_counts(splits)
        self.unused = find_unused(self.root, found, self.splits, splits["train"].classes)
        self.notes += [self.unused.line] * bool(self.unused.line)
        splits["train"] = subsample(splits["train"], settings.fraction, self.seed)
        if settings.exclude:
            exclusion = read_exclusion(settings.exclude)
            splits, note = exclusion.apply(splits, self.root, self.name)
            self.notes.append(note)
            self.settings = replace(settings, exclude=exclusion.listed())
        self.samples = {split: splits[split] for split in SPLITS}

    def fingerprint(self) -> dict[str, dict[str, list[int | str]]]:
        """Return {split: {class: [number of samples, digest]}}, which a resumed run compares with its checkpoint's."""
        self.setup()
        return {split: fingerprint(samples) for split, samples in self.samples.items()}

    def loader(
        self,
        split: str,
        *,
        shuffle: str = "never",
        training: bool = False,
        shared: bool = False,
        limit: int | float | None = None,
    ) -> Loader:
        """Return batches of `split`, augmented when `training`; `shared` with the other processes of a distributed run, else
        whole in each. `limit`: how many batches, or what fraction of them, will be asked for. For `shuffle` see `LoaderOptions`.
        """
        self.setup()
        augment = self.augment if training or (split == "val" and self.settings.augment_val) else None
        distributed = shared and torch.distributed.is_available() and torch.distributed.is_initialized()
        options = LoaderOptions(
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            views=self.views if augment else None,
            num_workers=self._workers(split),
            timeout_seconds=self.settings.timeout_seconds,
            rank=torch.distributed.get_rank() if distributed else 0,
            world_size=torch.distributed.get_world_size() if distributed else 1,
        )
        cache = self._pixel_cache(split)
        loader = Loader(self.samples[split], self.preprocess, options, augment=augment, cache=cache, stop=self._stop)
        loader.limit = max(1, int(limit * len(loader))) if isinstance(limit, float) else limit
        if self._features is not None:
            loader.features = self._features.of(loader, split, self.root, self.name, self.cache)
        if shared:  # with a Trainer, whose objects refer to each other in circles and live on
            self._lent.append(loader)
        return loader

    def num_batches(self, split: str) -> int:
        """Return the number of batches of `split` in an epoch of one process."""
        shuffle = "epoch" if split == "train" else "never"
        options = LoaderOptions(batch_size=self.batch_size, shuffle=shuffle)
        return len(batch_bounds(len(self.samples[split]), options)) - 1

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers of the loaders that a Trainer had; Lightning calls this in the end."""
        while self._lent:
            self._lent.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out after a failure."""
        self.teardown()

    def train_dataloader(self) -> Loader:
        """Batches to train on: in a new order each epoch, and augmented."""
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
        """Return mean and standard deviation of each channel, in units of 1, over up to `limit` training images: the
        normalisation of a network that is trained from scratch.
        """
        self.setup()
        train = self.samples["train"]
        chosen = np.sort(np.random.default_rng(self.settings.split_seed).permutation(len(train))[:limit])
        small = replace(self.preprocess, size=min(self.preprocess.size, 64)).with_channels(channels)
        loader = Loader(train.take(chosen), small, LoaderOptions(batch_size=64))
        images = [batch.images for batch in loader if batch.images is not None]
        pixels = torch.cat(images).double() / 255  # [N, C, S, S]
        mean, deviation = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3)).clamp_min(1e-3)
        return tuple(round(x, 4) for x in mean.tolist()), tuple(round(x, 4) for x in deviation.tolist())

    def image(self, split: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return one sample as it is on disk, at its own size: uint8 [H, W, 3 or 1]."""
        samples = self.samples[split]
        if samples.pixels is not None:
            return samples.pixels[index]
        return decode(samples.items[index], bits=self.preprocess.bits)

    def show_classes(self, n: int = 6) -> "Figure":
        """Return a figure with a row of `n` training images for each class; see `imgclf.show_classes`."""
        return show_classes(self, n)

    def _find_train(self) -> tuple[Path, SplitFiles]:
        layout = self.splits["train"]
        if layout is None:
            raise ConfigError("dataset.splits.train=null: expected the layout of the training split")
        slug = (self.handle or "").rpartition("/")[2]
        match = find_train(self.root, layout, [self.name, slug]) if self.root.is_dir() else None
        if match is None:
            names = " or ".join(layout.names or layout.files or ["?"])
            state = "has nothing like it down to 3 levels below it" if self.root.is_dir() else "doesn't exist"
            problem = f"looked for {names} ({layout.kind}) in {self.root}, which {state}"
            raise DataError(missing(self.name, problem, self.handle))
        return match

    def _held_out_note(self, split: str, count: int, fraction: float) -> str:
        if not fraction:
            return f"no {split} split: dataset.{split}_fraction is 0"
        return f"no {split} folder: held out {fraction:.0%} of each class of train ({self.holdout}), {count:,} images"

    def _compare_counts(self, splits: Mapping[str, Samples]) -> None:
        if not self.check_counts:
            return
        counts, classes = tuple(len(splits[split]) for split in SPLITS), len(splits["train"].classes)
        expected = self.expected.get(classes)
        if expected and counts != expected:
            here, whole = (" / ".join(f"{count:,}" for count in some) for some in (counts, expected))
            self.notes.append(f"{self.name}: {here} images in train / val / test, the whole data set has {whole}")
        known_counts = self.expected or self.class_counts
        if known_counts and classes not in known_counts and self.settings.classes is None:
            known = " or ".join(map(str, known_counts))
            self.notes.append(f"{self.name}: {classes} classes, the whole data set has {known}")

    def _pixel_cache(self, split: str) -> CachedRows | None:
        """One for all loaders of a split; test images are seen once, and not cached."""
        if split == "test":
            return None
        if split not in self._caches:
            dataset, timeout = (self.name, self.root), self.settings.timeout_seconds
            self._caches[split] = pixel_cache(self.samples[split], self.preprocess, self.cache, dataset, timeout)
        return self._caches[split]

    def _workers(self, split: str) -> int:
        if self.settings.num_workers is not None:
            return self.settings.num_workers
        in_memory = self.samples[split].pixels is not None and not self.augment
        few = available_cpus() <= 2 or len(self.samples[split]) < 2 * self.batch_size
        return 0 if in_memory or few else min(8, available_cpus() // 2)


def _never() -> bool:
    """Never stop; unlike a lambda this can be sent to the processes of Lightning's ddp_spawn."""
    return False
