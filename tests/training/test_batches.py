"""Batches of a loader of one's own: which train as imgclf's own do, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from support.fabricate import Batches
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from imgclf.data.loader import Batch
from imgclf.errors import ConfigError, DataError
from imgclf.preprocess import Preprocess
from imgclf.training.classifier import ImageClassifier

MODEL: dict[str, Any] = {"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}, "head": {"hidden": [4]}}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
IMAGES = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def classifier_of(head: dict[str, Any] | None = None, **changes: Any) -> ImageClassifier:
    model = {**MODEL, "head": head or MODEL["head"]}
    return ImageClassifier(model, ["a", "b", "c"], Preprocess(size=8), **changes)


def fit(loader: Any, folder: Path, classifier: ImageClassifier | None = None, **options: Any) -> ImageClassifier:
    classifier = classifier or classifier_of()
    trainer = Trainer(**{**QUIET, "max_epochs": 2, "default_root_dir": folder, **options})
    trainer.fit(classifier, loader, Batches((IMAGES, TARGETS)))
    return classifier


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - 0.45) / 0.22


def test_pairs_and_floats_train_to_the_bit_as_a_batch_of_uint8_images(tmp_path: Path) -> None:
    halves = [(IMAGES[:4], TARGETS[:4]), (IMAGES[4:], TARGETS[4:])]
    own = Batches(*(Batch(images, targets, torch.arange(4)) for images, targets in halves))
    expected = fit(own, tmp_path)
    assert not torch.equal(expected.network.head.output.weight, classifier_of().network.head.output.weight)
    kept = (IMAGES / 255).clone()
    loaders = {
        "uint8": DataLoader(TensorDataset(IMAGES, TARGETS), 4),
        "float": DataLoader(TensorDataset(kept, TARGETS), 4),
        "double": DataLoader(TensorDataset(kept.double(), TARGETS.int()), 4),
        "tuple": Batches(*halves),
    }
    for name, loader in loaders.items():
        trained = fit(loader, tmp_path)
        for key, value in expected.state_dict().items():
            assert torch.equal(value, trained.state_dict()[key]), (name, key)
        rows = [[{**row, "seconds": 0} for row in each.history] for each in (expected, trained)]
        assert rows[0] == rows[1], name
    assert torch.equal(kept, IMAGES / 255)  # a user's tensors stay as they are


REFUSED: dict[str, tuple[Any, str]] = {
    "normalised": ((normalised(IMAGES), TARGETS), r"float32 \[8, 3, 8, 8\] from -2.05 to 2.5; .* leave out Normalize"),
    "0 to 255": ((IMAGES.float(), TARGETS), "from 0 to 255; expected uint8, or floats from 0 to 1"),
    "NaN": ((torch.full((8, 3, 8, 8), torch.nan), TARGETS), "from nan to nan; expected uint8"),
    "int64": ((IMAGES.long(), TARGETS), "int64 .* expected uint8, or floats"),
    "channels last": ((IMAGES.permute(0, 2, 3, 1), TARGETS), r"uint8 \[8, 8, 8, 3\]; expected \[B, 3, 8, 8\]"),
    "grey": ((IMAGES[:, :1], TARGETS), r"\[8, 1, 8, 8\]; expected \[B, 3, 8, 8\].* 3 channels and size=8"),
    "size": ((torch.zeros(8, 3, 16, 16), TARGETS), r"\[8, 3, 16, 16\]; expected \[B, 3, 8, 8\]"),
    "one image": ((IMAGES[0], TARGETS[:1]), r"uint8 \[3, 8, 8\]; expected \[B, 3, 8, 8\]"),
    "one-hot": ((IMAGES, torch.eye(3)[TARGETS]), r"targets of float32 \[8, 3\]; expected whole numbers \[8\]"),
    "fewer targets": ((IMAGES, TARGETS[:7]), r"targets of int64 \[7\]; expected whole numbers \[8\]"),
    "foreign class": ((IMAGES, TARGETS + 1), "the target 3; the classifier has classes 0 to 2"),
    "negative class": ((IMAGES, TARGETS - 1), "the target -1; the classifier has classes 0 to 2"),
    "dict": (
        {"image": IMAGES, "label": TARGETS},
        r"a batch is a dict; expected \(images \[B, C, S, S\], targets \[B\]\)",
    ),
    "images alone": (IMAGES, r"a batch is uint8 \[8, 3, 8, 8\]; expected \(images"),
    "three": ((IMAGES, TARGETS, TARGETS), "a batch is a tuple of 3; expected"),
    "names": ((["a.png"], TARGETS[:1]), "a batch has a list of 1 for images; expected"),
    "Batch": (Batch(IMAGES.float(), TARGETS, TARGETS), "from 0 to 255; expected uint8"),
}


@pytest.mark.trust("batches of loaders of one's own that can't be meant", "training on them, or a traceback")
@pytest.mark.parametrize("name", REFUSED)
def test_batch_that_cannot_be_meant_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    batch, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as raised:
        fit(Batches(batch), tmp_path)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):  # without a Trainer too
        classifier_of().training_step(batch, 0)


def test_prediction_takes_images_without_targets_and_forward_takes_floats(tmp_path: Path) -> None:
    classifier = classifier_of().eval()
    expected = classifier.model(IMAGES).softmax(dim=1)
    kept = IMAGES / 255
    assert torch.equal(classifier(kept).softmax(dim=1), expected) and torch.equal(kept, IMAGES / 255)
    for batch in (IMAGES, IMAGES / 255, [IMAGES], (IMAGES, TARGETS), (IMAGES, None)):
        (answer,) = Trainer(**QUIET, default_root_dir=tmp_path).predict(classifier, Batches(batch)) or []
        assert torch.equal(answer, expected)
    with pytest.raises(DataError, match="leave out Normalize"):
        classifier(normalised(IMAGES))


def test_single_image_under_batch_norm_is_refused_with_the_remedy(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(IMAGES[:5], TARGETS[:5]), 4)  # the last batch has one
    with pytest.raises(ConfigError, match=r"a batch of 1 image for a process: .* drop_last=True") as raised:
        fit(loader, tmp_path, classifier_of({"hidden": [4], "batch_norm": True}))
    assert "\n" not in str(raised.value)
    assert len(fit(loader, tmp_path).history) == 2  # without BatchNorm


def test_learning_rate_monitor_logs_the_rates_of_every_group(tmp_path: Path) -> None:
    monitor = LearningRateMonitor("step")
    classifier = classifier_of(optimizer={"lr": 0.1, "backbone_lr": 0.01})
    options: dict[str, Any] = {"callbacks": [monitor], "logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    fit(Batches(*[(IMAGES, TARGETS)] * 2), tmp_path, classifier, **options)
    names = ("head", "head_vectors", "backbone", "backbone_vectors")
    assert sorted(monitor.lrs) == sorted(f"lr-AdamW/{name}" for name in names)
    cosine = [1, 0.8535534, 0.5, 0.1464466]  # (1 + cos(pi * step / 4)) / 2
    assert monitor.lrs["lr-AdamW/head"] == pytest.approx([0.1 * share for share in cosine])
    assert monitor.lrs["lr-AdamW/backbone_vectors"] == pytest.approx([0.01 * share for share in cosine])
