"""Evaluation of a checkpoint: the run's own metrics, splits and classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.fabricate import composed, draw_tree
from support.run_files import read_json

from imgclf.errors import ConfigError, DataError, RunError
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluation_reproduces_the_metrics_and_predictions_of_the_run(
    tiny_run: Path, tmp_path: Path, split: str
) -> None:
    settings = composed(
        f"checkpoint='{tiny_run}/checkpoints/best.ckpt'", f"split={split}", "device=cpu", config="evaluate"
    )
    accuracy = evaluate_checkpoint(settings, tmp_path)
    expected = read_json(tiny_run / "metrics.json")[split]
    assert accuracy == expected["accuracy"]
    assert read_json(tmp_path / "metrics.json") == {split: expected}
    if split == "test":
        assert (tmp_path / "predictions_test.csv").read_text() == (tiny_run / "predictions_test.csv").read_text()


def test_evaluation_refuses_other_classes_and_an_unknown_split(tiny_run: Path, tmp_path: Path) -> None:
    draw_tree(tmp_path / "other", {"train": 3, "val": 1, "test": 1})
    for split in ("train", "val", "test"):
        (tmp_path / "other" / split / "red").rename(tmp_path / "other" / split / "pink")
    checkpoint = f"checkpoint='{tiny_run}/checkpoints/best.ckpt'"
    with pytest.raises(DataError, match=r"they differ \(only in the data: pink; only in the checkpoint: red\)"):
        evaluate_checkpoint(composed(checkpoint, f"data_dir='{tmp_path / 'other'}'", config="evaluate"), tmp_path)
    with pytest.raises(ConfigError, match="split='dev': expected one of train, val, test"):
        evaluate_checkpoint(composed(checkpoint, "split=dev", config="evaluate"), tmp_path)


def test_evaluation_uses_the_splits_of_training_unless_they_are_overridden(
    run_tiny: Callable[..., Path], colours: Path, tmp_path: Path
) -> None:
    folder = run_tiny(f"data_dir='{colours / 'train'}'", "dataset.test_fraction=0.25", "dataset.split_seed=3")
    checkpoint = f"checkpoint='{folder}/checkpoints/best.ckpt'"
    expected = read_json(folder / "metrics.json")["test"]
    assert expected["count"] == 9
    for number, overrides in enumerate(((), ("dataset=folders",))):
        settings = composed(checkpoint, *overrides, config="evaluate")
        evaluate_checkpoint(settings, tmp_path / str(number), overrides)
        assert read_json(tmp_path / str(number) / "metrics.json")["test"] == expected
    with pytest.raises(RunError, match="holds a run already"):
        evaluate_checkpoint(composed(checkpoint, config="evaluate"), folder)
    overrides = ["dataset=folders", "dataset.test_fraction=0.5"]
    evaluate_checkpoint(composed(checkpoint, *overrides, config="evaluate"), tmp_path / "half", overrides)
    assert read_json(tmp_path / "half" / "metrics.json")["test"]["count"] == 18


def test_other_data_without_folders_of_splits_are_measured_whole(
    run_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_tiny("dataset.name=trained")
    draw_tree(tmp_path / "new", {"photos": 7})
    words = (
        f"checkpoint='{folder}/checkpoints/best.ckpt'",
        "dataset=folders",
        f"data_dir='{tmp_path / 'new' / 'photos'}'",
    )
    evaluate_checkpoint(composed(*words, config="evaluate"), tmp_path / "all", words)
    assert read_json(tmp_path / "all" / "metrics.json")["test"]["count"] == 21
    assert "no folders of splits: all 21 images are measured" in capsys.readouterr().out
