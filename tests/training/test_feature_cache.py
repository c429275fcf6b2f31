"""Cached features: the same training as on images, for fully and partly frozen networks; engines and frozen stems."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fabricate import composed

import imgclf
from imgclf import CheckpointError, ConfigError
from imgclf.cache import main as cache_command
from imgclf.config import ModelConfig, TrainerConfig
from imgclf.data.samples import Samples
from imgclf.models import ImageModel, openvino_queue
from imgclf.models import engine as engine_module
from imgclf.models.checkpoint import read_checkpoint
from imgclf.models.engine import Eager, build_engine, choose_engine, run_padded
from imgclf.models.frozen_stem import find_frozen_stem
from imgclf.models.network import build_network
from imgclf.models.openvino_queue import openvino_version
from imgclf.preprocess import Preprocess
from imgclf.training import run as training
from imgclf.training.classifier import ImageClassifier
from imgclf.training.feature_cache import images_seen
from imgclf.training.run import train

Run = Callable[..., Path]
needs_openvino = pytest.mark.skipif(openvino_version() is None, reason="needs openvino: pip install 'imgclf[fast]'")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "history.csv") as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def forwards(folder: Path) -> int | None:
    return json.loads((folder / "environment.json").read_text()).get("forwards", {}).get("images")


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    rows, others = history(ours), history(theirs)
    assert len(rows) == len(others) > 1
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    assert metrics(ours)["test"]["correct"] == metrics(theirs)["test"]["correct"]
    assert metrics(ours)["test"]["loss"] == pytest.approx(metrics(theirs)["test"]["loss"], abs=tolerance)


def with_backbone(backbone: str) -> tuple[str, ...]:
    """Overrides that give the tiny run a network of timm's."""
    of_small_cnn = ("layers", "padding", "batch_norm", "bn_momentum")
    return f"model.backbone={backbone}", "image_size=32", *(f"~model.backbone_kwargs.{key}" for key in of_small_cnn)


MOBILENETV3 = with_backbone("tf_mobilenetv3_small_100")
FROZEN = {
    "all": ("model.freeze=all",),
    "last layers": (*with_backbone("mobilenetv2_100"), "model.freeze=2"),
    "a glob": ("model.freeze=['network.features.0.*']",),
    "dropout and BatchNorm in the head": ("model.freeze=all", "model.head.dropout=0.5", "model.head.batch_norm=true"),
    "averaged weights": ("model.freeze=all", "ema_decay=0.9"),
    "mobilenetv3, pooled behind": (*MOBILENETV3, "model.freeze=all", "model.head.pool_at=after"),
    "limited epochs": ("model.freeze=all", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"),
    "grey": ("model.freeze=all", "model.in_chans=1"),
}


@pytest.mark.parametrize("options", FROZEN.values(), ids=FROZEN)
def test_training_on_features_equals_training_on_images(run_tiny: Run, options: tuple[str, ...]) -> None:
    arguments = ("model.pretrained=false", "trainer.max_epochs=3", *options)
    on_images = run_tiny(*arguments, "features=off")
    on_features = run_tiny(*arguments)
    assert forwards(on_images) is None and forwards(on_features)
    assert_same_run(on_features, on_images)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "best.ckpt") for run in (on_features, on_images))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in ours["state_dict"].items():
        torch.testing.assert_close(value, theirs["state_dict"][name], rtol=1e-4, atol=1e-5)
    image = Path(ours["imgclf"]["data"]["root"]) / "test" / "red" / "001.png"
    probabilities = [
        imgclf.load(run / "checkpoints" / "best.ckpt").predict_proba(image) for run in (on_features, on_images)
    ]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


def test_each_image_is_forwarded_once(run_tiny: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_tiny("model.freeze=all", "trainer.max_epochs=3")
    assert forwards(first) == 36 + 12 + 15
    assert "the frozen layers run once per image (eager" in capsys.readouterr().out
    again = run_tiny("model.freeze=all", "trainer.max_epochs=4", "optimizer.lr=0.02")  # a sweep's next trial
    assert forwards(again) == 0
    limited = run_tiny("model.freeze=all", "trainer.max_epochs=3", "trainer.limit_train_batches=2", "seed=7")
    config = ImageClassifier.load_from_checkpoint(limited / "checkpoints" / "best.ckpt").metadata.config
    assert config and config["seed"] == 7
    orders = [np.random.default_rng([7, epoch]).permutation(36)[:16] for epoch in range(3)]
    assert forwards(limited) == len(set(np.concatenate(orders).tolist())) + 12 + 15  # all again: other random weights


@pytest.mark.parametrize("kind", ["ram", "off"])
def test_features_without_a_disk_cache_are_cached_in_memory(run_tiny: Run, kind: str, empty_cache: Path) -> None:
    cached = run_tiny("model.freeze=all", f"cache={kind}")
    assert forwards(cached) == 63
    assert not empty_cache.exists()
    assert_same_run(cached, run_tiny("model.freeze=all", "features=off"))


def test_features_over_the_budget_are_computed_each_epoch(run_tiny: Run, capsys: pytest.CaptureFixture[str]) -> None:
    uncached = run_tiny("model.freeze=all", "cache_gb=0")
    assert "features computed, but not cached" in capsys.readouterr().out
    assert forwards(uncached) == 2 * (36 + 12) + 12 + 15  # each epoch, and validation and test in the end
    assert_same_run(uncached, run_tiny("model.freeze=all", "features=off"))


NEED_IMAGES = [
    ("model.freeze=none",),
    ("model.freeze=all", "features=off"),
    ("model.freeze=all", "mixing.mixup=0.4"),
    ("model.freeze=all", "dataset.augment={horizontal_flip: true}"),
]


@pytest.mark.parametrize("options", NEED_IMAGES, ids=lambda options: options[-1])
def test_features_are_not_cached_where_every_epoch_needs_images(run_tiny: Run, options: tuple[str, ...]) -> None:
    assert forwards(run_tiny(*options, "trainer.max_epochs=1")) is None


def test_views_give_the_same_run_with_and_without_features(run_tiny: Run) -> None:
    arguments = (
        "model.freeze=all",
        "dataset.augment={rotation_degrees: 30, shift: 0.2}",
        "views=2",
        "trainer.max_epochs=5",
    )
    on_features = run_tiny(*arguments)
    assert forwards(on_features) == 2 * 36 + 12 + 15
    assert_same_run(on_features, run_tiny(*arguments, "features=off"))
    every_epoch = run_tiny(*arguments[:2], "trainer.max_epochs=5")
    losses = [[row["train_loss"] for row in history(run)] for run in (on_features, every_epoch)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-5) and losses[0][2] != pytest.approx(
        losses[1][2], abs=1e-5
    )


def test_unfrozen_stem_trains_on_images_again(run_tiny: Run) -> None:
    arguments = ("model.freeze=all", "model.unfreeze_epoch=2", "trainer.max_epochs=4", "optimizer.backbone_lr=0.01")
    on_features = run_tiny(*arguments)
    assert_same_run(on_features, run_tiny(*arguments, "features=off"))


@pytest.mark.parametrize("cleared", [False, True], ids=["cached", "cleared"])
def test_resumed_run_ends_in_the_same_bits(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    arguments = ("model.freeze=all", "trainer.max_epochs=3", "checkpoint.every_n_steps=3")
    whole = run_tiny(*arguments)
    save, folder = training.CheckpointCallback._save, tmp_path / "stopped"

    def stop_at_step_7(self: Any, trainer: Any, **options: Any) -> Path:
        path = save(self, trainer, **options)
        if trainer.global_step >= 7:
            raise KeyError("the machine goes away")
        return path

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(training.CheckpointCallback, "_save", stop_at_step_7)
        run_tiny(*arguments, folder=folder)
    if cleared:
        cache_command(["clear"])
    train(composed(f"resume='{folder}'"), folder, [f"resume={folder}"])
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert history(folder) == history(whole)


def test_resume_with_another_engine_raises_checkpoint_error(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_tiny("model.freeze=all", folder=tmp_path / "run")
    shutil.move(folder / "environment.json", folder / "gone")
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(
        CheckpointError, match=r"the run's features were computed by eager 2.*, here is eager 2\.99\.0 fp32"
    ):
        train(
            composed(f"resume='{folder}'", "trainer.max_epochs=4"), folder, [f"resume={folder}", "trainer.max_epochs=4"]
        )


def network(name: str, freeze: Any, head: dict[str, Any], size: int = 64) -> Any:
    model = ModelConfig.from_dict({"backbone": name, "head": head, "freeze": freeze})
    built = build_network(model, 5, 3, size)
    generator = torch.Generator().manual_seed(0)
    for module in built.modules():  # statistics that tell one BatchNorm from another
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return built


CUTS = [
    ("mobilenetv2_100", "all", {"hidden": [8]}, "head.pool", (1280,)),
    ("mobilenetv2_100", 2, {"hidden": [8]}, "backbone.network.blocks", (320, 2, 2)),
    ("mobilenetv2_100", 9, {"hidden": [8]}, "backbone.network.blocks.5.1", (160, 2, 2)),
    ("vgg16", "all", {"pool": "flatten"}, "head.dropout", (2048,)),
    ("vgg16", 4, {"pool": "flatten"}, "backbone.network.features.20", (512, 8, 8)),
    ("tf_mobilenetv3_small_100", "all", {"hidden": [8], "pool_at": "after"}, "backbone", (576, 2, 2)),
    ("resnet18", 3, {}, "backbone.network.layer4.0", (512, 2, 2)),
    ("densenet121", 10, {}, "backbone.network.features.transition3", (512, 2, 2)),
    ("convnext_atto", 5, {}, "backbone.network.stages.3.blocks.0", (320, 2, 2)),
    ("vit_tiny_patch16_224", "all", {"dropout": 0.5}, "head.hidden", (192,)),
    ("resnet18", "none", {}, None, None),
    ("resnet18", ["network.layer4*"], {}, None, None),  # frozen behind what is trained
    ("vit_tiny_patch16_224", 13, {}, None, None),  # positions are added between its modules
]


@pytest.mark.parametrize(("name", "freeze", "head", "last", "shape"), CUTS, ids=[f"{c[0]}-{c[1]}" for c in CUTS])
def test_network_is_cut_at_the_deepest_frozen_module_and_parts_add_up(
    name: str, freeze: Any, head: dict[str, Any], last: str | None, shape: Any
) -> None:
    whole = network(name, freeze, head)
    keys = list(whole.state_dict())
    stem = find_frozen_stem(whole, 3, 64)
    assert list(whole.state_dict()) == keys and whole.training
    if last is None:
        assert stem is None
        return
    assert stem is not None and stem.is_frozen()
    assert (stem.frozen_modules[-1], stem.shape) == (last, shape)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole.eval()
    with torch.no_grad():
        torch.testing.assert_close(stem.rest(stem.stem(images)), whole(images), rtol=1e-5, atol=1e-6)
    # What is trained behind the cut is the network's own, in training mode too, and its gradients are the network's.
    whole.train()
    torch.manual_seed(0)
    whole(images).square().sum().backward()
    expected = {key: p.grad.clone() for key, p in whole.named_parameters() if p.grad is not None}
    whole.zero_grad()
    torch.manual_seed(0)
    with torch.no_grad():
        features = stem.stem(images)
    stem.rest(features).square().sum().backward()
    assert expected
    for key, parameter in whole.named_parameters():
        if key in expected:
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-3, atol=1e-4)


def test_choose_engine_follows_device_and_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for module in (engine_module, openvino_queue):
        monkeypatch.setattr(module, "openvino_version", lambda: "1.2")
    assert [choose_engine("auto", cpu, n) for n in (1, 999, 1000, 10**6)] == ["eager", "eager", "openvino", "openvino"]
    assert choose_engine("auto", torch.device("cuda"), 10**6) == "eager"
    assert choose_engine("openvino", cpu, 1) == "openvino" and choose_engine("eager", cpu, 10**6) == "eager"
    with pytest.raises(ConfigError, match="runs on the CPU"):
        choose_engine("openvino", torch.device("cuda"), 1)
    with pytest.raises(ConfigError, match="engine tensorrt: expected one of auto, eager, openvino"):
        choose_engine("tensorrt", cpu, 1)
    for module in (engine_module, openvino_queue):
        monkeypatch.setattr(module, "openvino_version", lambda: None)
    assert choose_engine("auto", cpu, 10**6) == "eager"
    with pytest.raises(ConfigError, match="isn't installed; install it with"):
        choose_engine("openvino", cpu, 1)


PREPROCESS = Preprocess(size=64, mean=(0.47, 0.47, 0.47), std=(0.24, 0.24, 0.24))


@needs_openvino
@pytest.mark.parametrize("name", ["mobilenetv2_100", "tf_mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_openvino_gives_the_numbers_of_eager(name: str) -> None:
    stem = find_frozen_stem(network(name, "all", {}), 3, 64)
    assert stem is not None
    model = ImageModel(stem.stem, ["a"], PREPROCESS)
    engine = build_engine("openvino", model)
    assert engine.label == f"openvino {openvino_version()} fp32"
    images = torch.randint(0, 256, (35, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    ours, theirs = run_padded(engine, images, 32), Eager(model)(images)
    assert ours.shape == theirs.shape == (35, *stem.shape)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@needs_openvino
def test_engine_that_differs_or_fails_is_replaced_by_eager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ImageModel(network("small_cnn", "all", {}).backbone, ["a"], PREPROCESS)
    right = engine_module.OpenVINO.__call__
    monkeypatch.setattr(engine_module.OpenVINO, "__call__", lambda self, images: right(self, images) * 1.001)
    assert build_engine("openvino", model).label.startswith("eager")
    assert "differ by 1.0e-03 of the largest" in capsys.readouterr().out
    monkeypatch.setattr(engine_module.OpenVINO, "__init__", lambda *_: 1 / 0)
    assert build_engine("openvino", model).label.startswith("eager")
    assert "OpenVINO can't take this network (ZeroDivisionError" in capsys.readouterr().out


@needs_openvino
def test_training_with_openvino_matches_training_on_images(run_tiny: Run) -> None:
    arguments = (*with_backbone("mobilenetv2_100"), "model.pretrained=false", "model.freeze=all")
    fast, eager = run_tiny(*arguments, "engine=openvino"), run_tiny(*arguments, "features=off")
    assert_same_run(fast, eager, tolerance=1e-3)
    assert read_checkpoint(fast / "checkpoints" / "best.ckpt")["imgclf"]["engine"].startswith("openvino ")


@needs_openvino
def test_predictions_of_openvino_and_bf16_are_near_those_of_eager(tiny_run: Path, colours: Path) -> None:
    checkpoint, images = tiny_run / "checkpoints" / "best.ckpt", colours / "test"
    expected = imgclf.load(checkpoint).predict_proba(images)
    np.testing.assert_allclose(imgclf.load(checkpoint, engine="openvino").predict_proba(images), expected, atol=1e-5)
    rounded = imgclf.load(checkpoint, precision="bf16").predict_proba(images)
    assert np.abs(rounded - expected).max() < 0.05 and not np.array_equal(rounded, expected)


def test_images_seen_respects_limits_and_epochs() -> None:
    counts = {"train": 1000, "val": 100, "test": 50}

    class Data:
        batch_size = 10
        samples = {split: Samples(("x",) * n, np.zeros(n, np.int64), ("a",)) for split, n in counts.items()}

    def seen(**trainer: Any) -> int:
        return images_seen(TrainerConfig.from_dict({"max_epochs": 3, **trainer}), Data())  # type: ignore[arg-type]

    assert seen() == 1150
    assert seen(limit_train_batches=5) == 150 + 100 + 50
    assert seen(limit_train_batches=0.5, limit_val_batches=0, limit_test_batches=2) == 1000 + 0 + 20
