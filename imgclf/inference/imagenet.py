"""Predictions with the published ImageNet weights of a timm network, without a checkpoint: 1,000 classes by name."""

from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from imgclf.errors import ConfigError
from imgclf.inference.predictor import Predictor, choose_device
from imgclf.models.backbone import check_name
from imgclf.models.weights import copy_tensors, pretrained_network, read_note
from imgclf.preprocess import Preprocess

__all__ = ["ImageNetNetwork", "load_imagenet"]


class ImageNetNetwork(nn.Module):
    """A timm network with its own head, that answers like a `TrainedNetwork`."""

    temperature = 1.0

    def __init__(self, network: Any, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.preprocess, self.classes = network, preprocess, classes
        self.history: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @property
    def predictor(self) -> Any:
        """The network that answers."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> logits [B, 1000]."""
        return self.network((images.float() - self.mean) / self.std)


def load_imagenet(
    name: str, weights: str | None = None, device: str = "auto", engine: str = "auto", precision: str = "fp32"
) -> Predictor:
    """Load timm's network `name` with its ImageNet weights, from the file `weights` or else the hub; images are cropped as
    for the weights. `device`, `engine` and `precision` are those of `imgclf.load`.

    Raises `ConfigError` for a network that timm does not have or whose classes are not ImageNet's, `CheckpointError` for
    weights that cannot be read or downloaded.
    """
    check_name(name)
    place = choose_device(device)
    preprocess = Preprocess.of(name, resize="crop")
    if weights:
        if not Path(weights).expanduser().is_file():
            raise ConfigError(f"--weights {weights}: no such file; expected safetensors or pth")
        note = read_note(weights, name)
        if note.pretrained_cfg:
            preprocess = Preprocess.from_config(dict(note.pretrained_cfg), resize="crop")
        network = timm.create_model(name, pretrained=False, **note.kwargs)
        copy_tensors(network, Path(weights).expanduser(), name)
    else:
        network = pretrained_network(name, {}, preprocess.channels, preprocess.size)
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    trained = ImageNetNetwork(network, preprocess, _class_names(network, name)).eval().to(place)
    return Predictor(trained, weights or name, engine, precision)


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
