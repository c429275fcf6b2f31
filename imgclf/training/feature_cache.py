"""Features computed once: what the frozen part of a network makes of each picture, kept as rows like decoded pictures."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imgclf.data.augment import Augment
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import Features, Loader
from imgclf.data.pixel_cache import CacheConfig, Cached, Indices, Making, in_threads, sample_keys
from imgclf.errors import CheckpointError, ConfigError
from imgclf.files.row_store import key_of
from imgclf.models.engine import BATCH, Engine, build_engine, choose_engine, label_of, run
from imgclf.models.frozen_stem import FrozenStem, find_frozen_stem
from imgclf.training.classifier import ImageClassifier

__all__ = ["FeatureCache", "attach_features", "pictures_seen"]

_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}  # Lightning's words


class FeatureCache:
    """The features of the frozen part of `classifier`, for the loaders of a data module (see `imgclf.data.loader.Features`).

    `split` is where its network is cut, `engine` the name of what runs the frozen part, `batch_size` that of training.
    `forwards` counts the pictures that were run through it.
    """

    def __init__(self, classifier: ImageClassifier, split: FrozenStem, engine: str, precision: str = "fp32",
                 batch_size: int = BATCH) -> None:  # fmt: skip
        self.classifier, self.split, self.name, self.precision = classifier, split, engine, precision
        # Eager sums as it would in training, on batches of the same size; OpenVINO is compiled for one size.
        self.batch = batch_size if engine == "eager" else BATCH
        self.label = label_of(engine, precision)
        self.digest = _digest(split)
        self.forwards = 0
        self._engine: Engine | None = None
        self._kept: dict[tuple[str, Augment | None], LoaderFeatures] = {}

    def says(self) -> str:
        """The line that tells what is trained on."""
        cut = self.split.passed[-1].removeprefix("backbone.network.")
        shape = " x ".join(map(str, self.split.shape))
        return f"training on features: {shape} behind {cut}, each picture is run through the frozen part once ({self.label})"

    def of(self, loader: Loader, split: str, root: Path, name: str, keeping: CacheConfig) -> Features | None:
        """Those of the samples of `loader`; None if they are augmented anew in every epoch."""
        if loader.augment and not loader.views:
            return None
        kept = replace(keeping, place="ram") if keeping.place == "off" else keeping
        key = (split, loader.augment)
        if key not in self._kept:  # validation has a loader of its own in the end, whose features are those of training
            self._kept[key] = LoaderFeatures(self, loader, root, name, kept)
        return self._kept[key]

    def attach(self, classifier: ImageClassifier) -> bool:
        """Let another classifier, such as the best epoch's, take these features, if its frozen part is the very same."""
        split = find_frozen_stem(classifier.network, classifier.preprocess.channels, classifier.preprocess.size)
        if split is None or _digest(split) != self.digest:
            return False
        self.classifier, self.split = classifier, split
        classifier.use_features(split.passed)
        return True

    def compute(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [N, S, S, C] -> float32 [N, ...]."""
        if self._engine is None:
            module = self.classifier
            self._engine = build_engine(self.name, self.split.stem, module.mean, module.std, module.preprocess.size,
                                        self.precision)  # fmt: skip
        self.forwards += len(images)
        return run(self._engine, torch.from_numpy(images).permute(0, 3, 1, 2), self.batch)


class LoaderFeatures:
    """The features of one loader's samples, one row a sample and view of it."""

    def __init__(self, source: FeatureCache, loader: Loader, root: Path, name: str, keeping: CacheConfig) -> None:
        self.source, self.loader, self.root = source, loader, root
        views = (loader.views or 1) if loader.augment else 1
        self.views, count = views, len(loader.samples)
        model = source.classifier.hparams["model"]["backbone"]
        about = {"root": str(root), "pictures": f"{model} up to {source.split.passed[-1]}, {source.label}"}
        identity = (source.digest, source.label, source.classifier.preprocess, str(root))
        store = keeping.store("features", name, identity, source.split.shape, "float32", views * count, about)
        assert store is not None
        self.cached = Cached(store, views * count, "features", self._keys, self._make)

    def ready(self) -> bool:
        """Whether the part of the network that they come from is still frozen."""
        return self.source.split.frozen()

    def prepare(self, epoch: int, indices: Indices) -> None:
        """Compute those of `epoch` that are nowhere yet."""
        self.cached.prepare(self._rows_of(epoch, indices), self.loader.stop)

    def take(self, epoch: int, indices: Indices) -> Tensor:
        """float32 [B, ...]: from where they are kept, or computed on the spot where nothing can be kept."""
        numbers = self.cached.numbers[self._rows_of(epoch, indices)]
        if (numbers < 0).any():
            return self.source.compute(self.loader.images(epoch, indices))
        return torch.from_numpy(self.cached.rows.take(numbers))

    def _rows_of(self, epoch: int, indices: Indices) -> Indices:
        return epoch % self.views * len(self.loader.samples) + indices

    def _keys(self, rows: Indices) -> list[bytes]:
        """A picture's own key; of an augmented view also what the view depends on."""
        count, loader = len(self.loader.samples), self.loader
        keys = sample_keys(loader.samples, self.root, rows % count)
        if not loader.augment:
            return keys
        drawn = [repr((loader.augment, loader.seed, *divmod(row, count))).encode() for row in rows.tolist()]
        return [key_of(key, view) for key, view in zip(keys, drawn, strict=True)]

    def _make(self, rows: Indices) -> Making:
        """Decode ahead in threads, and compute here."""
        count = len(self.loader.samples)
        batch = self.source.batch
        for images in in_threads(lambda part: self.loader.images(int(part[0]) // count, part % count), rows, batch,
                                 self.loader.timeout_seconds):  # fmt: skip
            yield self.source.compute(images).numpy()


def attach_features(settings: Mapping[str, Any], classifier: ImageClassifier, data: ImageDataModule,
                    device: torch.device, began_with: str | None) -> FeatureCache | None:  # fmt: skip
    """Train `classifier` on the features of its frozen part from now on, where `settings` and the network allow it.

    Returns None where every epoch must see the pictures themselves: nothing is frozen, or they are augmented or mixed anew.
    `began_with` is the engine's label in the checkpoint that a run goes on from. Raises `CheckpointError` when that
    engine isn't here, `ConfigError` for settings outside their range.
    """
    features = settings.get("features", "off")  # a run that began before there were any goes on without
    if features not in ("auto", "off"):
        raise ConfigError(f"features={features!r}: expected auto or off")
    mixing, precision = settings["mixing"] or {}, _PRECISIONS.get(str(settings["trainer"]["precision"]))
    possible = features == "auto" and not any(mixing.values()) and precision
    if not possible or (data.augment and not data.views):
        return None
    split = find_frozen_stem(classifier.network, classifier.preprocess.channels, classifier.preprocess.size)
    if split is None:
        return None
    wanted = began_with.partition(" ")[0] if began_with and settings["engine"] == "auto" else settings["engine"]
    engine = choose_engine(wanted, device, pictures_seen(settings, data))
    cache = FeatureCache(classifier, split, engine, str(precision), data.batch_size)
    if began_with and began_with != cache.label:
        raise CheckpointError(f"its features were computed by {began_with}, here is {cache.label}; install that version, or "
                              "begin a new run")  # fmt: skip
    classifier.use_features(split.passed)
    classifier.about["engine"] = cache.label
    data.features = cache
    return cache


def pictures_seen(settings: Mapping[str, Any], data: ImageDataModule) -> int:
    """How many pictures a run sees at most, each counted once."""
    trainer, counts = settings["trainer"], {split: len(samples) for split, samples in data.samples.items()}
    turns = {"train": trainer["max_epochs"], "val": 1, "test": 1}
    seen = 0
    for split, count in counts.items():
        limit = trainer.get(f"limit_{split}_batches")
        share = (
            round(limit * count) if isinstance(limit, float) else count if limit is None else limit * data.batch_size
        )
        seen += min(count, share * turns[split])
    return seen


def _digest(split: FrozenStem) -> bytes:
    """What tells two frozen parts apart: their modules and every number in them."""
    parts = [repr((split.passed, split.shape)).encode()]
    for name, value in split.stem.state_dict().items():
        parts += [name.encode(), np.ascontiguousarray(value.detach().cpu().numpy()).tobytes()]
    return key_of(*parts)
