"""The image model: a network with its class names and preprocessing, from uint8 images to logits.

Nothing here imports Lightning, which takes longer to import than an image to classify.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgclf.config import ModelConfig
from imgclf.models.checkpoint import (
    AVERAGED,
    TRAINED,
    check_checkpoint,
    checkpoint_errors,
    read_checkpoint,
)
from imgclf.models.frozen_stem import Bypass, FrozenStem, SharedView, find_frozen_stem
from imgclf.models.metadata import CheckpointMetadata
from imgclf.models.network import Network, build_network
from imgclf.preprocess import Preprocess

__all__ = ["ImageModel", "load_image_model"]


class ImageModel(nn.Module):
    """`network` for `classes`, after the normalisation of `preprocess`: uint8 [B, C, S, S] -> logits [B, K].

    `network` takes normalised images [B, C, S, S]: a `Network`, or a bare timm network with its own head. `metadata` is
    what a checkpoint holds besides the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        preprocess: Preprocess,
        metadata: CheckpointMetadata | None = None,
    ) -> None:
        super().__init__()
        self.network, self.classes, self.preprocess = network, tuple(classes), preprocess
        self.metadata = metadata or CheckpointMetadata()
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)
        self._rest: SharedView | None = None

    @classmethod
    def build(cls, config: ModelConfig, classes: Sequence[str], preprocess: Preprocess, seed: int = 0) -> "ImageModel":
        """Return the model that `config` describes, with random weights by `seed`; raises `ConfigError`.

        The global random state stays as it is.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = build_network(config, len(classes), preprocess.channels, preprocess.size)
        return cls(network, classes, preprocess)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> logits [B, K]."""
        return self.network(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> floats of the model's type [B, C, S, S] as the weights expect it.

        In place, by rows of pixels in memory order: a third of the time of `(images - mean) / std`, and the same bits.
        """
        pixels = images.permute(0, 2, 3, 1)  # [B, S, S, C]
        batch, height, width, channels = pixels.shape
        wide = torch.promote_types(self.mean.dtype, torch.float32)  # half precision rounds 255 levels
        rows = pixels.reshape(batch, height, width * channels).to(wide)
        rows.sub_(self.mean.view(-1).repeat(width)).div_(self.std.view(-1).repeat(width))
        return rows.to(self.mean.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def find_frozen_stem(self) -> FrozenStem | None:
        """Return the cut between the frozen stem of the network and the rest; None without one."""
        return find_frozen_stem(self.network, self.preprocess.channels, self.preprocess.size)

    def use_features(self, frozen_modules: Sequence[str]) -> None:
        """Prepare `forward_features` for what the modules `frozen_modules` of the network give (see `FrozenStem`)."""
        self._rest = SharedView(self.network, dict.fromkeys(frozen_modules, Bypass()))

    def forward_features(self, features: Tensor) -> Tensor:
        """Features of the frozen modules [B, ...] -> logits [B, K]; `use_features` comes first."""
        if self._rest is None:
            raise RuntimeError("forward_features: call use_features first")
        return self._rest(features)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.mean.device

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax: 1, or the value that `calibrate=true` has fitted."""
        return self.metadata.temperature

    def penalty(self) -> Tensor:
        """L2 term of the loss: a scalar, 0 for a network without a `Head`."""
        return self.network.head.penalty() if isinstance(self.network, Network) else self.mean.new_zeros(())


def load_image_model(path: str | Path, map_location: Any = "cpu") -> ImageModel:
    """Return the model of a checkpoint, in eval mode, to predict with: its averaged weights where it has them.

    Reads nothing but tensors and plain data. Raises `CheckpointError` for any other or a damaged file.
    """
    checkpoint = read_checkpoint(path, map_location)
    hparams, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    with checkpoint_errors(path):
        metadata = check_checkpoint(checkpoint)
        config, preprocess = ModelConfig.from_dict(hparams["model"]), Preprocess.from_dict(hparams["preprocess"])
        model = ImageModel.build(config, hparams["classes"], preprocess)
        prefix = AVERAGED if hparams.get("ema_decay") else TRAINED
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        model.network.load_state_dict(weights)
        model.metadata = metadata
    return model.eval()
