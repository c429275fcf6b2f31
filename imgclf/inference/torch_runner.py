"""Image models on torch: a run's checkpoint, or timm's ImageNet weights."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from imgclf.data.loader import Batch
from imgclf.errors import ConfigError, require_value
from imgclf.evaluation.evaluate import ForwardFn, build_forward, predict_logits, softmax
from imgclf.evaluation.saliency import explain, overlay
from imgclf.inference.predictor import Predictor
from imgclf.malloc import tune_malloc
from imgclf.models import ImageModel, load_image_model
from imgclf.models.backbone import check_name
from imgclf.models.engine import choose_engine
from imgclf.models.network import Network, to_channels_last
from imgclf.models.weights import copy_tensors, describe_weights, find_weights, pretrained_network

__all__ = ["TorchRunner", "choose_device", "load_checkpoint", "load_imagenet"]

DEVICES = "auto, cpu, cuda, cuda:<number> or mps"


class TorchRunner:
    """Runs an image model with torch, or OpenVINO in its place; see `imgclf.inference.predictor.Runner`."""

    def __init__(
        self, model: ImageModel, engine: str = "auto", precision: str = "fp32", flips: Sequence[str] = ()
    ) -> None:
        self.model, self.engine, self.precision, self.flips = model, engine, precision, tuple(flips)
        self._engines: dict[str, ForwardFn] = {}

    @property
    def description(self) -> str:
        """The network and the device."""
        network = self.model.network
        name = network.backbone.name if isinstance(network, Network) else type(network).__name__
        return f"{name} on {self.model.preprocess.size} x {self.model.preprocess.size} pixels, on {self.model.device}"

    def prepare(self, count: int) -> str:
        """Build the engine for `count` images, and return its name."""
        name = choose_engine(self.engine, self.model.device, count)
        if name not in self._engines:
            self._engines[name] = build_forward(self.model, name, count, self.precision)
        return name

    def run(self, pixels: NDArray[np.uint8], engine: str) -> NDArray[np.float32]:
        """uint8 [B, S, S, C] -> probabilities float32 [B, K]."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # [B, C, S, S]
        nothing = torch.zeros(len(pixels), dtype=torch.int64)
        batches = [Batch(images, nothing, nothing)]
        logits = predict_logits(self.model, batches, None, self._engines[engine], self.flips)  # [B, K]
        probabilities = softmax(logits, self.model.temperature)
        probabilities[~np.isfinite(logits).all(axis=1)] = np.nan
        return probabilities

    def saliency(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Return the saliency map of the class `index` over pixels uint8 [S, S, C]: uint8 [S, S, 3]."""
        images = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)  # [1, C, S, S]
        return overlay(pixels, explain(self.model, images, torch.tensor([index]))[0])


def load_checkpoint(file: Path, device: str | torch.device, engine: str, precision: str, tta: bool) -> Predictor:
    """Load the classifier from a checkpoint's file; `imgclf.load` says more."""
    tune_malloc()  # a script that predicts is then as fast as `imgclf predict`
    target = choose_device(device)
    model = load_image_model(file).to(target)
    flips = model.metadata.flips() if tta else ()
    return Predictor(model, file, TorchRunner(model, engine, precision, flips))


def load_imagenet(
    name: str, weights: str | None = None, device: str = "auto", engine: str = "auto", precision: str = "fp32"
) -> Predictor:
    """Load timm's network `name` with its ImageNet weights, from the file `weights`, the folder
    $IMGCLF_WEIGHTS or the hub; images are cropped as
    for the weights. `device`, `engine` and `precision` are those of `imgclf.load`.

    Raises `ConfigError` for a network that timm does not have or whose classes are not ImageNet's, `CheckpointError` for
    weights that cannot be read or downloaded.
    """
    place = choose_device(device)
    require_value("weights", weights)
    if weights and not os.path.isfile(os.path.expanduser(weights)):  # noqa: PTH111, PTH113
        raise ConfigError(f"weights {weights}: no such file; expected safetensors or pth")
    check_name(name, "network")
    weights = weights or (str(found) if (found := find_weights(name)) else None)
    preprocess, keywords = describe_weights(name, weights, resize="crop")
    if weights:
        network = timm.create_model(name, pretrained=False, **keywords)
        copy_tensors(network, Path(weights).expanduser(), name)
    else:
        network = pretrained_network(name, {}, preprocess.channels, preprocess.size)
    network = network.eval().requires_grad_(False)
    to_channels_last(network)
    model = ImageModel(network, _class_names(network, name), preprocess).eval().to(place)
    return Predictor(model, weights or name, TorchRunner(model, engine, precision))


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device `name`; "auto" is CUDA if there is a GPU, else MPS, else the CPU.

    Raises `ConfigError` for a device that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {name}: no such device; expected {DEVICES}") from None
    if device.type not in available:
        raise ConfigError(f"device {name}: not supported; expected {DEVICES}")
    if not available[device.type]:
        raise ConfigError(f"device {name}: not available on this machine; choose cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    return device


def _class_names(network: Any, name: str) -> tuple[str, ...]:
    """Return the WordNet name of each class; one that several classes share (crane: bird and machine) is followed by its id."""
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ConfigError(
            f"{name}: its {network.num_classes} classes are not those of ImageNet; choose another network"
        )
    info = ImageNetInfo(subset)
    words = [info.index_to_description(index).partition(",")[0] for index in range(network.num_classes)]
    wnids = [info.index_to_label_name(index) for index in range(network.num_classes)]
    uses = Counter(words)
    return tuple(f"{word} ({wnid})" if uses[word] > 1 else word for word, wnid in zip(words, wnids, strict=True))
