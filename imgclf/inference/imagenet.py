"""Predictions with the published ImageNet weights of a timm network, without a checkpoint: 1,000 classes by name."""

from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from imgclf.errors import ConfigError
from imgclf.inference.predictor import Predictor, choose_device
from imgclf.models import ImageModel
from imgclf.models.weights import copy_tensors, describe_weights, pretrained_network

__all__ = ["load_imagenet"]


def load_imagenet(
    name: str, weights: str | None = None, device: str = "auto", engine: str = "auto", precision: str = "fp32"
) -> Predictor:
    """Load timm's network `name` with its ImageNet weights, from the file `weights` or else the hub; images are cropped as
    for the weights. `device`, `engine` and `precision` are those of `imgclf.load`.

    Raises `ConfigError` for a network that timm does not have or whose classes are not ImageNet's, `CheckpointError` for
    weights that cannot be read or downloaded.
    """
    place = choose_device(device)
    if weights and not Path(weights).expanduser().is_file():
        raise ConfigError(f"--weights {weights}: no such file; expected safetensors or pth")
    preprocess, keywords = describe_weights(name, weights, resize="crop")
    if weights:
        network = timm.create_model(name, pretrained=False, **keywords)
        copy_tensors(network, Path(weights).expanduser(), name)
    else:
        network = pretrained_network(name, {}, preprocess.channels, preprocess.size)
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    model = ImageModel(network, _class_names(network, name), preprocess).eval().to(place)
    return Predictor(model, weights or name, engine, precision)


def _class_names(network: Any, name: str) -> tuple[str, ...]:
    """Return the WordNet name of each class; one that several classes share (crane: bird and machine) has its id behind it."""
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ConfigError(
            f"--imagenet {name}: its {network.num_classes} classes are not those of ImageNet; choose another network"
        )
    info = ImageNetInfo(subset)
    words = [info.index_to_description(index).partition(",")[0] for index in range(network.num_classes)]
    wnids = [info.index_to_label_name(index) for index in range(network.num_classes)]
    uses = Counter(words)
    return tuple(f"{word} ({wnid})" if uses[word] > 1 else word for word, wnid in zip(words, wnids, strict=True))
