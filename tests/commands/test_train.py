"""Whole runs through the real code on fabricated pictures: what they write, and that it is true."""

import csv
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer
from sklearn.metrics import accuracy_score, f1_score, log_loss
from support.fabricate import COLOURS, SHARED, TINY, composed, draw_tree

import imgclf
from imgclf.console import silence_library_logs
from imgclf.errors import CheckpointError, ConfigError, DataError, RunError
from imgclf.files.run_folder import create_run_folder
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.resume import find_checkpoint
from imgclf.training.run import train

Run = Callable[..., Path]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_run(tiny_run: Path) -> None:
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert names == {
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "confusion_test.png", "confusion_val.png",
        "curves.png", "environment.json", "history.csv", "history.json", "metrics.json", "overrides.yaml",
        "per_class_test.csv", "per_class_val.csv", "predictions_test.csv", "report.html",
    }  # fmt: skip
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["model"]["head"]["hidden"] == [8]
    environment = read_json(tiny_run / "environment.json")
    assert environment["versions"]["torch"] and environment["seconds"]["total"] > 0
    for name in ("curves.png", "confusion_test.png"):
        with Image.open(tiny_run / name) as picture:
            assert picture.size[0] > 300


def test_schemas_and_arithmetic(tiny_run: Path) -> None:
    metrics = read_json(tiny_run / "metrics.json")
    assert list(metrics) == ["train", "val", "test"]
    assert [metrics[split]["count"] for split in metrics] == [36, 12, 15]
    for split, values in metrics.items():
        assert set(values) - {"ece"} == {"accuracy", "loss", "top5", "macro_f1", "correct", "count"}
        assert ("ece" in values) == (split != "train")
        assert values["accuracy"] == values["correct"] / values["count"]
    assert metrics["test"]["accuracy"] > 0.8  # three colours are no challenge
    rows = read_rows(tiny_run / "history.csv")
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert float(rows[-1]["train_accuracy"]) == pytest.approx(metrics["train"]["accuracy"])
    assert max(float(row["val_accuracy"]) for row in rows) == pytest.approx(metrics["val"]["accuracy"])
    predictions = read_rows(tiny_run / "predictions_test.csv")
    assert list(predictions[0]) == ["file", "true", "predicted", *COLOURS]
    true = [row["true"] for row in predictions]
    predicted = [row["predicted"] for row in predictions]
    assert all(row["true"] in row["file"] for row in predictions)
    probabilities = np.array([[float(row[name]) for name in COLOURS] for row in predictions])
    assert metrics["test"]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert metrics["test"]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # they were written with seven digits
    assert metrics["test"]["loss"] == pytest.approx(log_loss(true, probabilities, labels=list(COLOURS)), rel=1e-4)


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_gives_the_numbers_of_the_run(tiny_run: Path, tmp_path: Path, split: str) -> None:
    settings = composed(
        f"checkpoint='{tiny_run}/checkpoints/best.ckpt'", f"split={split}", "device=cpu", config="evaluate"
    )
    accuracy = evaluate_checkpoint(settings, tmp_path)
    expected = read_json(tiny_run / "metrics.json")[split]
    assert accuracy == expected["accuracy"]
    assert read_json(tmp_path / "metrics.json") == {split: expected}
    if split == "test":
        assert (tmp_path / "predictions_test.csv").read_text() == (tiny_run / "predictions_test.csv").read_text()


def test_evaluate_refuses_other_classes(tiny_run: Path, tmp_path: Path) -> None:
    draw_tree(tmp_path / "other", {"train": 3, "val": 1, "test": 1})
    for split in ("train", "val", "test"):
        (tmp_path / "other" / split / "red").rename(tmp_path / "other" / split / "pink")
    checkpoint = f"checkpoint='{tiny_run}/checkpoints/best.ckpt'"
    with pytest.raises(DataError, match=r"they differ \(only in the data: pink; only in the checkpoint: red\)"):
        evaluate_checkpoint(composed(checkpoint, f"data_dir='{tmp_path / 'other'}'", config="evaluate"), tmp_path)
    with pytest.raises(ConfigError, match="split='dev': expected one of train, val, test"):
        evaluate_checkpoint(composed(checkpoint, "split=dev", config="evaluate"), tmp_path)


def test_load_and_predict(tiny_run: Path, colours: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.ckpt"  # nothing but the file
    shutil.copy(tiny_run / "checkpoints" / "best.ckpt", moved)
    classifier = imgclf.load(moved)
    assert classifier.classes == tuple(COLOURS)
    assert classifier.metrics == read_json(tiny_run / "metrics.json")
    assert [row["epoch"] for row in classifier.history][:1] == [0]
    rows = read_rows(tiny_run / "predictions_test.csv")
    files = [row["file"] for row in rows]
    expected = np.array([[float(row[name]) for name in COLOURS] for row in rows], dtype=np.float32)
    probabilities = classifier.predict_proba(files)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities, expected, atol=1e-6)
    assert classifier.predict(files) == [row["predicted"] for row in rows]
    assert classifier.predict(files[0]) == rows[0]["predicted"]
    assert classifier.predict(Path(files[0])) == rows[0]["predicted"]
    assert classifier.predict(colours / "test") == classifier.predict(files)
    image = Image.open(files[0])
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for one in (image, array, tensor, tensor / 255):
        assert np.allclose(classifier.predict_proba(one), expected[:1], atol=1e-6)
    assert classifier.predict([image, files[1], array]) == [rows[i]["predicted"] for i in (0, 1, 0)]
    assert classifier.predict(np.stack([array, array])) == [rows[0]["predicted"]] * 2
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 3)


def test_predicting_what_is_no_picture(tiny_run: Path, colours: Path, tmp_path: Path) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    good, bad = colours / "test" / "red" / "000.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    with pytest.raises(imgclf.ImageError, match=r"bad\.png"):
        classifier.predict([good, bad])
    first, second, third = classifier.predict([good, bad, tmp_path / "none.png"], errors="return")
    assert first in COLOURS
    assert isinstance(second, imgclf.ImageError) and isinstance(third, imgclf.ImageError)
    probabilities = classifier.predict_proba([good, bad], errors="return")
    assert np.isfinite(probabilities[0]).all() and np.isnan(probabilities[1]).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        classifier.predict(tmp_path / "empty")


def test_lightning_loads_it_too(tiny_run: Path) -> None:
    classifier = imgclf.ImageClassifier.load_from_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    assert classifier.classes == tuple(COLOURS)
    assert not classifier.training
    other = classifier.replace_head(["a", "b"])
    assert other(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 2)


def test_a_folder_holds_one_run(tiny_run: Path, run_tiny: Run) -> None:
    with pytest.raises(RunError, match="holds a run already; pass another"):
        run_tiny(folder=tiny_run)


def test_going_on_with_a_run(run_tiny: Run, tmp_path: Path) -> None:
    whole = run_tiny("trainer.max_epochs=3", "dataset.augment={rotation_degrees: 10}")
    folder = run_tiny("trainer.max_epochs=2", "dataset.augment={rotation_degrees: 10}")
    run_tiny("trainer.max_epochs=3", "dataset.augment={rotation_degrees: 10}", "ckpt_path=last", folder=folder)
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, folder))
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    drop = ("seconds",)
    histories = [
        [{k: v for k, v in row.items() if k not in drop} for row in c["imgclf"]["history"]] for c in (one, two)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 3
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    with pytest.raises(CheckpointError, match="ckpt_path=last: there is no checkpoint in"):
        find_checkpoint("last", tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.head.dropout=0.3", "dataset.augment={rotation_degrees: 10}", "scheduler.name=cosine"),
        ("trainer.accumulate_grad_batches=2", "ema_decay=0.9", "mixing.mixup=0.4", "scheduler.name=plateau"),
    ],
)
def test_going_on_within_an_epoch(run_tiny: Run, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]) -> None:
    overrides = (*overrides, "checkpoint.every_n_steps=1", "trainer.max_epochs=3")
    stops: dict[int, bytes] = {}
    save = CheckpointCallback._save

    def save_and_keep(self: CheckpointCallback, trainer: Trainer) -> Path:
        path = save(self, trainer)
        stops[trainer.global_step] = path.read_bytes()
        return path

    monkeypatch.setattr(CheckpointCallback, "_save", save_and_keep)
    whole = torch.load(run_tiny(*overrides) / "checkpoints" / "last.ckpt", weights_only=True)
    monkeypatch.setattr(CheckpointCallback, "_save", save)
    assert len(stops) == whole["global_step"]  # one at every step, the epochs' ends among them
    for step in sorted(stops)[1 : len(stops) - 1 : 3]:
        folder = run_tiny(*overrides, "trainer.max_epochs=1")
        (folder / "checkpoints" / "last.ckpt").write_bytes(stops[step])
        run_tiny(*overrides, "ckpt_path=last", folder=folder)
        again = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for key, value in whole["state_dict"].items():
            assert torch.equal(value, again["state_dict"][key]), (step, key)
        assert without_seconds(whole["imgclf"]["history"]) == without_seconds(again["imgclf"]["history"]), step


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_going_on_from_another_run(run_tiny: Run, tiny_run: Path) -> None:
    last = tiny_run / "checkpoints" / "last.ckpt"
    folder = run_tiny(f"ckpt_path='{last}'", "trainer.max_epochs=4")
    assert len(read_rows(folder / "history.csv")) == 4
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    for change, message in (
        ("dataset.classes=[red,blue]", r"its run had dataset\.classes=None, this one has \['red', 'blue'\]"),
        ("model.head.hidden=[9]", r"its run had model.head.hidden=\[8\], this one has \[9\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run_tiny(f"ckpt_path='{last}'", change)


@pytest.mark.parametrize("override", ["trainer.limit_val_batches=0", "dataset.splits.val=null"])
def test_without_validation(run_tiny: Run, override: str) -> None:
    more = ("dataset.val_fraction=0",) if "splits" in override else ()
    folder = run_tiny(override, *more)
    assert read_rows(folder / "history.csv")[0]["val_loss"] == ""
    assert read_json(folder / "metrics.json")["test"]["count"] == 15


def test_lightning_tests_and_predicts(tiny_run: Path, colours: Path) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt").classifier
    data = imgclf.ImageDataModule(colours, preprocess=classifier.preprocess, batch_size=8)
    silence_library_logs()
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    (answer,) = trainer.test(classifier, datamodule=data, verbose=False)
    expected = read_json(tiny_run / "metrics.json")["test"]
    assert answer["test_accuracy"] == pytest.approx(expected["accuracy"])
    assert answer["test_loss"] == pytest.approx(expected["loss"], rel=1e-4)
    predictions = trainer.predict(classifier, datamodule=data)
    assert sum(len(part) for part in predictions or []) == 15


def test_loading_leaves_random_numbers_alone(tiny_run: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    assert torch.equal(torch.rand(3), expected)


def test_evaluate_keeps_the_splits_that_were_trained_on(run_tiny: Run, colours: Path, tmp_path: Path) -> None:
    folder = run_tiny(f"data_dir='{colours / 'train'}'", "dataset.test_fraction=0.25", "dataset.split_seed=3")
    checkpoint = f"checkpoint='{folder}/checkpoints/best.ckpt'"
    expected = read_json(folder / "metrics.json")["test"]
    assert expected["count"] == 9
    for number, more in enumerate(((), ("dataset=folders",))):
        settings = composed(checkpoint, *more, config="evaluate")
        evaluate_checkpoint(settings, tmp_path / str(number), more)
        assert read_json(tmp_path / str(number) / "metrics.json")["test"] == expected
    with pytest.raises(RunError, match="holds a run already"):
        evaluate_checkpoint(composed(checkpoint, config="evaluate"), folder)
    typed = ["dataset=folders", "dataset.test_fraction=0.5"]
    evaluate_checkpoint(composed(checkpoint, *typed, config="evaluate"), tmp_path / "typed", typed)
    assert read_json(tmp_path / "typed" / "metrics.json")["test"]["count"] == 18


def test_two_phases_survive_a_stop(run_tiny: Run) -> None:
    phases = ("model.freeze=all", "model.unfreeze_epoch=1", "optimizer.backbone_lr=0.001", "scheduler.name=cosine")
    whole, folder = run_tiny(*phases, "trainer.max_epochs=3"), run_tiny(*phases, "trainer.max_epochs=1")
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, folder)]
    key = "model.network.backbone.network.features.0.weight"
    assert not torch.equal(states[0][key], states[1][key])
    frozen = run_tiny("model.freeze=all", "trainer.max_epochs=1")
    assert torch.equal(
        states[1][key], torch.load(frozen / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"][key]
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("mixing.mixup=0.4", "mixing.cutmix=1.0", "loss.label_smoothing=0.1", "ema_decay=0.9"),
        ("optimizer.name=sgd", "+optimizer.options.momentum=0.9", "scheduler.name=plateau", "loss.class_weights=balanced"),
        ("optimizer.name=rmsprop", "scheduler.name=step", "scheduler.warmup_epochs=1", "trainer.accumulate_grad_batches=3"),
        ("scheduler.name=poly", "model.head.l2=0.01", "trainer.precision=bf16-mixed", "logger=csv"),
        ("~callbacks.early_stopping", "loss.class_weights={red: 2.0}", "dataset.fraction=0.5", "checkpoint.keep=all"),
        ("callbacks.early_stopping.patience=1", "checkpoint.monitor=val_loss", "checkpoint.keep=improved", "report=false"),
        ("debug=fdr",), ("debug=limit",), ("debug=profiler",), ("debug=overfit", "trainer.max_epochs=2"),
        ("resize=letterbox", "model.in_chans=1"), ("resize=crop", "dataset.augment_val=true", "seed=3"),
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_settings_run(run_tiny: Run, overrides: tuple[str, ...]) -> None:
    folder = run_tiny(*overrides)
    metrics = read_json(folder / "metrics.json")
    assert metrics["test"]["count"] > 0
    kept = sorted(path.name for path in (folder / "checkpoints").glob("epoch*"))
    if "checkpoint.keep=all" in overrides:
        assert kept == ["epoch_000.ckpt", "epoch_001.ckpt"]
    if "dataset.fraction=0.5" in overrides:
        assert metrics["train"]["count"] == 18


def test_early_stopping_stops_and_the_best_is_tested(run_tiny: Run) -> None:
    folder = run_tiny("callbacks.early_stopping.patience=1", "trainer.max_epochs=8", "optimizer.lr=1e-12",
                      "checkpoint.monitor=val_loss")  # fmt: skip
    losses = [float(row["val_loss"]) for row in read_rows(folder / "history.csv")]
    assert len(losses) < 8
    assert read_json(folder / "metrics.json")["val"]["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_main_returns_the_best_validation_metric(colours: Path, tmp_path: Path) -> None:
    best = train(composed(*TINY, f"data_dir='{colours}'"), tmp_path / "run", [])
    accuracies = [float(row["val_accuracy"]) for row in read_rows(tmp_path / "run" / "history.csv")]
    assert best == pytest.approx(max(accuracies))


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(run_tiny: Run, tiny_run: Path) -> None:
    again, other = run_tiny("trainer.max_epochs=3", "dataset.num_workers=2"), run_tiny("trainer.max_epochs=3", "seed=1")
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(tiny_run / "history.csv")]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(again / "history.csv")]
    assert drop != [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(other / "history.csv")]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("optimizer.name=adamm",), ConfigError, r"optimizer\.name='adamm'"),
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
        (("trainer.accelerator=quantum",), ConfigError, "trainer: .*quantum"),
        (("image_size=0",), ConfigError, "image_size=0"),
        (("resize=stretch",), ConfigError, "expected one of squash, crop, letterbox"),
        (("model.weights=/nowhere.pth",), CheckpointError, "nowhere.pth: no such file"),
        (("model.weights=https://example.com/a.pth",), CheckpointError, "aren't loaded from URLs"),
        (("model.pretrained=true",), ConfigError, "small_cnn has no pretrained weights"),
        (("ckpt_path=/nowhere.ckpt",), CheckpointError, "nowhere.ckpt: no such file"),
        (("ckpt_path=last",), CheckpointError, "ckpt_path=last: there is no"),
        (("trainer.max_epochs=0",), RunError, "no epoch was trained"),
        (("logger.name=paper",), ConfigError, "expected one of none, csv, tensorboard"),
    ],
)
def test_mistakes_are_one_line(run_tiny: Run, overrides: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        run_tiny(*overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real slices of the data, which are not part of the project")
def test_real_cards_with_real_weights(tmp_path: Path) -> None:
    weights = SHARED / "weights" / "tf_mobilenetv3_small_100_qat8_in1k.safetensors"
    settings = composed("dataset=cards", "model=mobilenetv3", "trainer=cpu", f"data_dir={SHARED / 'data' / 'cards'}",
                        f"model.weights={weights}", "debug=fdr", "dataset.batch_size=8")  # fmt: skip
    train(settings, tmp_path / "run", [])
    classifier = imgclf.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert len(classifier.classes) == 53
    assert classifier.classifier.preprocess.mean == (0.5, 0.5, 0.5)
    assert classifier.classifier.preprocess.resize == "squash"
    assert classifier.predict(SHARED / "data" / "cards" / "valid" / "joker" / "1.jpg") in classifier.classes


def test_of_two_runs_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    def start(number: int) -> bool:
        try:
            create_run_folder(tmp_path / "run", {"number": number}, [], resuming=False)
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(start, range(8)))
    assert sum(won) == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"number": won.index(True)}
