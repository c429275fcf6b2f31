"""Fixtures that all tests share: fabricated data and a finished run on it. Nothing is downloaded."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.fabricate import SHARED, TINY, composed, draw_tree

from imgclf.files import run_folder
from imgclf.training.run import train

torch.set_num_threads(1)
pytest_plugins = ["support.trust_table"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that several test processes end together."""
    items.sort(key=lambda item: item.path.name not in ("test_trials.py", "test_distributed.py"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and the runs that they share, away from the user's cache, data and latest run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGCLF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.delenv("IMGCLF_DATA", raising=False)
        patch.delenv("IMGCLF_WEIGHTS", raising=False)
        patch.setattr(run_folder, "LATEST", tmp_path_factory.getbasetemp() / "outputs" / "latest")
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real slices and weights, which only the developers have."""
    if not SHARED.is_dir():
        pytest.skip("needs the real slices of the data, which are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 12 training, 4 validation and 5 test images of each of three colours."""
    return draw_tree(tmp_path_factory.mktemp("colours"), {"train": 12, "valid": 4, "test": 5})


@pytest.fixture(scope="session")
def run_tiny(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that trains a tiny network with more overrides and returns the run's folder."""

    def run(*overrides: str, folder: Path | None = None) -> Path:
        folder = folder or tmp_path_factory.mktemp("run") / "here"
        train(composed(*TINY, f"data_dir='{colours}'", *overrides), folder, list(overrides))
        return folder

    return run


@pytest.fixture(scope="session")
def tiny_run(run_tiny: Callable[..., Path]) -> Path:
    """Folder of a finished run that the tests only read."""
    return run_tiny("trainer.max_epochs=3", "report=true")
