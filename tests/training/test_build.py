"""Names and weights are checked first; each experiment tracker's own reader returns what a run logged."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from imgclf.errors import CheckpointError, ConfigError
from imgclf.models import load_image_model
from imgclf.signals import Interrupted
from imgclf.training import build
from imgclf.training.checkpointing import CheckpointCallback
from imgclf.training.lr_finder import find
from imgclf.training.run import train

from support.fabricate import TINY, composed  # isort: skip
from support.run_files import read_json, read_rows  # isort: skip

RunTiny = Callable[..., Path]


def validation(folder: Path) -> list[float]:
    return [row["val_accuracy"] for row in read_json(folder / "history.json")]


def test_csv_logger_writes_the_validation_accuracies_into_one_file(run_tiny: RunTiny) -> None:
    folder = run_tiny("logger=csv")
    rows = [row for row in read_rows(folder / "csv" / "metrics.csv") if row["val_accuracy"]]
    assert [float(row["val_accuracy"]) for row in rows] == pytest.approx(validation(folder))
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert not (folder / "csv" / "version_0").exists()


CSV = ("logger=csv", "trainer.max_epochs=3", "checkpoint.every_n_steps=1")
KILLED = pytest.param("epoch's end, killed", marks=pytest.mark.exhaustive)


@pytest.fixture(scope="module")
def uninterrupted(run_tiny: RunTiny) -> list[dict[str, str]]:
    """Rows of metrics.csv of a run of three epochs."""
    return read_rows(run_tiny(*CSV) / "csv" / "metrics.csv")


@pytest.mark.trust("runs with logger=csv stopped at and within epochs, then resumed", "a row lost, doubled or changed")
@pytest.mark.parametrize("at", ["epoch's end, by a signal", "within an epoch", "last epoch", KILLED])
def test_csv_logger_has_the_rows_of_the_uninterrupted_run(
    at: str, uninterrupted: list[dict[str, str]], run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, save, saved = tmp_path / "run", CheckpointCallback._save, []

    def stop(self: CheckpointCallback, trainer: Trainer, **options: Any) -> Path:
        path = save(self, trainer, **options)
        saved.append(trainer.global_step)  # 5 an epoch
        if saved[-1] == (8 if at == "within an epoch" else 10):
            if at == "epoch's end, by a signal":
                self.signals.pending = 15
            else:
                raise Interrupted(9)
        return path

    if at == "last epoch":
        run_tiny("logger=csv", "trainer.max_epochs=2", folder=folder)
    else:
        monkeypatch.setattr(CheckpointCallback, "_save", stop)
        with pytest.raises(Interrupted):
            run_tiny(*CSV, folder=folder)
        monkeypatch.undo()
    metrics = folder / "csv" / "metrics.csv"
    if at == "within an epoch":  # one more column, and rows that were written behind the last checkpoint
        lines = metrics.read_text().splitlines()
        lines += [lines[-1].replace(",4,", ",9,"), "0.5"]
        metrics.write_text("\n".join([lines[0] + ",zzz", *(f"{line},7" for line in lines[1:])]))
    monkeypatch.chdir(tmp_path)
    train(composed(f"resume='{folder}'", "trainer.max_epochs=3"), folder, ["trainer.max_epochs=3"])
    rows = read_rows(metrics)
    if at == "within an epoch":
        assert [row.pop("zzz") for row in rows] == ["7", "7", "", "", "", "", ""]
    assert rows == uninterrupted


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs the extra tensorboard")
def test_tensorboard_reads_back_the_validation_and_test_accuracies(run_tiny: RunTiny) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_tiny("logger=tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("val_accuracy")] == pytest.approx(validation(folder))
    tested = read_json(folder / "metrics.json")["test"]
    assert events.Scalars("best_test_accuracy")[0].value == pytest.approx(tested["accuracy"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.skipif(not find_spec("mlflow"), reason="needs the extra mlflow")
def test_mlflow_reads_back_the_metrics_and_settings_of_two_runs(run_tiny: RunTiny, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/tracked/mlflow.db"
    folders = [run_tiny("logger=mlflow", f"logger.uri='{uri}'", f"seed={seed}") for seed in (0, 1)]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("imgclf")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert len(runs) == 2 and {run.info.status for run in runs} == {"FINISHED"}
    for run, folder in zip(runs, folders, strict=True):
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [metric.value for metric in history] == pytest.approx(validation(folder))
        tested = read_json(folder / "metrics.json")["test"]
        assert run.data.metrics["best_test_accuracy"] == pytest.approx(tested["accuracy"])
        assert run.data.params["model/backbone"] == "small_cnn"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not find_spec("wandb"), reason="needs the extra wandb")
def test_wandb_offline_file_has_the_validation_and_test_accuracies(run_tiny: RunTiny) -> None:
    import wandb

    folder = run_tiny("logger=wandb")
    wandb.finish()
    (stored,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    assert b"val_accuracy" in content and b"best_test_accuracy" in content


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_tracker_raises_config_error_with_its_install_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"logger={name}: .* `pip install -e \"\.\[{name}\]\"`"):
        build.check_names(composed(f"logger={name}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.name=adamwq"], "optimizer.name=adamwq: timm has no such optimizer; did you mean adamw?"),
        (["+optimizer.options.momentun=0.9"], "optimizer.options={'momentun': 0.9}"),
        (
            ["model=timm", "model.backbone=resnet19"],
            "model.backbone=resnet19: timm has no network of that name; did you mean",
        ),
        (["trainer.strategy=dpp"], "trainer.strategy=dpp: imgclf trains on one device, or with ddp on several"),
    ],
)
def test_unknown_name_is_refused_before_data_are_read(overrides: list[str], message: str, tmp_path: Path) -> None:
    for task in ("check=exclude", "find=lr"):
        config = composed("data_dir=/nowhere", task, *overrides)
        with pytest.raises(ConfigError) as raised:
            find(config, tmp_path / "run") if config.find else train(config, tmp_path / "run", overrides)
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()


def test_unknown_class_in_the_class_weights_is_answered_with_the_nearest(colours: Path) -> None:
    config = composed(*TINY, f"data_dir='{colours}'", "loss.class_weights={gren: 2}")
    with pytest.raises(ConfigError, match="gren is no class of folders; did you mean green"):
        build.build_classifier(config, build.data_of(config))


def test_training_starts_from_the_weights_folder_of_the_environment(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    source = timm.create_model("test_resnet", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "test_resnet.pth")
    config = composed(
        *TINY, "model=timm", "model.backbone=test_resnet", "~model.backbone_kwargs.layers", f"data_dir='{colours}'"
    )
    monkeypatch.setenv("IMGCLF_WEIGHTS", str(tmp_path))
    trained = build.build_classifier(config, build.data_of(config))
    expected = source.state_dict()
    own = trained.network.backbone.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in expected.items() if key in own)


def test_misspelt_logger_option_raises_config_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flush"):
        build._build_logger(composed("logger=csv", "+logger.options.flush=3").logger, tmp_path)


@pytest.mark.parametrize("key", ["checkpoint", "callbacks.early_stopping"])
def test_top5_of_three_classes_cannot_be_watched(run_tiny: RunTiny, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"monitor=val_top5: no metric of 3 classes; .* more than 5"):
        run_tiny(f"{key}.monitor=val_top5", folder=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_training_starts_from_the_weights_of_a_run_of_ones_own(tiny_run: Path, colours: Path) -> None:
    config = composed(*TINY, f"data_dir='{colours}'", f"model.weights='{tiny_run}'", "seed=5")
    classifier = build.build_classifier(config, build.data_of(config))
    trained = load_image_model(tiny_run / "checkpoints" / "best.ckpt")
    assert all(
        torch.equal(value, classifier.network.state_dict()[key]) for key, value in trained.network.state_dict().items()
    )
    assert classifier.preprocess == trained.preprocess
    other = composed(*TINY, f"data_dir='{colours}'", f"model.weights='{tiny_run}'", "model=timm")
    with pytest.raises(CheckpointError, match="a small_cnn, but the network is resnet18; pass"):
        build.build_classifier(other, build.data_of(other))


def test_head_of_other_classes_begins_anew(tiny_run: Path, colours: Path) -> None:
    config = composed(*TINY, f"data_dir='{colours}'", f"model.weights='{tiny_run}'", "dataset.classes=[red,blue]")
    classifier = build.build_classifier(config, build.data_of(config))
    trained = load_image_model(tiny_run / "checkpoints" / "best.ckpt").network.state_dict()
    own = classifier.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in trained.items() if key.startswith("backbone."))
    assert classifier.classes == ("blue", "red")
