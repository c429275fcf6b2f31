"""Every number that a checkpoint or a run's config.yaml brings has two ends, and one beyond them is refused in one line."""

import copy
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.fabricate import composed
from support.memory import in_child

import imgclf
from imgclf import config as settings
from imgclf.config import EvaluateConfig, RunConfig
from imgclf.errors import CheckpointError, ConfigError
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.models.checkpoint import (
    check_checkpoint,
    checkpoint_errors,
    read_checkpoint,
)
from imgclf.models.metadata import CheckpointMetadata, DataFacts
from imgclf.preprocess import Preprocess
from imgclf.schema import Settings
from imgclf.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in the POSIX way")
GROUPS = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)]
ABSURD = [10**30, -(10**30), float("nan"), float("inf"), -float("inf"), 1e300]
NOT_NUMBERS = [True, "many"]
TRIED = pytest.mark.trust("absurd numbers in each place of a checkpoint and a run's settings", "a traceback or 300 MB")
ANYTHING = ("model.backbone_kwargs", "model.head.l2", "trainer.devices", "trainer.max_time")
Record = Callable[[str, object], None]
MEASURED = ("imgclf.metrics", "imgclf.history", "imgclf.running")  # may be infinite, large, or no number
# Where text and truth values have a meaning, and settings whose types are checked where they are used.
UNTYPED = (
    "hyper_parameters.model.backbone_kwargs",
    "hyper_parameters.model.head.l2",
    "imgclf.config",
    "imgclf.metrics",
)


@pytest.mark.parametrize("kind", [*GROUPS, Preprocess, CheckpointMetadata, DataFacts], ids=lambda kind: kind.__name__)
def test_each_number_has_two_ends(kind: type) -> None:
    for item in fields(kind):
        if re.search(r"\b(int|float|Any)\b", getattr(item.type, "__name__", "") + str(item.type)):
            limits = dict(item.metadata.get("limits", ()))
            low, high = limits.get("of at least", limits.get("above")), limits.get("at most", limits.get("below"))
            low = limits.get("above") if low is None else low
            high = limits.get("below") if high is None else high
            assert low is not None and high is not None, f"{kind.__name__}.{item.name}"


def numbers_in(value: Any, key: str = "") -> list[str]:
    """Return the dotted places of the numbers in nested dictionaries and lists; of a list the first item's."""
    if isinstance(value, dict):
        return [place for name, inner in value.items() for place in numbers_in(inner, f"{key}.{name}" if key else name)]
    if isinstance(value, list) and value:
        return numbers_in(value[0], f"{key}.0")
    return [key] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def may_be(place: str, value: float) -> bool:
    return place.startswith(MEASURED) and (not math.isfinite(value) or abs(value) < 1e100)


def placed(contents: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """Return a copy with the value in the place."""
    *parts, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    changed = inner = copy.deepcopy(contents)
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return changed


def test_absurd_settings_are_refused_wherever_they_come_from() -> None:
    tried = 0
    for kind in GROUPS:
        for item in fields(kind):
            if not re.search(r"\b(int|float)\b", str(item.type)) or "[" in str(item.type):
                continue
            bad = [
                *ABSURD,
                *([] if "bool" in str(item.type) else [True]),
                *([] if "str" in str(item.type) else ["many"]),
            ]
            for value in bad:
                with pytest.raises(ConfigError) as raised:
                    kind.from_dict({item.name: value})
                assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
                tried += 1
    assert tried > 300


@TRIED
def test_absurd_numbers_in_a_checkpoint_are_refused(tiny_run: Path, tmp_path: Path, record_property: Record) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    parts = {name: checkpoint[name] for name in ("hyper_parameters", "imgclf")}
    places = numbers_in(parts)
    assert {"imgclf.config.dataset.num_workers", "hyper_parameters.preprocess.crop_pct"} <= set(places)
    cases = [(place, value) for place in places for value in ABSURD if not may_be(place, value)]
    cases += [(place, value) for place in places for value in NOT_NUMBERS if not place.startswith(UNTYPED)]

    def check_all() -> None:
        for place, value in cases:
            with pytest.raises(CheckpointError) as raised, checkpoint_errors("c.ckpt"):
                check_checkpoint(checkpoint | placed(parts, place, value))
                pytest.fail(f"{place}={value!r} was accepted")
            assert "\n" not in str(raised.value) and len(str(raised.value)) < 600, str(raised.value)

    outcome = in_child(check_all)
    assert outcome.text == "accepted" and outcome.megabytes < 300, outcome
    record_property("tried", len(cases))
    torch.save(checkpoint | placed(parts, "hyper_parameters.preprocess.crop_pct", 0.01), tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=r"c\.ckpt: crop_pct=0\.01: expected a number of at least 0\.1"):
        imgclf.load(tmp_path / "c.ckpt")


def test_checkpoint_of_a_run_with_infinite_losses_is_loaded(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    checkpoint["imgclf"]["history"][0]["val_loss"] = float("inf")
    checkpoint["imgclf"]["running"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "c.ckpt")
    assert imgclf.load(tmp_path / "c.ckpt").classes == ("blue", "green", "red")


@TRIED
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_workers", 5000), ("num_workers", "many"), ("batch_size", 10**12), ("batch_size", True), ("fraction", 1e300)],
)
def test_neither_evaluate_nor_resume_uses_an_absurd_number(
    key: str, value: object, tiny_run: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    torch.save(placed(checkpoint, f"imgclf.config.dataset.{key}", value), tmp_path / "c.ckpt")
    evaluate = EvaluateConfig(str(tmp_path / "c.ckpt"), device="cpu", report=False)
    outcome = in_child(lambda: evaluate_checkpoint(evaluate, tmp_path / "evaluated"))
    assert outcome.refused and f"dataset.{key}" in outcome.text, outcome
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(placed(saved, f"dataset.{key}", value)))
    overrides = [f"resume='{folder}'", "trainer.max_epochs=9"]
    outcome = in_child(lambda: train(composed(*overrides), folder, overrides))
    assert outcome.refused and f"dataset.{key}={value!r}"[:30] in outcome.text, outcome


@TRIED
def test_absurd_numbers_in_a_runs_settings_are_refused(tiny_run: Path, record_property: Record) -> None:
    saved = yaml.safe_load((tiny_run / "config.yaml").read_text())
    places, tried = numbers_in(saved), 0
    for place in places:
        for value in ABSURD + ([] if place.startswith(ANYTHING) else NOT_NUMBERS):
            with pytest.raises(ConfigError) as raised:
                RunConfig.from_dict(placed(saved, place, value))
            assert "\n" not in str(raised.value)
            tried += 1
    record_property("tried", tried)


def test_image_is_not_enlarged_without_end_before_it_is_cropped() -> None:
    with pytest.raises(ConfigError, match=r"crop_pct=0\.01: expected a number of at least 0\.1 and at most 1"):
        Preprocess(crop_pct=0.01, resize="crop")
    with pytest.raises(ConfigError, match="images would be enlarged to 8,192 pixels"):
        Preprocess(size=4096, crop_pct=0.5, resize="crop")
    assert Preprocess(size=4096, resize="crop").size == 4096
