"""Weights for a backbone: from a local file, or timm's from the hub."""

import json
import os
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
from huggingface_hub.errors import EntryNotFoundError
from timm.models import adapt_input_conv
from torch import nn

from imgclf.errors import CheckpointError, ConfigError
from imgclf.files.model_file import check_sums, read_file
from imgclf.models.backbone import Backbone, sized
from imgclf.preprocess import Preprocess

__all__ = [
    "WeightsNote", "copy_tensors", "load_pretrained", "load_weights", "pretrained_network", "read_checkpoint", "read_note",
]  # fmt: skip


@dataclass(frozen=True)
class WeightsNote:
    """What the JSON beside a weights file says: the architecture, keywords for `create_model`, timm's `pretrained_cfg`."""

    architecture: str | None
    kwargs: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any] | None


def read_note(path: str | Path, backbone: str) -> WeightsNote:
    """The note beside the weights at `path` (same name, `.json`), or an empty one where there is none.

    Raises `CheckpointError` when it can't be read or is for another architecture than `backbone`.
    """
    note = Path(path).with_suffix(".json")
    if not note.is_file():
        return WeightsNote(None, {}, None)
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        found = WeightsNote(values.get("architecture"), dict(values.get("create_model_kwargs") or {}),
                            values.get("pretrained_cfg"))  # fmt: skip
        if found.pretrained_cfg:
            Preprocess.from_config(dict(found.pretrained_cfg))
        named = (found.architecture or "").partition(".")[0]
    except (OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{note}: can't be used ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
                              "correct it or move it away") from None  # fmt: skip
    if named and named != backbone.partition(".")[0]:
        raise CheckpointError(f"{path}: weights of {found.architecture}, but model.backbone={backbone}; "
                              f"pass model.backbone={found.architecture} or other weights")  # fmt: skip
    return found


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
    tensors = {key.removeprefix("module."): value for key, value in state.items()
               if isinstance(key, str) and isinstance(value, torch.Tensor)}  # fmt: skip
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    if missing := [key for key in own if key not in tensors]:
        raise CheckpointError(f"{path}: lacks {len(missing)} of the {len(own)} tensors of {name}, first {missing[0]!r}; "
                              "these are weights of another network, or not in timm's format")  # fmt: skip
    _adapt_channels(network, tensors)
    for key, value in own.items():
        if tensors[key].shape != value.shape or tensors[key].is_complex():
            raise CheckpointError(f"{path}: {key} has shape {tuple(tensors[key].shape)}, {name} needs "
                                  f"{tuple(value.shape)}; check model.backbone and model.backbone_kwargs")  # fmt: skip
        value.copy_(tensors[key])


def load_pretrained(backbone: Backbone, name: str, kwargs: Mapping[str, Any], in_chans: int, size: int) -> None:
    """Copy timm's own weights for `name` into `backbone`; raises `CheckpointError` when they are out of reach."""
    source = pretrained_network(name, kwargs, in_chans, size, num_classes=0)
    own = backbone.network.state_dict()
    backbone.network.load_state_dict({key: value for key, value in source.state_dict().items() if key in own})


def pretrained_network(name: str, kwargs: Mapping[str, Any], in_chans: int, size: int, **head: Any) -> Any:
    """timm's `name` with its own weights; `num_classes=0` leaves its head out. Raises `CheckpointError` when they are out of
    reach, `ConfigError` where there are none.

    timm adapts them to the network, but doesn't read the file: for what isn't on the hub (legacy_*, gcvit_*), 1.0.31 reads
    a file that made `weights_only=True` stumble over a TypeError once more, and then runs what is in it.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(f"model.pretrained=true: {name.partition('.')[0]} has no pretrained weights; "
                          "pass model.pretrained=false")  # fmt: skip
    _stay_offline_if_so()
    ways = "model.weights=<a safetensors or pth file>; model.pretrained=false to start from random weights"
    try:
        file = _fetch(config.hf_hub_id, config.hf_hub_filename, str(config.url))
    except Exception as error:  # the hub's client raises a dozen kinds, and so does a network that is half there
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"no ImageNet weights for {name} ({type(error).__name__}: {reason}). Three ways out: "
                              f"go online and run again; {ways}") from error  # fmt: skip
    state = read_file(file)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file}: no weights of {name}; delete it and run again")
    try:
        return timm.create_model(name, pretrained=True, in_chans=in_chans, pretrained_cfg_overlay={"state_dict": state},
                                 **sized(name, size), **kwargs, **head)  # fmt: skip
    except Exception as error:  # each network has code of its own that rewrites names and shapes
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{file}: not the weights of {name} ({type(error).__name__}: {reason}). Two ways out: "
                              f"{ways}") from error  # fmt: skip


def _fetch(hub_id: str | None, filename: str | None, url: str) -> Path:
    """The file of timm's weights, from the hub or its cache; where there is none, from their address or torch's cache."""
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


def _stay_offline_if_so() -> None:
    """Without a way to the hub, look into its local cache only: its client would try for a minute, aloud."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return  # the way may lead through the proxy
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint of imgclf; raises `CheckpointError` for any other file."""
    checkpoint = read_file(path, map_location)
    check_sums(Path(path).expanduser())
    wanted = ("state_dict", "hyper_parameters", "imgclf")
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(key), dict) for key in wanted):
        raise CheckpointError(f"{path}: no checkpoint of imgclf; expected one that `python -m imgclf.train` wrote")
    return checkpoint


def _adapt_channels(network: nn.Module, tensors: dict[str, Any]) -> None:
    """Weights for RGB serve for grey (summed) and back (repeated), as timm does it."""
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
    for key in [f"{name}.weight" for name in ([first] if isinstance(first, str) else first or [])]:
        wanted = network.state_dict()[key].shape[1]
        if key in tensors and tensors[key].ndim == 4 and tensors[key].shape[1] != wanted in (1, 3):
            tensors[key] = adapt_input_conv(wanted, tensors[key])
