"""Runs on data with files that can't be read: the error that ends them, and `check=true` and `check=exclude`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.fabricate import composed

from imgclf.errors import DataError, ImageError
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint

Run = Callable[..., Path]
BAD = ("train/red/003.png", "test/blue/001.png")


@pytest.fixture(scope="module")
def damaged(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of which one training and one test image are truncated."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(colours, folder)
    for name in BAD:
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def excluding(damaged: Path, run_tiny: Run) -> Path:
    """Folder of a run that leaves these files out, and another that the user has chosen."""
    own = damaged.parent / "own.json"
    report = {"format": "imgclf check 2", "name": "folders", "classes": ["blue", "green", "red"]}
    own.write_text(json.dumps({**report, "exclude": [{"split": "train", "path": "train/red/000.png"}]}))
    return run_tiny(f"data_dir='{damaged}'", "check=exclude", f"dataset.exclude='{own}'", "trainer.max_epochs=1")


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_an_unreadable_image_ends_the_run_with_its_name_and_the_ways_out(
    damaged: Path, run_tiny: Run, cache: str
) -> None:
    with pytest.raises(ImageError) as raised:
        run_tiny(f"data_dir='{damaged}'", "+dataset.split_seed=1", f"cache={cache}")
    text = str(raised.value)
    assert text.startswith("train/red/003.png: ") and "\n" not in text
    assert "run `imgclf check 'data_dir=" in text and "+dataset.split_seed=1`" in text
    assert text.endswith("and train with dataset.exclude=<its check.json>, or pass check=exclude")


def test_check_true_stops_before_training_and_names_check_exclude(damaged: Path, run_tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^check: 2 files can't be read: .*; pass check=exclude") as raised:
        run_tiny(f"data_dir='{damaged}'", "check=true", folder=tmp_path / "run")
    assert all(name in str(raised.value) for name in BAD)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"check.json", "check.html"}, (
        "no run, to be repeated"
    )


def test_check_true_only_warns_of_what_can_be_trained_on(
    colours: Path, run_tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_tiny(f"data_dir='{colours}'", "check=true", "trainer.max_epochs=1")
    printed = capsys.readouterr().out
    found = len(json.loads((folder / "check.json").read_text())["exclude"])
    assert "check: duplicates in several splits" in printed and f"{found} of these would be left out by" in printed
    assert found > 0 and json.loads((folder / "metrics.json").read_text())["train"]["count"] == 36


def test_check_exclude_trains_without_the_files_and_says_how_many(
    damaged: Path, run_tiny: Run, excluding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((excluding / "metrics.json").read_text())
    assert [metrics[split]["count"] for split in ("train", "val", "test")] == [34, 12, 14]
    assert {"check.json", "check.html", "excluded.json"} <= {path.name for path in excluding.iterdir()}
    settings = yaml.safe_load((excluding / "config.yaml").read_text())
    assert settings["dataset"]["exclude"] == str(excluding / "excluded.json")
    run_tiny(f"data_dir='{damaged}'", "check=exclude", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert f"check: 2 files can't be read and are left out: {', '.join(BAD)}\n" in capsys.readouterr().out


def test_resume_and_evaluate_use_the_same_files_without_another_check(
    excluding: Path, run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgclf.quality.run.scan", lambda *_: pytest.fail("checked again"))
    folder = tmp_path / "moved"
    shutil.copytree(excluding, folder)
    from imgclf.training.run import train

    words = [f"resume='{folder}'", "trainer.max_epochs=2"]
    train(composed(*words), folder, words)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [metrics[split]["count"] for split in ("train", "val", "test")] == [34, 12, 14]
    evaluate_checkpoint(composed(f"checkpoint='{folder}'", "report=false", config="evaluate"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["count"] == 14
