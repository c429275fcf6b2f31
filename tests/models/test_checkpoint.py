"""Checkpoints: loading executes nothing from hostile files, by any way into imgclf; metadata, and models for prediction."""

import http.server
import os
import pickle
import resource
import shutil
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import save_file
from support.fabricate import TINY, composed

import imgclf
from imgclf import predict
from imgclf.config import EvaluateConfig, ModelConfig
from imgclf.errors import CheckpointError, ConfigError, ImgclfError
from imgclf.files.model_file import read_file
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.models import ImageModel, load_image_model
from imgclf.models.backbone import build_backbone
from imgclf.models.checkpoint import read_checkpoint, update_metadata
from imgclf.models.metadata import CheckpointMetadata, DataFacts
from imgclf.training.checkpointing import AtomicCheckpointIO
from imgclf.training.resume import find_resume_point
from imgclf.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in the POSIX way")
MARK = "executed"  # a payload that is executed makes a file of this name
Make = Callable[[dict[str, Any], Path], None]


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.folder / MARK}'",)


class Code:
    """Runs Python when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.folder / MARK)!r}, 'w').close()",)


class State:
    """Runs its own method when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        (state["folder"] / MARK).touch()


def saved(change: Callable[[dict[str, Any], Path], Any], **options: Any) -> Make:
    """Return a function that saves a checkpoint with one change."""

    def make(checkpoint: dict[str, Any], path: Path) -> None:
        change(checkpoint, path.parent)
        torch.save(checkpoint, path, **options)

    return make


def in_hparams(**changes: Any) -> Callable[[dict[str, Any], Path], Any]:
    def change(checkpoint: dict[str, Any], folder: Path) -> None:
        evil = folder / "evil.pth"
        torch.save(Shell(folder), evil)
        model = checkpoint["hyper_parameters"]["model"]
        for key, value in changes.items():
            model[key] = eval(repr(value).replace("EVIL", str(evil)).replace("FOLDER", str(folder)))

    return change


def raw_pickle(checkpoint: dict[str, Any], path: Path) -> None:
    path.write_bytes(pickle.dumps({**checkpoint, "imgclf": Shell(path.parent)}))


def script(checkpoint: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but torch still reads it
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def bomb(checkpoint: dict[str, Any], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}, protocol=2))
        archive.writestr("archive/data/0", bytes(500_000_000))


def flipped(checkpoint: dict[str, Any], path: Path) -> None:
    torch.save(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda member: member.file_size)
    data = bytearray(path.read_bytes())
    data[record.header_offset + 400] ^= 4
    path.write_bytes(bytes(data))


def cut(checkpoint: dict[str, Any], path: Path) -> None:
    torch.save(checkpoint, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tensor(value: Callable[[], torch.Tensor]) -> Callable[[dict[str, Any], Path], Any]:
    return lambda checkpoint, _: checkpoint["state_dict"].update({KEY: value()})


KEY = "model.network.head.output.weight"
EXECUTE: dict[str, Make] = {
    "a command among the weights": saved(lambda c, folder: c["state_dict"].update(x=Shell(folder))),
    "Python among the settings": saved(lambda c, folder: c["hyper_parameters"].update(x=Code(folder))),
    "an object with a method": saved(lambda c, folder: c["imgclf"].update(x=State(folder))),
    "the old format": saved(lambda c, folder: c.update(x=Shell(folder)), _use_new_zipfile_serialization=False),
    "a bare pickle": raw_pickle,
}
PAYLOADS: dict[str, Make] = {
    **EXECUTE,
    "a TorchScript archive": script,
    "a network of a hub": saved(in_hparams(backbone="hf-hub:somebody/evil")),
    "a network of a folder": saved(in_hparams(backbone="local-dir:FOLDER")),
    "a file to load in the keywords": saved(in_hparams(backbone_kwargs={"checkpoint_path": "EVIL"})),
    "weights to fetch in the keywords": saved(in_hparams(backbone_kwargs={"pretrained_cfg_overlay": {"file": "EVIL"}})),
    "a tensor of terabytes": saved(tensor(lambda: torch.zeros(1).expand(10**6, 10**6))),
    "a sparse tensor": saved(tensor(lambda: torch.zeros(3, 8).to_sparse())),
    "a tensor of another shape": saved(tensor(lambda: torch.zeros(3, 9))),
    "a head of terabytes": saved(in_hparams(head={"hidden": [10**6, 10**6]})),
    "a depth without end": saved(in_hparams(backbone="vit_tiny_patch16_224", backbone_kwargs={"depth": 10**9})),
    "a compressed bomb": bomb,
    "a flipped bit": flipped,
    "half a file": cut,
}
# What a checkpoint declares has no meaning in a file of weights, and a Trainer has its network already and compares shapes
# by itself: these are not payloads there.
DECLARED = {
    name for name in PAYLOADS if " network of " in name or "keywords" in name or "head" in name or "depth" in name
}


@pytest.fixture
def paths(
    tiny_run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Callable[[Path], Any]]:
    """Return the ways to load a model by name; each takes the payload's path."""
    settings = composed(*TINY, f"data_dir='{colours}'")
    classifier = imgclf.ImageClassifier.load_from_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    data = imgclf.ImageDataModule(colours, preprocess=classifier.preprocess, batch_size=8)

    def in_run(path: Path) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("*.ckpt", "environment.json"))
        shutil.move(path, folder / "checkpoints" / "last.ckpt")
        return folder

    def fit(**changes: Any) -> Callable[[Path], Any]:
        return lambda path: train(replace(settings, **{k: str(path) for k in changes}), tmp_path / "new", [])

    def weights(path: Path) -> Any:
        return train(replace(settings, model=replace(settings.model, weights=str(path))), tmp_path / "new", [])

    def renamed(path: Path) -> Any:
        shutil.move(path, path.with_suffix(".safetensors"))
        return weights(path.with_suffix(".safetensors"))

    def resume(path: Path) -> Any:
        folder = in_run(path)
        return train(composed(f"resume='{folder}'"), folder, [f"resume='{folder}'"])

    def through_lightning(path: Path) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(**quiet, accelerator="cpu", plugins=[AtomicCheckpointIO()], default_root_dir=tmp_path)
        trainer.test(classifier, datamodule=data, ckpt_path=path, verbose=False)

    def command(path: Path) -> Any:
        sys.exit(predict.main([str(path), str(colours / "test")]))

    def evaluate(path: Path) -> Any:
        return evaluate_checkpoint(EvaluateConfig(str(path), device="cpu", report=False), tmp_path / "new")

    return {
        "train ckpt_path=FILE": fit(ckpt_path=1),
        "train ckpt_path=last": lambda path: train(replace(settings, ckpt_path="last"), in_run(path), []),
        "train resume=DIR": resume,
        "train model.weights=FILE.pth": weights,
        "train model.weights=FILE.safetensors": renamed,
        "evaluate": evaluate,
        "imgclf.load": imgclf.load,
        CLASSIFIER: imgclf.ImageClassifier.load_from_checkpoint,
        "python -m imgclf.predict": command,
        LIGHTNING: through_lightning,
        "update_metadata": lambda path: (update_metadata(path, metrics={}), imgclf.load(path)),
        "find_resume_point": lambda path: (find_resume_point(str(path), tmp_path), imgclf.load(path)),
    }


LIGHTNING = "Trainer(plugins=[AtomicCheckpointIO()])"
CLASSIFIER = "ImageClassifier.load_from_checkpoint"
RESUME = ("train ckpt_path=FILE", "train ckpt_path=last", "train resume=DIR")
WEIGHTS = ("train model.weights=FILE.pth", "train model.weights=FILE.safetensors")
PREDICT = ("evaluate", "imgclf.load", "python -m imgclf.predict", "update_metadata", "find_resume_point")
SAME = (
    "train ckpt_path=FILE",
    "train ckpt_path=last",
    LIGHTNING,
    "update_metadata",
    "find_resume_point",
)  # as others read
WAYS = (*RESUME, *WEIGHTS, *PREDICT, CLASSIFIER, LIGHTNING)


@pytest.mark.trust("hostile model files x ways to load them", "code that ran, more than one line, or 300 MB of memory")
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.exhaustive if way in SAME else ()) for way in WAYS]
)
def test_hostile_files_are_refused_in_one_line_without_executing_anything(
    way: str,
    paths: dict[str, Callable[[Path], Any]],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tried, wrong = 0, []
    for name, make in PAYLOADS.items():
        if ("weights=" in way and name in DECLARED) or (
            "Trainer" in way and name in {*DECLARED, "a tensor of another shape"}
        ):
            continue
        folder = tmp_path / f"payload{tried}"
        folder.mkdir()
        make(read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), folder / "model.ckpt")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tried += 1
        capsys.readouterr()
        message = ""
        try:
            paths[way](folder / "model.ckpt")
            wrong.append(f"{name}: was accepted")
        except ImgclfError as error:
            message = str(error)
        except SystemExit as error:
            message = capsys.readouterr().err.strip()
            wrong += [] if error.code == 2 else [f"{name}: exit code {error.code}"]
        if "\n" in message or len(message) > 600:
            wrong.append(f"{name}: {message}")
        if list(tmp_path.rglob(MARK)):
            wrong.append(f"{name}: executed")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > memory + 300_000:  # KiB
            wrong.append(f"{name}: took memory")
        for leftover in ("run", "new"):
            shutil.rmtree(tmp_path / leftover, ignore_errors=True)
    record_property("tried", tried)
    assert wrong == []
    assert tried >= 10


@pytest.mark.parametrize("name", EXECUTE)
def test_payloads_execute_where_pickle_reads_them(name: str, tiny_run: Path, tmp_path: Path) -> None:
    """The control: read without protection, they leave their mark."""
    PAYLOADS[name](read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), tmp_path / "model.ckpt")
    assert not (tmp_path / MARK).exists()
    if name == "a bare pickle":
        pickle.loads((tmp_path / "model.ckpt").read_bytes())
    else:
        torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert (tmp_path / MARK).exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Return the address of a model on a local server, and the list of the requests that it gets."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/model.ckpt", requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("way", [RESUME[0], WEIGHTS[0], *PREDICT[:3], CLASSIFIER, LIGHTNING])
def test_urls_are_refused_without_a_request(
    way: str, paths: dict[str, Callable[[Any], Any]], site: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, requests = site
    with pytest.raises((ImgclfError, SystemExit)) as raised:
        paths[way](address)
    message = capsys.readouterr().err if isinstance(raised.value, SystemExit) else str(raised.value)
    assert "models aren't loaded from URLs" in message
    assert requests == []


def test_pickle_in_the_hub_cache_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, hub = "mobilenetv3_small_050", tmp_path / "hub" / "models--timm--mobilenetv3_small_050.lamb_in1k"
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    torch.save({"classifier.weight": Shell(tmp_path)}, snapshot / "pytorch_model.bin")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    classifier = imgclf.ImageClassifier({"backbone": name}, ["a", "b"], {"size": 32})
    with pytest.raises(ImgclfError) as raised:
        classifier.load_pretrained()
    assert "\n" not in str(raised.value)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("keyword", ["checkpoint_path", "pretrained_cfg_overlay", "cache_dir", "features_only"])
def test_keywords_that_read_files_are_refused(keyword: str) -> None:
    with pytest.raises(ConfigError, match=f"{keyword} would make timm read or fetch a file"):
        build_backbone("small_cnn", 3, 32, {keyword: "x"})


def test_shared_and_gapped_tensors_are_refused(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    torch.save({f"t{i}": base.view(10, 100) for i in range(50)}, tmp_path / "shared.pth")
    torch.save({"t": torch.zeros(100)[::2]}, tmp_path / "gaps.pth")
    channels_last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.save({"t": channels_last, "u": torch.zeros(4, 5).t()}, tmp_path / "good.pth")
    assert read_file(tmp_path / "good.pth")["t"].shape == (2, 3, 4, 5)
    for name, message in (("shared", "share their data"), ("gaps", "isn't contiguous")):
        with pytest.raises(ImgclfError, match=message):
            read_file(tmp_path / f"{name}.pth")


def test_keywords_in_the_note_beside_weights_are_checked(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, weights)
    weights.with_suffix(".json").write_text(
        '{"architecture": "small_cnn", "create_model_kwargs": {"checkpoint_path": "x.pth"}}'
    )
    settings = composed(*TINY, "data_dir=demo", f"model.weights='{weights}'")
    with pytest.raises(ImgclfError, match="checkpoint_path would make timm read"):
        train(replace(settings, dataset=composed("dataset=sign_mnist").dataset), tmp_path / "new", [])


def test_metadata_survives_a_round_trip_as_plain_data() -> None:
    facts = DataFacts("cards", "/data/cards", {"train": 3}, ["horizontal"])
    metadata = CheckpointMetadata(
        config={"seed": 3, "dataset": {"name": "cards"}},
        data=facts,
        fingerprint={"train": {"a": [2, "0f"]}},
        metrics={"test": {"accuracy": 0.5}},
        temperature=1.5,
        engine="eager 2.0 fp32",
        history=[{"epoch": 1, "val_loss": None}],
        running=[1.5, 3.0],
        confusion=[[1, 0], [1, 2]],
        learning_rate=0.01,
        plateau={"best": 0.5},
        stopped_early=True,
    )
    values = metadata.to_dict()
    assert CheckpointMetadata.from_dict(values, 2) == metadata
    metadata.history.append({"epoch": 2})
    assert values["history"] == [{"epoch": 1, "val_loss": None}]  # a later epoch doesn't change what was saved
    with pytest.raises(CheckpointError, match="its confusion isn't what imgclf writes"):
        CheckpointMetadata.from_dict(values, 3)


def test_averaged_weights_are_loaded_and_one_network_is_built(
    run_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_tiny("ema_decay=0.9", "trainer.max_epochs=1") / "checkpoints" / "best.ckpt"
    state, built = read_checkpoint(path)["state_dict"], []
    build = ImageModel.build
    monkeypatch.setattr(ImageModel, "build", lambda *args: built.append(1) or build(*args))
    model = load_image_model(path)
    assert built == [1] and not model.training
    trained, averaged = (state[f"{prefix}network.head.output.weight"] for prefix in ("model.", "ema.module."))
    assert torch.equal(model.network.head.output.weight, averaged) and not torch.equal(trained, averaged)
    classifier = imgclf.ImageClassifier.load_from_checkpoint(path)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(model(images), classifier(images))
    assert torch.equal(classifier.network.head.output.weight, trained)
    assert model.metadata == classifier.metadata and classifier.eval_model.metadata is classifier.metadata


def test_checkpoint_without_the_averaged_weights_that_it_declares_is_refused(
    run_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(run_tiny("ema_decay=0.9", "trainer.max_epochs=1") / "checkpoints" / "best.ckpt")
    del checkpoint["state_dict"]["ema.module.network.head.output.bias"]
    torch.save(checkpoint, tmp_path / "lacks.ckpt")
    checkpoint["hyper_parameters"]["ema_decay"] = None
    torch.save(checkpoint, tmp_path / "more.ckpt")
    for name, message in (("lacks", "lacks 'ema.module.network"), ("more", "its network doesn't have")):
        for load in (imgclf.load, imgclf.ImageClassifier.load_from_checkpoint):
            with pytest.raises(CheckpointError, match=rf"{name}\.ckpt: .*{message}"):
                load(tmp_path / f"{name}.ckpt")


def test_normalize_is_the_textbook_formula_to_the_bit() -> None:
    config = ModelConfig.from_dict({"backbone": "small_cnn", "backbone_kwargs": {"layers": [4, "pool"]}})
    preprocess = imgclf.Preprocess(size=20, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model = ImageModel.build(config, ["a", "b"], preprocess).eval()
    images = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    for layout in (images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(model.normalize(layout), (images.float() - model.mean) / model.std)
    assert torch.equal(model(images), model.network((images.float() - model.mean) / model.std))


def test_forward_features_gives_the_logits_of_the_images() -> None:
    config = ModelConfig.from_dict({"backbone": "small_cnn", "freeze": "all", "head": {"hidden": [4]}})
    model = ImageModel.build(config, ["a", "b"], imgclf.Preprocess(size=16)).eval()
    stem = model.find_frozen_stem()
    assert stem is not None
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="call use_features first"):
        model.forward_features(images)
    model.use_features(stem.frozen_modules)
    features = stem.stem(model.normalize(images))
    assert torch.allclose(model.forward_features(features), model(images), atol=1e-6)
