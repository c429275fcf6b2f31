"""Fixtures of the tests of the service: a tiny model, and a service for it that all tests of a file share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service import Asked, running

from imgclf.inference import load
from imgclf.serving.models import ServedModel


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> ServedModel:
    """Model of three colours at 16 x 16 pixels."""
    model = ServedModel("colours", load(tiny_run, "cpu"))
    model.warm_up()
    return model


@pytest.fixture(scope="module")
def asked(tiny_model: ServedModel) -> Iterator[Asked]:
    """Service of two models with a body of at most 1 MiB, which fetches addresses of this machine."""
    second = ServedModel("second", tiny_model.predictor)
    with running([tiny_model, second], max_bytes=2**20, threshold=0.1, allow_private=True) as site:
        yield site


@pytest.fixture(scope="session")
def red(colours: Path) -> bytes:
    """The file of a red test image."""
    return (colours / "test" / "red" / "000.png").read_bytes()
