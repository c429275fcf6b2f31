"""Fixture of tests that run trials in this process: what needs torch is forked from it, which has loaded torch already."""

import multiprocessing

import pytest

from imgclf.sweeps import finished, process


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork a trial's process from the tests' own, in place of a server that would load torch first."""
    monkeypatch.setattr(process, "_context", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(finished, "_known", {})
