"""Weights for a backbone: from a local file, or timm's from the hub."""

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.constants import PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import adapt_input_conv
from torch import nn

from imgclf.errors import CheckpointError, ConfigError, one_line
from imgclf.files.model_file import read_file
from imgclf.models.backbone import Backbone, check_name, size_keywords
from imgclf.preprocess import Preprocess

__all__ = [
    "copy_tensors",
    "describe_weights",
    "find_weights",
    "load_pretrained",
    "load_weights",
    "pretrained_network",
    "read_note",
]

FOLDER_VARIABLE = "IMGCLF_WEIGHTS"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_NOTE_ERRORS = (OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError, ConfigError)


@dataclass(frozen=True)
class WeightsNote:
    """The JSON next to a weights file: the architecture, keywords for `create_model`, and timm's `pretrained_cfg`."""

    architecture: str | None
    kwargs: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any] | None


def read_note(path: str | Path, backbone: str) -> WeightsNote:
    """Return the JSON next to the weights at `path` (same name, `.json`), or an empty one where there is none.

    Raises `CheckpointError` when it can't be read or is for another architecture than `backbone`.
    """
    file = Path(path).with_suffix(".json")
    if not file.is_file():
        return WeightsNote(None, {}, None)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kwargs = dict(values.get("create_model_kwargs") or {})
        note = WeightsNote(values.get("architecture"), kwargs, values.get("pretrained_cfg"))
        if note.pretrained_cfg:
            Preprocess.from_config(dict(note.pretrained_cfg))
        architecture = (note.architecture or "").partition(".")[0]
    except _NOTE_ERRORS as error:
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise CheckpointError(f"{file}: can't be used ({reason}); correct it or move it away") from None
    if architecture and architecture != backbone.partition(".")[0]:
        raise CheckpointError(
            f"{path}: weights of {note.architecture}, but the network is {backbone}; "
            f"choose {note.architecture}, or other weights"
        )
    return note


def find_weights(name: str) -> Path | None:
    """Return the file of the network `name` in the folder $IMGCLF_WEIGHTS; None without that variable or such a file.

    It is called after the network, as in `mobilenetv2_100.safetensors`; a tag may follow, as in
    `mobilenetv2_100.ra_in1k.safetensors`, with any of `.`, `_` and `-` between. Where several tags are there, the name has
    to say which. Raises `ConfigError` if the folder doesn't exist or several files fit.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError(f"${FOLDER_VARIABLE}={folder}: no such folder; expected one with files of weights")
    files = sorted(path for path in root.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    wanted = _plain_name(name)
    exact = [path for path in files if _plain_name(path.stem) == wanted]
    # `resnet18_a1_in1k` are weights of resnet18, but `resnet18_d` is a network of its own
    tagged = [path for path in files if _plain_name(path.stem).startswith(f"{wanted}_") and _network_of(path) == name]
    found = exact or tagged
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"${FOLDER_VARIABLE}={folder}: several files for {name}: {names}; expected one")
    return found[0] if found else None


def _plain_name(name: str) -> str:
    return re.sub(r"[.-]", "_", name)


def _network_of(path: Path) -> str:
    """Return the name of the network that the longest beginning of a file's name stands for, "" for none."""
    parts = _plain_name(path.stem).split("_")
    beginnings = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in beginnings if timm.is_model(name)), "")


def describe_weights(name: str, path: str | Path | None, **changes: Any) -> tuple[Preprocess, dict[str, Any]]:
    """Return the preprocessing that weights of the network `name` expect, with `changes`, and the keywords that they need.

    `path`: a local file, whose note describes them; None for timm's own. Raises `ConfigError`, `CheckpointError`.
    """
    check_name(name)
    note = read_note(path, name) if path else WeightsNote(None, {}, None)
    if note.pretrained_cfg:
        return Preprocess.from_config(dict(note.pretrained_cfg), **changes), dict(note.kwargs)
    return Preprocess.of(name, **changes), dict(note.kwargs)


def load_weights(backbone: Backbone, path: str | Path, name: str) -> None:
    """Copy the tensors in a local file into `backbone`; those of the file's own head are left out.

    Raises `CheckpointError` when the file can't be read, lacks a tensor, or has one of another shape.
    """
    read_note(path, name)
    copy_tensors(backbone.network, path, name)


def copy_tensors(network: nn.Module, path: str | Path, name: str) -> None:
    """Copy the tensors that `network` has from a local file; raises `CheckpointError` as `load_weights` does."""
    state = read_file(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, found {type(state).__name__}")
    if isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    named = {key.removeprefix("module."): value for key, value in state.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    if missing := [key for key in own if key not in tensors]:
        raise CheckpointError(
            f"{path}: lacks {len(missing)} of the {len(own)} tensors of {name}, first {missing[0]!r}; "
            "these are weights of another network, or not in timm's format"
        )
    _adapt_channels(network, tensors)
    for key, value in own.items():
        if tensors[key].shape != value.shape or tensors[key].is_complex():
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}, {name} needs {tuple(value.shape)}; "
                "check the network's name and keywords"
            )
        value.copy_(tensors[key])


def _adapt_channels(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Adapt the first layer from RGB to grey (summed) or back (repeated), as timm does."""
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
    for key in [f"{name}.weight" for name in ([first] if isinstance(first, str) else first or [])]:
        wanted = network.state_dict()[key].shape[1]
        if key in tensors and tensors[key].ndim == 4 and tensors[key].shape[1] != wanted in (1, 3):
            tensors[key] = adapt_input_conv(wanted, tensors[key])


def load_pretrained(backbone: Backbone, name: str, kwargs: Mapping[str, Any], in_chans: int, size: int) -> None:
    """Copy timm's own weights for `name` into `backbone`; raises `CheckpointError` where they aren't available."""
    source = pretrained_network(name, kwargs, in_chans, size, num_classes=0)
    own = backbone.network.state_dict()
    backbone.network.load_state_dict({key: value for key, value in source.state_dict().items() if key in own})


def pretrained_network(name: str, kwargs: Mapping[str, Any], in_chans: int, size: int, **head: Any) -> Any:
    """Return timm's network `name` with its own weights; `num_classes=0` leaves its head out.

    Raises `CheckpointError` where the weights aren't available, `ConfigError` where none exist. timm adapts them to the
    network, but doesn't read the file: for weights outside the hub (legacy_*, gcvit_*), timm 1.0.31 answers a TypeError of
    `weights_only=True` by reading the file again without it, which runs the code in it.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        architecture = name.partition(".")[0]
        raise ConfigError(
            f"{architecture} has no pretrained weights; choose another network, or train it from random ones with "
            "model.pretrained=false"
        )
    _go_offline_without_network()
    try:
        file = _fetch(config.hf_hub_id, config.hf_hub_filename, str(config.url))
    except Exception as error:  # the hub's client raises a dozen kinds, and so does a failing network
        offline = isinstance(error, LocalEntryNotFoundError)
        reason = "the hub can't be reached" if offline else f"{type(error).__name__}: {one_line(error, 120)}"
        folder = os.environ.get(FOLDER_VARIABLE)
        there = f"{folder}, which ${FOLDER_VARIABLE} names" if folder else f"a folder and set ${FOLDER_VARIABLE} to it"
        raise CheckpointError(
            f"no ImageNet weights for {name} ({reason}); go online and run again, "
            f"or put the file {name}.safetensors (or .pth) into {there}"
        ) from error
    state = read_file(file)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file}: no weights of {name}; delete it and run again")
    keywords = {**size_keywords(name, size), **kwargs, **head, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        return timm.create_model(name, pretrained=True, in_chans=in_chans, **keywords)
    except Exception as error:  # each network has code of its own that rewrites names and shapes
        reason = f"{type(error).__name__}: {one_line(error, 120)}"
        raise CheckpointError(f"{file}: not the weights of {name} ({reason}); delete it and run again") from error


def _fetch(hub_id: str | None, filename: str | None, url: str) -> Path:
    """Return the file of timm's weights, from the hub or its cache, or else from their address or torch's cache."""
    if not hub_id:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
        return file
    repository, _, revision = hub_id.partition("@")
    missing: Exception | None = None
    for name in [filename] if filename else [SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME]:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _go_offline_without_network() -> None:
    """Use only the hub's local cache where the hub isn't reachable: its client would retry for a minute, with warnings."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return  # the proxy may reach it
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
