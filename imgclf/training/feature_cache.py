"""Cached features: the frozen stem of a network runs once per image, and training then uses its outputs."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from imgclf.config import CacheConfig, RunConfig, TrainerConfig
from imgclf.data.augment import Augment
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.loader import Features, Loader
from imgclf.data.pixel_cache import CachedRows, Indices, RowBatches, RowSpec, in_threads, open_store, sample_keys
from imgclf.errors import CheckpointError
from imgclf.files.row_store import key_of
from imgclf.models import ImageModel
from imgclf.models.engine import BATCH, Engine, build_engine, choose_engine, label_of, run_padded
from imgclf.models.frozen_stem import FrozenStem
from imgclf.training.classifier import ImageClassifier

__all__ = ["FeatureCache", "attach_features", "images_seen", "validation_precision"]

_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}  # Lightning's words


class FeatureCache:
    """Features of the `stem` of a classifier's network, for the loaders of a data module (`imgclf.data.loader.Features`).

    `engine` names the runtime of the stem; `batch_size` is that of training. `forwards` counts the images that the stem
    has seen.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        stem: FrozenStem,
        engine: str,
        precision: str = "fp32",
        batch_size: int = BATCH,
    ) -> None:
        self.classifier, self.stem, self.engine, self.precision = classifier, stem, engine, precision
        # Eager sums as it would in training, on batches of the same size; OpenVINO is compiled for one size.
        self.batch = batch_size if engine == "eager" else BATCH
        self.label = label_of(engine, precision)
        self.digest = _digest(stem)
        self.forwards = 0
        self._engine: Engine | None = None
        self._per_loader: dict[tuple[str, Augment | None], LoaderFeatures] = {}

    def describe(self) -> str:
        """Return one line about what is trained on."""
        last = self.stem.frozen_modules[-1].removeprefix("backbone.network.")
        shape = " x ".join(map(str, self.stem.shape))
        return f"training on features: {shape} after {last}, the frozen layers run once per image ({self.label})"

    def of(self, loader: Loader, split: str, root: Path, name: str, cache: CacheConfig) -> Features | None:
        """Return the features of the loader's samples; None where each epoch augments them differently."""
        if loader.augment and not loader.options.views:
            return None
        key = (split, loader.augment)
        if key not in self._per_loader:  # the final evaluation has loaders of its own, with the features of training
            cache = replace(cache, kind="ram") if cache.kind == "off" else cache
            self._per_loader[key] = LoaderFeatures(self, loader, root, name, cache)
        return self._per_loader[key]

    def attach(self, classifier: ImageClassifier) -> bool:
        """Let another classifier, such as the best epoch's, use these features; return whether its stem is the same."""
        stem = classifier.model.find_frozen_stem()
        if stem is None or _digest(stem) != self.digest:
            return False
        self.classifier, self.stem = classifier, stem
        classifier.use_features(stem.frozen_modules)
        return True

    def compute(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [N, S, S, C] -> float32 [N, ...]."""
        if self._engine is None:
            classifier = self.classifier
            model = ImageModel(self.stem.stem, classifier.classes, classifier.preprocess).to(classifier.device)
            self._engine = build_engine(self.engine, model, self.precision)
        self.forwards += len(images)
        return run_padded(self._engine, torch.from_numpy(images).permute(0, 3, 1, 2), self.batch)


class LoaderFeatures:
    """The features of one loader's samples, one row per sample and view."""

    def __init__(self, source: FeatureCache, loader: Loader, root: Path, name: str, cache: CacheConfig) -> None:
        self.source, self.loader, self.root = source, loader, root
        self.views = (loader.options.views or 1) if loader.augment else 1
        count, classifier, stem = self.views * len(loader.samples), source.classifier, source.stem
        content = f"{classifier.model_config.backbone} up to {stem.frozen_modules[-1]}, {source.label}"
        identity = (source.digest, source.label, classifier.preprocess, str(root))
        spec = RowSpec("features", name, identity, stem.shape, "float32", {"root": str(root), "images": content})
        store = open_store(cache, spec, count)
        assert store is not None
        self.cached = CachedRows(store, count, ("computing features", "features computed"), self._keys, self._make)

    def ready(self) -> bool:
        """Return whether the part of the network that computes them is still frozen."""
        return self.source.stem.is_frozen()

    def prepare(self, epoch: int, indices: Indices) -> None:
        """Compute the features of `epoch` that are missing."""
        self.cached.prepare(self._rows_of(epoch, indices), self.loader.stop)

    def take(self, epoch: int, indices: Indices) -> Tensor:
        """Return float32 [B, ...]: from the cache, or computed now where they can't be cached or were damaged."""
        numbers = self._rows_of(epoch, indices)
        rows, whole = self.cached.take(numbers)
        if not whole.any():
            self.cached.forget(numbers)
            return self.source.compute(self.loader.images(epoch, indices))
        features = torch.from_numpy(rows)
        if not whole.all():
            self.cached.forget(numbers[~whole])
            features[torch.from_numpy(~whole)] = self.source.compute(self.loader.images(epoch, indices[~whole]))
        return features

    def _rows_of(self, epoch: int, indices: Indices) -> Indices:
        return epoch % self.views * len(self.loader.samples) + indices

    def _keys(self, rows: Indices) -> list[bytes]:
        """Return the key of each row: the image's own, with the augmentation of the view where there is one."""
        count, loader = len(self.loader.samples), self.loader
        keys = sample_keys(loader.samples, self.root, rows % count)
        if not loader.augment:
            return keys
        views = [repr((loader.augment, loader.options.seed, *divmod(row, count))).encode() for row in rows.tolist()]
        return [key_of(key, view) for key, view in zip(keys, views, strict=True)]

    def _make(self, rows: Indices) -> RowBatches:
        """Decode images in threads, and compute their features here."""
        loader, count = self.loader, len(self.loader.samples)

        def decode(part: Indices) -> npt.NDArray[np.uint8]:
            return loader.images(int(part[0]) // count, part % count)

        for images in in_threads(decode, rows, self.source.batch, loader.options.timeout_seconds):
            yield self.source.compute(images).numpy()


def attach_features(
    config: RunConfig,
    classifier: ImageClassifier,
    data: ImageDataModule,
    device: torch.device,
    engine_label: str | None,
) -> FeatureCache | None:
    """Train `classifier` on the features of its frozen stem, where the settings and the network allow it.

    Returns None where every epoch needs the images: nothing is frozen, or each epoch augments or mixes them differently.
    `engine_label`: the engine in the checkpoint that the run is resumed from. Raises `CheckpointError` when that engine
    isn't available.
    """
    precision = _PRECISIONS.get(config.trainer.precision)
    if precision == "fp16" and device.type == "cpu":
        precision = "bf16"  # as Lightning does: it has no fp16 on a CPU
    mixes, augments = config.mixing.mixup or config.mixing.cutmix, data.augment and not data.views
    if config.features == "off" or precision is None or mixes or augments:
        return None
    stem = classifier.model.find_frozen_stem()
    if stem is None:
        return None
    resumed = engine_label.partition(" ")[0] if engine_label and config.engine == "auto" else None
    engine = choose_engine(resumed or config.engine, device, images_seen(config.trainer, data))
    cache = FeatureCache(classifier, stem, engine, precision, data.batch_size)
    if engine_label and engine_label != cache.label:
        raise CheckpointError(
            f"the run's features were computed by {engine_label}, here is {cache.label}; install that version, "
            "or begin a new run"
        )
    classifier.use_features(stem.frozen_modules)
    classifier.metadata.engine = cache.label
    return cache


def validation_precision(trainer: Trainer, classifier: ImageClassifier) -> AbstractContextManager[None]:
    """Return the context in which `classifier` computes as the run did in validation, on whatever device it is now.

    Its weights get the type that the run's had: half of the precisions convert them.
    """
    plugin = trainer.precision_plugin
    plugin.convert_module(classifier)
    if not isinstance(plugin, MixedPrecision):
        return plugin.val_step_context()
    half = torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16
    return torch.autocast(classifier.device.type, half)  # Lightning's own is for the device of training


def images_seen(config: TrainerConfig, data: ImageDataModule) -> int:
    """Return how many images a run sees at most, each counted once."""
    splits = {
        "train": (config.limit_train_batches, config.max_epochs),
        "val": (config.limit_val_batches, 1),
        "test": (config.limit_test_batches, 1),
    }
    seen = 0
    for split, (limit, epochs) in splits.items():
        count = len(data.samples[split])
        per_epoch = count if limit is None else limit * data.batch_size
        if isinstance(limit, float):
            per_epoch = round(limit * count)
        seen += count if epochs < 0 else min(count, round(per_epoch * epochs))  # -1 epochs: without end
    return seen


def _digest(stem: FrozenStem) -> bytes:
    """Return a digest of the stem's modules and of every number in them."""
    parts = [repr((stem.frozen_modules, stem.shape)).encode()]
    for name, value in stem.stem.state_dict().items():
        parts += [name.encode(), np.ascontiguousarray(value.detach().cpu().numpy()).tobytes()]
    return key_of(*parts)
