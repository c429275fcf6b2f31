"""A network as its authors published it, untrained on anything of the user's: the 1,000 classes of ImageNet by name."""

from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from imgclf.errors import ConfigError
from imgclf.inference.predictor import Predictor, to_device
from imgclf.models import ImageModel
from imgclf.models.weights import copy_tensors, describe_weights, pretrained_network

__all__ = ["load_imagenet"]


def load_imagenet(name: str, weights: str | None = None, device: str = "cpu", engine: str = "auto",
                  precision: str = "fp32") -> Predictor:  # fmt: skip
    """timm's network `name` with its ImageNet weights, from the file `weights` or else the hub; pictures are cropped as the
    weights say. Raises `ConfigError` for a network that timm doesn't have or whose classes aren't ImageNet's, and
    `CheckpointError` for weights that can't be had.
    """
    if weights and not Path(weights).expanduser().is_file():
        raise ConfigError(f"--weights {weights}: there is no such file; expected safetensors or pth")
    preprocess, keywords = describe_weights(name, weights, resize="crop")
    if weights:
        network = timm.create_model(name, pretrained=False, **keywords)
        copy_tensors(network, Path(weights).expanduser(), name)
    else:
        network = pretrained_network(name, {}, preprocess.channels, preprocess.size)
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    trained = to_device(ImageModel(network, _class_names(network, name), preprocess).eval(), device)
    return Predictor(trained, weights or name, engine, precision)


def _class_names(network: Any, name: str) -> tuple[str, ...]:
    """The words of WordNet; where two classes share one (crane: bird and machine) its number there follows."""
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ConfigError(
            f"--imagenet {name}: its {network.num_classes} classes aren't ImageNet's; choose another network"
        )
    info = ImageNetInfo(subset)
    words = [info.index_to_description(index).partition(",")[0] for index in range(network.num_classes)]
    many = Counter(words)
    return tuple(f"{word} ({info.index_to_label_name(index)})" if many[word] > 1 else word
                 for index, word in enumerate(words))  # fmt: skip
