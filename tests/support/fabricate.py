"""Fabricated images, data sets, predictions and settings."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imgclf.cli.compose import compose_config
from imgclf.images import decode

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40)}


def draw_image(path: Path, colour: tuple[int, int, int], seed: int, size: int = 24) -> None:
    """Write a noisy image of one colour, which a small network can learn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-40, 40, (size, size, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def draw_tree(root: Path, counts: dict[str, int]) -> Path:
    """Write `{split}/{class}/NNN.png` for the classes blue, green and red; return `root`."""
    for split, count in counts.items():
        for position, (name, colour) in enumerate(COLOURS.items()):
            for number in range(count):
                seed = 1000 * len(split) + 10 * number + position
                draw_image(root / split / name / f"{number:03}.png", colour, seed)
    return root


def composed(*overrides: str, config: str = "train") -> Any:
    """Return the settings of a command line: a `RunConfig`, `EvaluateConfig`, `CheckConfig` or `DownloadConfig`."""
    return compose_config(config, overrides)


TINY = (
    "dataset=folders",
    "model=small_cnn",
    "trainer=cpu",
    "image_size=16",
    "dataset.batch_size=8",
    "trainer.max_epochs=2",
    "model.backbone_kwargs.layers=[4,pool,8,pool]",
    "model.head.hidden=[8]",
    "dataset.num_workers=0",
    "scheduler.name=none",
    "model.head.dropout=0.0",
    "optimizer.lr=0.01",
    "report=false",
)


class Batches:
    """A loader of these batches: of a list Lightning would make a loader each."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def structured(seed: int, side: int = 120) -> np.ndarray:
    """Return an image of large shapes and noise that depend on the seed: uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    large = cv2.resize(rng.uniform(0, 255, (6, 6, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return the pixels after a round trip through JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue())


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the pixels at another size, bicubic."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def random_predictions(
    num_samples: int, num_classes: int, seed: int = 0, missing: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 [N, K] and targets int64 [N]; `missing` classes are neither a target nor predicted."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_samples, num_classes))
    targets = generator.choice([k for k in range(num_classes) if k not in missing], size=num_samples)
    logits[np.arange(num_samples), targets] += 1
    logits[:, list(missing)] = -20
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), targets.astype(np.int64)
