"""Loading runs nothing: every way into imgclf that reads a model, with every kind of file that tries to get more out of it."""

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
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import save_file
from support.fabricate import TINY, composed

import imgclf
from imgclf import predict
from imgclf.errors import ConfigError, ImgclfError
from imgclf.inference.evaluate_checkpoint import evaluate
from imgclf.models.backbone import build_backbone
from imgclf.models.checkpoint import read_checkpoint, update_metadata
from imgclf.training.checkpointing import AtomicCheckpointIO
from imgclf.training.resume import find_checkpoint
from imgclf.training.run import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in the POSIX way")
MARK = "executed"  # a payload that runs makes a file of this name
Make = Callable[[dict[str, Any], Path], None]


class Shell:
    """Unpickled, it runs a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.folder / MARK}'",)


class Code:
    """Unpickled, it runs Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.folder / MARK)!r}, 'w').close()",)


class State:
    """Unpickled, its own method runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        (state["folder"] / MARK).touch()


def saved(change: Callable[[dict[str, Any], Path], Any], **options: Any) -> Make:
    """A checkpoint with one change."""

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
        warnings.simplefilter("ignore")  # torch has given it up, but reads it still
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
# For a file of weights alone, what a whole checkpoint declares is of no meaning, and a Trainer has its network already and
# compares shapes by itself: these are not payloads there.
DECLARED = {
    name for name in PAYLOADS if " network of " in name or "keywords" in name or "head" in name or "depth" in name
}


@pytest.fixture
def paths(
    tiny_run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Callable[[Path], Any]]:
    """The ways in: each is given the payload's path."""
    settings = composed(*TINY, f"data_dir='{colours}'")
    classifier = imgclf.ImageClassifier.load_from_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    data = imgclf.ImageDataModule(colours, preprocess=classifier.preprocess, batch_size=8)

    def in_run(path: Path) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("*.ckpt", "environment.json"))
        shutil.move(path, folder / "checkpoints" / "last.ckpt")
        return folder

    def fit(**changes: Any) -> Callable[[Path], Any]:
        return lambda path: train({**settings, **{k: str(path) for k in changes}}, tmp_path / "new", [])

    def weights(path: Path) -> Any:
        return train({**settings, "model": {**settings["model"], "weights": str(path)}}, tmp_path / "new", [])

    def renamed(path: Path) -> Any:
        shutil.move(path, path.with_suffix(".safetensors"))
        return weights(path.with_suffix(".safetensors"))

    def resume(path: Path) -> Any:
        folder = in_run(path)
        return train(composed(f"resume='{folder}'"), folder, [f"resume='{folder}'"])

    def through_lightning(path: Path) -> Any:
        trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                          plugins=[AtomicCheckpointIO()], default_root_dir=tmp_path)  # fmt: skip
        trainer.test(classifier, datamodule=data, ckpt_path=path, verbose=False)

    def command(path: Path) -> Any:
        sys.exit(predict.main([str(path), str(colours / "test")]))

    evaluated = {"checkpoint": "", "split": "test", "data_dir": None, "device": "cpu", "report": False, "dataset": None}
    return {
        "train ckpt_path=FILE": fit(ckpt_path=1),
        "train ckpt_path=last": lambda path: train(settings | {"ckpt_path": "last"}, in_run(path), []),
        "train resume=DIR": resume,
        "train model.weights=FILE.pth": weights,
        "train model.weights=FILE.safetensors": renamed,
        "evaluate": lambda path: evaluate({**evaluated, "checkpoint": str(path), "typed": []}, tmp_path / "new"),
        "imgclf.load": imgclf.load,
        "ImageClassifier.load_from_checkpoint": imgclf.ImageClassifier.load_from_checkpoint,
        "python -m imgclf.predict": command,
        "Trainer(plugins=[AtomicCheckpointIO()])": through_lightning,
        "update_metadata": lambda path: (update_metadata(path, metrics={}), imgclf.load(path)),
        "find_checkpoint": lambda path: (find_checkpoint(str(path), tmp_path), imgclf.load(path)),
    }


NAMES = (
    "train ckpt_path=FILE", "train ckpt_path=last", "train resume=DIR", "train model.weights=FILE.pth",
    "train model.weights=FILE.safetensors", "evaluate", "imgclf.load", "ImageClassifier.load_from_checkpoint",
    "python -m imgclf.predict", "Trainer(plugins=[AtomicCheckpointIO()])", "update_metadata", "find_checkpoint",
)  # fmt: skip


@pytest.mark.trust("hostile model files x ways to load them", "code that ran, more than one line, or 300 MB of memory")
@pytest.mark.parametrize("way", NAMES)
def test_nothing_is_executed(
    way: str, paths: dict[str, Callable[[Path], Any]], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tried, wrong = 0, []
    for name, make in PAYLOADS.items():
        if ("weights=" in way and name in DECLARED) or (
            "Trainer" in way and name in {*DECLARED, "a tensor of another shape"}
        ):
            continue
        place = tmp_path / f"payload{tried}"
        place.mkdir()
        make(read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), place / "model.ckpt")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tried += 1
        capsys.readouterr()
        said = ""
        try:
            paths[way](place / "model.ckpt")
            wrong.append(f"{name}: was taken")
        except ImgclfError as error:
            said = str(error)
        except SystemExit as error:
            said = capsys.readouterr().err.strip()
            wrong += [] if error.code == 2 else [f"{name}: exit code {error.code}"]
        if "\n" in said or len(said) > 600:
            wrong.append(f"{name}: {said}")
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
def test_the_payloads_do_execute(name: str, tiny_run: Path, tmp_path: Path) -> None:
    """The control: read as they ask to be, they leave their mark."""
    PAYLOADS[name](read_checkpoint(tiny_run / "checkpoints" / "last.ckpt"), tmp_path / "model.ckpt")
    assert not (tmp_path / MARK).exists()
    if name == "a bare pickle":
        pickle.loads((tmp_path / "model.ckpt").read_bytes())
    else:
        torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert (tmp_path / MARK).exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that would hand out a payload, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/model.ckpt", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("way", ["train ckpt_path=FILE", "train model.weights=FILE.pth", "evaluate", "imgclf.load",
                                 "ImageClassifier.load_from_checkpoint", "python -m imgclf.predict",
                                 "Trainer(plugins=[AtomicCheckpointIO()])"])  # fmt: skip
def test_addresses_are_refused_unasked(
    way: str, paths: dict[str, Callable[[Any], Any]], site: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = site
    with pytest.raises((ImgclfError, SystemExit)) as raised:
        paths[way](address)
    said = capsys.readouterr().err if isinstance(raised.value, SystemExit) else str(raised.value)
    assert "models aren't loaded from URLs" in said
    assert asked == []


def test_timms_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache holds a pickle instead of weights: timm meets it, and doesn't run it."""
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
    torch.save({"t": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), "u": torch.zeros(4, 5).t()},
               tmp_path / "good.pth")  # fmt: skip
    from imgclf.files.model_file import read_file

    assert read_file(tmp_path / "good.pth")["t"].shape == (2, 3, 4, 5)
    for name, message in (("shared", "share their data"), ("gaps", "isn't contiguous")):
        with pytest.raises(ImgclfError, match=message):
            read_file(tmp_path / f"{name}.pth")


def test_the_note_beside_the_weights_is_not_trusted(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, weights)
    weights.with_suffix(".json").write_text(
        '{"architecture": "small_cnn", "create_model_kwargs": {"checkpoint_path": "x.pth"}}'
    )
    settings = composed(*TINY, "data_dir=demo", f"model.weights='{weights}'")
    with pytest.raises(ImgclfError, match="checkpoint_path would make timm read"):
        train({**settings, "dataset": {**composed("dataset=sign_mnist")["dataset"]}}, tmp_path / "new", [])
