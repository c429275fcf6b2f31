"""Model files that `weights_only=True` alone would accept: they take memory or time, or are executed by way of timm."""

import os
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import imgclf
from imgclf.errors import CheckpointError, ConfigError
from imgclf.files.model_file import read_file
from imgclf.models.backbone import build_backbone
from imgclf.models.checkpoint import read_checkpoint
from imgclf.models.weights import load_pretrained, read_note

if sys.platform != "win32":
    import resource

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="memory is measured in the POSIX way")
URL_ONLY = "legacy_seresnet18"  # one of 19 whose weights timm 1.0.31 has by address, not on the hub
BILLION = b"\x8a\x08" + struct.pack("<q", 10**9)  # as a pickle writes it


def with_pickle(path: Path, instructions: bytes) -> Path:
    """Write a file of torch's with one record of 4 numbers, and these instructions; return its path."""
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, b"\x80\x02" + instructions + b"." if name.endswith("data.pkl") else data)
    return path


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
SHAPE = b"K\x00" + BILLION + b"\x85K\x00\x85\x89"  # offset 0, size 10^9, stride 0, no gradient
EXPANDED = [name_of("torch._utils", "_rebuild_tensor_v2"), b"(", STORAGE, SHAPE, name_of("collections", "OrderedDict")]
COPIED = [
    *(name_of("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"), b"(", *EXPANDED, b")RtR"),
    *(name_of("torch", "float64"), text("cpu"), b"\x89tR"),
]
ELSEWHERE = [b"(", text("storage"), name_of("torch", "FloatStorage"), text("9"), text("cpu"), b"K\x04tQ"]
BOMBS = {  # calls that torch's own list allows
    "bytes": (name_of("__builtin__", "bytearray") + BILLION + b"\x85R", r"asks for __builtin__\.bytearray"),
    "an empty tensor": (name_of("torch", "FloatTensor") + BILLION + b"\x85R", r"asks for torch\.FloatTensor"),
    "a tensor of stride 0 copied while it is read": (b"".join(COPIED), r"asks for torch\._utils\._rebuild_device"),
    "lists in lists": (b"]" * 100_000 + b"a" * 99_999, "nested more than 50 deep"),
    "a number of 200 digits": (b"\x8a\x54" + b"\x7f" * 84, "whole number beyond 64 bits"),
    "a record outside the file": (b"".join(ELSEWHERE), "damaged"),
}


@pytest.fixture
def frugal() -> Iterator[None]:
    """Assert that the test takes less than 300 MB and 10 s."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", BOMBS)
def test_pickle_that_would_take_memory_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    instructions, message = BOMBS[name]
    with pytest.raises(CheckpointError, match=message) as raised:
        read_file(with_pickle(tmp_path / "w.pth", instructions))
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("frugal")
def test_lists_that_hold_the_one_before_twice_are_refused(tmp_path: Path) -> None:
    """2^40 values in 400 bytes: a walk through them never ends."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="share their contents"):
        read_file(tmp_path / "w.pth")
    shared = {"x": [1, 2, 3]}
    torch.save({"a": shared, "b": shared}, tmp_path / "good.pth")
    assert read_file(tmp_path / "good.pth") == {"a": shared, "b": shared}


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    """torch and Python would read different records."""
    path = with_pickle(tmp_path / "w.pth", b"}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].replace("data.pkl", "DATA.PKL"), b"}.")
    with pytest.raises(CheckpointError, match="two records of one name"):
        read_file(path)


VIT, SWIN = {"backbone": "vit_tiny_patch16_224"}, {"backbone": "swin_tiny_patch4_window7_224"}
MULTIPLIED = {"backbone": "mobilenetv2_100", "backbone_kwargs": {"depth_multiplier": 1e7}}
DECLARED: dict[str, tuple[dict[str, Any], str]] = {
    "a depth that timm turns into a list": ({**VIT, "backbone_kwargs": {"depth": 9_999}}, "parts"),
    "a multiplier": (MULTIPLIED, "add up to 10,000,000"),
    "a division by zero": ({**SWIN, "backbone_kwargs": {"patch_size": 0}}, "modulo by zero"),
    "a name that is a number": ({"backbone": 3}, "expected text"),
    "a number that is NaN": (
        {"backbone_kwargs": {"bn_momentum": float("nan")}},
        "backbone_kwargs=nan: expected a number",
    ),
    "a window of terabytes": ({**SWIN, "backbone_kwargs": {"window_size": 500}}, "refused"),
}


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", DECLARED)
def test_declared_network_that_cannot_be_built_is_refused(name: str, tiny_run: Path, tmp_path: Path) -> None:
    changes, message = DECLARED[name]
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    checkpoint["hyper_parameters"]["model"].update(changes)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=message) as raised:
        imgclf.load(tmp_path / "c.ckpt")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("frugal")
def test_building_for_images_of_4096_pixels_takes_little_memory() -> None:
    backbone = build_backbone("small_cnn", 3, 4096, {"layers": [32, "pool"]})
    assert backbone.shape == (32, 2048, 2048)  # 2 GB, had it been computed
    assert not any(value.is_meta for value in backbone.state_dict().values())


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "classes": lambda c: c["hyper_parameters"].update(classes=["a", "a", "b"]),
    "preprocess": lambda c: c["hyper_parameters"].pop("preprocess"),
    "history": lambda c: c["imgclf"].update(history=3),
    "running": lambda c: c["imgclf"].update(running="ab"),
    "confusion": lambda c: c["imgclf"].update(confusion=[[1]]),
    "plateau": lambda c: c["imgclf"].update(plateau=[1]),
    "config": lambda c: c["imgclf"].update(config={"dataset": "x"}),
    "data": lambda c: c["imgclf"].update(data={"root": 3}),
    "metrics": lambda c: c["imgclf"].update(metrics=[]),
    "fingerprint": lambda c: c["imgclf"].update(fingerprint=[]),
    "hyper_parameters": lambda c: c["hyper_parameters"].update(model="x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_metadata_of_the_wrong_kind_is_refused(name: str, tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    WRONG[name](checkpoint)
    torch.save(checkpoint, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=rf"c\.ckpt: its {name} isn't what imgclf writes"):
        imgclf.load(tmp_path / "c.ckpt")


def type_error_file(path: Path, mark: Path) -> Path:
    """Write a file that stops `weights_only=True` with a TypeError, where plain pickle runs a command; return its path."""
    command = name_of("posix", "system") + text(f"touch '{mark}'") + b"\x85R0}"
    return with_pickle(path, name_of("collections", "OrderedDict") + b")R" + b"N}\x86b0" + command)


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path where torch caches the weights of `URL_ONLY`; nothing here goes online."""
    monkeypatch.setattr("imgclf.models.weights._go_offline_without_network", lambda: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file = tmp_path / "torch" / "hub" / "checkpoints" / timm.get_pretrained_cfg(URL_ONLY).url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    return file


def test_timms_unprotected_second_try_is_not_reached(torch_cache: Path, tmp_path: Path) -> None:
    type_error_file(torch_cache, tmp_path / "executed")
    backbone = build_backbone(URL_ONLY, 3, 32)
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_pretrained(backbone, URL_ONLY, {}, 3, 32)
    assert not (tmp_path / "executed").exists()


def test_type_error_file_executes_where_pickle_reads_it(tmp_path: Path) -> None:
    """The control."""
    path = type_error_file(tmp_path / "w.pth", tmp_path / "executed")
    with pytest.raises(TypeError):
        torch.load(path, weights_only=True)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()


def test_timms_weights_by_url_are_loaded_and_adapted_to_grey(torch_cache: Path) -> None:
    weights = timm.create_model(URL_ONLY, pretrained=False).state_dict()
    torch.save(weights, torch_cache, _use_new_zipfile_serialization=False)
    for channels in (3, 1):
        backbone = build_backbone(URL_ONLY, channels, 32)
        load_pretrained(backbone, URL_ONLY, {}, channels, 32)
        first = weights["layer0.conv1.weight"] if channels == 3 else weights["layer0.conv1.weight"].sum(1, keepdim=True)
        assert torch.allclose(backbone.network.layer0.conv1.weight, first, atol=1e-6)
    torch.save([1], torch_cache)
    with pytest.raises(CheckpointError, match="no weights of"):
        load_pretrained(backbone, URL_ONLY, {}, 1, 32)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_timms_weights_are_loaded_from_the_hub_cache(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mobilenetv3_small_050"
    hub = tmp_path / "hub" / f"models--timm--{name}.lamb_in1k"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    weights = timm.create_model(name, pretrained=False).state_dict()
    (save_file if file.endswith("safetensors") else torch.save)(weights, hub / "snapshots" / "abc" / file)
    monkeypatch.setattr("imgclf.models.weights._go_offline_without_network", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = build_backbone(name, 3, 32)
    load_pretrained(backbone, name, {}, 3, 32)
    assert torch.equal(backbone.network.conv_stem.weight, weights["conv_stem.weight"])


@pytest.mark.parametrize("value", [print, 1 + 2j, float("inf"), b"x"])
def test_keywords_that_are_not_plain_raise_config_error(value: Any) -> None:
    with pytest.raises(ConfigError, match="finite numbers, words, or lists of them"):
        build_backbone("small_cnn", 3, 32, {"layers": [4, value]})


NOTES = [
    '{"architecture": 3}',
    "[" * 100_000,
    '{"pretrained_cfg": {"mean": ["a"], "std": [1]}}',
    '{"pretrained_cfg": 3}',
    '{"create_model_kwargs": 3}',
]


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note[:30])
def test_note_of_the_wrong_kind_raises_checkpoint_error(note: str, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(note)
    with pytest.raises(CheckpointError, match="can't be used") as raised:
        read_note(tmp_path / "w.safetensors", "small_cnn")
    assert "\n" not in str(raised.value)
