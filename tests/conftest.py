"""Fabricated data, and a run on it that the tests of whole commands share. Nothing here is downloaded."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from imgclf.app import CONF, plain
from imgclf.training import train

torch.set_num_threads(1)
pytest_plugins = ["trust_table"]
SHARED = Path(__file__).parents[2] / "shared"
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: several processes of tests then end together."""
    items.sort(key=lambda item: item.path.name not in ("test_sweep.py", "test_distributed.py"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, and none sees the user's data."""
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("IMGCLF_DATA", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real slices and weights, which only the developers have."""
    if not SHARED.is_dir():
        pytest.skip("needs the real slices of the data, which are not part of the project")
    return SHARED


def draw_picture(path: Path, colour: tuple[int, int, int], seed: int, size: int = 24) -> None:
    """A noisy picture of one colour, which a small network can learn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-40, 40, (size, size, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def draw_tree(root: Path, counts: dict[str, int]) -> Path:
    """`{split}/{class}/NNN.png` for the classes blue, green and red."""
    for split, count in counts.items():
        for position, (name, colour) in enumerate(COLOURS.items()):
            for number in range(count):
                draw_picture(
                    root / split / name / f"{number:03}.png", colour, seed=1000 * len(split) + 10 * number + position
                )
    return root


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training, 4 validation and 5 test pictures of each of three colours."""
    return draw_tree(tmp_path_factory.mktemp("colours"), {"train": 12, "valid": 4, "test": 5})


def composed(*overrides: str, config: str = "train") -> dict[str, Any]:
    """The settings that a command line composes."""
    with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        return plain(compose(config, overrides=list(overrides)))


TINY = (
    "dataset=folders", "model=small_cnn", "trainer=cpu", "image_size=16", "dataset.batch_size=8", "trainer.max_epochs=2",
    "model.backbone_kwargs.layers=[4,pool,8,pool]", "model.head.hidden=[8]", "dataset.num_workers=0",
    "scheduler.name=none", "model.head.dropout=0.0", "optimizer.lr=0.01", "report=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def run_tiny(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a tiny network through the real code, with more overrides; returns the run's folder."""

    def run(*overrides: str, folder: Path | None = None) -> Path:
        folder = folder or tmp_path_factory.mktemp("run") / "here"
        train(composed(*TINY, f"data_dir='{colours}'", *overrides), folder, list(overrides))
        return folder

    return run


@pytest.fixture(scope="session")
def tiny_run(run_tiny: Callable[..., Path]) -> Path:
    """One finished run that the tests only read."""
    return run_tiny("trainer.max_epochs=3", "report=true")
