"""Whole runs through the real code on fabricated images: their files, metrics, settings and errors."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss
from support.fabricate import COLOURS, SHARED, TINY, composed
from support.run_files import read_json, read_rows, without_seconds

import imgclf
from imgclf.errors import CheckpointError, ConfigError, RunError
from imgclf.files import run_folder
from imgclf.files.run_folder import RunLock, create_run_folder
from imgclf.training.run import train

Run = Callable[..., Path]


def test_run_folder_has_every_file_of_a_finished_run(tiny_run: Path) -> None:
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert names == {
        ".run.lock",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "confusion_test.png",
        "confusion_val.png",
        "curves.png",
        "environment.json",
        "history.csv",
        "history.json",
        "metrics.json",
        "overrides.yaml",
        "confusion_test.csv",
        "confusion_val.csv",
        "per_class_test.csv",
        "per_class_val.csv",
        "predictions_test.csv",
        "report.html",
    }
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["model"]["head"]["hidden"] == [8]
    environment = read_json(tiny_run / "environment.json")
    assert environment["versions"]["torch"] and environment["seconds"]["total"] > 0
    for name in ("curves.png", "confusion_test.png"):
        with Image.open(tiny_run / name) as image:
            assert image.size[0] > 300


def test_metrics_have_their_schema_and_agree_with_history_and_predictions(tiny_run: Path) -> None:
    metrics = read_json(tiny_run / "metrics.json")
    assert list(metrics) == ["train", "val", "test"]
    assert [metrics[split]["count"] for split in metrics] == [36, 12, 15]
    for split, values in metrics.items():
        assert set(values) - {"ece"} == {"accuracy", "loss", "macro_f1", "correct", "count"}
        assert ("ece" in values) == (split != "train")
        assert values["accuracy"] == values["correct"] / values["count"]
    assert metrics["test"]["accuracy"] > 0.8  # three colours are easy to learn
    rows = read_rows(tiny_run / "history.csv")
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [row["epoch"] for row in read_json(tiny_run / "history.json")] == [1, 2, 3]
    assert float(rows[-1]["train_accuracy"]) == pytest.approx(metrics["train"]["accuracy"])
    assert max(float(row["val_accuracy"]) for row in rows) == pytest.approx(metrics["val"]["accuracy"])
    predictions = read_rows(tiny_run / "predictions_test.csv")
    assert list(predictions[0]) == ["file", "true", "predicted", *(f"p({name})" for name in COLOURS)]
    true = [row["true"] for row in predictions]
    predicted = [row["predicted"] for row in predictions]
    assert all(row["true"] in row["file"] for row in predictions)
    probabilities = np.array([[float(row[f"p({name})"]) for name in COLOURS] for row in predictions])
    assert metrics["test"]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert metrics["test"]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # they are written with seven digits
    assert metrics["test"]["loss"] == pytest.approx(log_loss(true, probabilities, labels=list(COLOURS)), rel=1e-4)


def test_folder_with_a_run_refuses_a_second_one(tiny_run: Path, run_tiny: Run) -> None:
    with pytest.raises(RunError, match="holds a run already; pass another"):
        run_tiny(folder=tiny_run)


@pytest.mark.parametrize("override", ["trainer.limit_val_batches=0", "dataset.splits.val=null"])
def test_run_without_validation_has_an_empty_val_loss_and_is_tested(run_tiny: Run, override: str) -> None:
    no_holdout = ("dataset.val_fraction=0",) if "splits" in override else ()
    folder = run_tiny(override, *no_holdout)
    assert read_rows(folder / "history.csv")[0]["val_loss"] == ""
    assert read_json(folder / "metrics.json")["test"]["count"] == 15


def test_backbone_stays_frozen_until_the_unfreeze_epoch(run_tiny: Run) -> None:
    phases = ("model.freeze=all", "model.unfreeze_epoch=1", "optimizer.backbone_lr=0.001", "scheduler.name=cosine")
    whole, folder = run_tiny(*phases, "trainer.max_epochs=3"), run_tiny(*phases, "trainer.max_epochs=1")
    frozen = run_tiny("model.freeze=all", "trainer.max_epochs=1")
    key = "model.network.backbone.network.features.0.weight"
    third_epoch, first_epoch, never_unfrozen = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"][key]
        for run in (whole, folder, frozen)
    )
    assert not torch.equal(third_epoch, first_epoch)
    assert torch.equal(first_epoch, never_unfrozen)


@pytest.mark.parametrize(
    "overrides",
    [
        ("mixing.mixup=0.4", "mixing.cutmix=1.0", "loss.label_smoothing=0.1", "ema_decay=0.9"),
        (
            "optimizer.name=sgd",
            "+optimizer.options.momentum=0.9",
            "scheduler.name=plateau",
            "loss.class_weights=balanced",
        ),
        (
            "optimizer.name=rmsprop",
            "scheduler.name=step",
            "scheduler.warmup_epochs=1",
            "trainer.accumulate_grad_batches=3",
        ),
        ("scheduler.name=poly", "model.head.l2=0.01", "trainer.precision=bf16-mixed", "logger=csv"),
        ("~callbacks.early_stopping", "loss.class_weights={red: 2.0}", "dataset.fraction=0.5", "checkpoint.keep=all"),
        (
            "callbacks.early_stopping.patience=1",
            "checkpoint.monitor=val_loss",
            "checkpoint.keep=improved",
            "report=false",
        ),
        ("debug=fdr",),
        ("debug=limit",),
        ("debug=profiler",),
        ("debug=overfit", "trainer.max_epochs=2"),
        ("resize=letterbox", "model.in_chans=1"),
        ("resize=crop", "dataset.augment_val=true", "seed=3"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_setting_trains_and_tests(run_tiny: Run, overrides: tuple[str, ...]) -> None:
    folder = run_tiny(*overrides)
    metrics = read_json(folder / "metrics.json")
    assert metrics["test"]["count"] > 0
    saved = sorted(path.name for path in (folder / "checkpoints").glob("epoch*"))
    if "checkpoint.keep=all" in overrides:
        assert saved == ["epoch_001.ckpt", "epoch_002.ckpt"]
    if "dataset.fraction=0.5" in overrides:
        assert metrics["train"]["count"] == 18


def test_early_stopping_ends_the_run_says_why_and_the_best_epoch_is_evaluated(
    run_tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = ("callbacks.early_stopping.patience=1", "trainer.max_epochs=8", "optimizer.lr=1e-12")
    folder = run_tiny(*stopping, "checkpoint.monitor=val_loss")
    losses = [float(row["val_loss"]) for row in read_rows(folder / "history.csv")]
    assert len(losses) < 8
    reason = f"stopped early: val_loss has not been better than {min(losses):.4f} for 1 epoch; "
    assert reason in capsys.readouterr().out
    assert read_json(folder / "metrics.json")["val"]["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_train_returns_the_best_validation_accuracy(colours: Path, tmp_path: Path) -> None:
    best = train(composed(*TINY, f"data_dir='{colours}'"), tmp_path / "run", [])
    accuracies = [float(row["val_accuracy"]) for row in read_rows(tmp_path / "run" / "history.csv")]
    assert best == pytest.approx(max(accuracies))


def test_history_depends_on_the_seed_and_not_on_the_workers(run_tiny: Run, tiny_run: Path) -> None:
    again, other = run_tiny("trainer.max_epochs=3", "dataset.num_workers=2"), run_tiny("trainer.max_epochs=3", "seed=1")
    first, second, third = (without_seconds(read_rows(run / "history.csv")) for run in (tiny_run, again, other))
    assert first == second
    assert first != third


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ("optimizer.name=adamm",),
            ConfigError,
            r"optimizer\.name=adamm: timm has no such optimizer; did you mean adam\?",
        ),
        (("+optimizer.options.speed=3",), ConfigError, "speed"),
        (("scheduler.name=zigzag",), ConfigError, "expected one of none, cosine, step, plateau, poly"),
        (("checkpoint.monitor=test_accuracy",), ConfigError, r"monitor='test_accuracy'"),
        (("checkpoint.keep=some",), ConfigError, "expected one of best, improved, all"),
        (("loss.class_weights=[1.0]",), ConfigError, "a number for each of the 3 classes"),
        (("loss.class_weights={pink: 1.0}",), ConfigError, "pink is no class of folders"),
        (
            ("dataset.augment={spin: 3}",),
            ConfigError,
            r"augment\.spin: unknown key; did you mean dataset\.augment\.shift",
        ),
        (("optimizer.lr=fast",), ConfigError, r"optimizer\.lr=fast: expected a number"),
        (("model.head.dropout=2",), ConfigError, "dropout"),
        (("dataset.num_workers=-1",), ConfigError, r"dataset\.num_workers=-1: expected a whole number"),
        (("dataset.batch_size=big",), ConfigError, r"dataset\.batch_size=big: expected a whole number"),
        (("seed=-1",), ConfigError, "seed=-1"),
        (("dataset.augment=true",), ConfigError, "expected null, or a mapping"),
        (("dataset.classes=red",), ConfigError, r"dataset\.classes=red: expected null, or a list"),
        (("loss.label_smoothing=2",), ConfigError, r"loss\.label_smoothing=2"),
        (("+callbacks.early_stopping.patiance=3",), ConfigError, r"early_stopping\.patiance: unknown key"),
        (("+checkpoint.often=1",), ConfigError, r"checkpoint\.often: unknown key"),
        (("trainer.max_epochs=ten",), ConfigError, "trainer"),
        (("model.in_chans=4",), ConfigError, r"model\.in_chans=4"),
        (("+dataset.colour=3",), ConfigError, r"dataset\.colour: unknown key"),
        (("trainer.accelerator=quantum",), ConfigError, "trainer.accelerator='quantum': expected one of auto, cpu"),
        (("image_size=0",), ConfigError, "image_size=0"),
        (("resize=stretch",), ConfigError, "expected one of squash, crop, letterbox"),
        (("model.weights=/nowhere.pth",), CheckpointError, "nowhere.pth: no such file"),
        (("model.weights=https://example.com/a.pth",), CheckpointError, "aren't loaded from URLs"),
        (("model.pretrained=true",), ConfigError, "small_cnn has no pretrained weights"),
        (("ckpt_path=/nowhere.ckpt",), CheckpointError, "nowhere.ckpt: no such file"),
        (("ckpt_path=last",), CheckpointError, "ckpt_path=last: there is no"),
        (("trainer.max_epochs=0",), ConfigError, "trainer.max_epochs=0: expected a whole number of at least 1"),
        (("logger.name=paper",), ConfigError, "expected one of none, csv, tensorboard"),
    ],
)
def test_wrong_setting_raises_one_line_that_names_it(
    run_tiny: Run, overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        run_tiny(*overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real slices of the data, which are not part of the project")
def test_pretrained_weights_train_on_the_real_cards_and_predict(tmp_path: Path) -> None:
    weights = SHARED / "weights" / "tf_mobilenetv3_small_100_qat8_in1k.safetensors"
    data = ("dataset=cards", f"data_dir={SHARED / 'data' / 'cards'}", "dataset.batch_size=8")
    settings = composed(*data, "model=mobilenetv3", "trainer=cpu", f"model.weights={weights}", "debug=fdr")
    train(settings, tmp_path / "run", [])
    classifier = imgclf.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert len(classifier.classes) == 53
    assert classifier.classifier.preprocess.mean == (0.5, 0.5, 0.5)
    assert classifier.classifier.preprocess.resize == "squash"
    assert classifier.predict(SHARED / "data" / "cards" / "valid" / "joker" / "1.jpg") in classifier.classes


def test_run_folder_goes_to_one_of_eight_runs_that_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_ENDING_SECONDS", 0)
    locks = [RunLock(tmp_path / "run") for _ in range(8)]  # the winner trains while the others start

    def start(number: int) -> bool:
        try:
            create_run_folder(tmp_path / "run", {"number": number}, [], locks[number], resuming=False)
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(start, range(8)))
    assert sum(created) == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"number": created.index(True)}
