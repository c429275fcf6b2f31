"""What answers for pictures, trained or being trained: network, classes and preprocessing, and how a file gives them back.

Nothing here loads Lightning, which takes longer to import than a picture to classify.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from imgclf.errors import CheckpointError, ConfigError
from imgclf.models.declared import check_facts, check_numbers, check_shapes, declared_within
from imgclf.models.frozen_stem import Bypass, SharedView
from imgclf.models.network import Network, build_network
from imgclf.models.weights import read_checkpoint
from imgclf.preprocess import Preprocess

__all__ = ["Answering", "Answers", "TrainedNetwork", "restore"]

Made = TypeVar("Made", bound="Answers")
_ABOUT = (
    "config",
    "data",
    "metrics",
    "fingerprint",
    "temperature",
)  # of a checkpoint: what it tells beside its network


class Answers:
    """The part that an `ImageClassifier` and a `TrainedNetwork` have in common; `assemble` comes before all else."""

    network: Network
    ema_network: Network | None
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    preprocess: Preprocess
    history: list[dict[str, Any]]
    about: dict[str, Any]

    def assemble(self, model: Mapping[str, Any], classes: Sequence[str], preprocess: Mapping[str, Any],
                 ema_decay: float | None, seed: int) -> None:  # fmt: skip
        """Build the network, with random weights, and what belongs to it; raises `ConfigError`."""
        module: Any = self  # the nn.Module that this is a part of
        self.classes = tuple(classes)
        self.preprocess = Preprocess.from_dict(dict(preprocess))
        with torch.random.fork_rng(devices=[]):  # whoever loads a model keeps their own random numbers
            torch.default_generator.manual_seed(seed)
            self.network = build_network(model, len(self.classes), self.preprocess.channels, self.preprocess.size)
        self.ema_network = copy.deepcopy(self.network).requires_grad_(False) if ema_decay else None
        for name, values in (("mean", self.preprocess.mean), ("std", self.preprocess.std)):
            module.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255, persistent=False)
        self._rests: dict[int, SharedView] = {}
        self.history = []  # a row an epoch
        self.about = {}  # plain data that travels in the checkpoint: config, data, metrics

    def use_features(self, passed: Sequence[str]) -> None:
        """From now on take features in place of pictures where a batch brings them: what the modules `passed` would give."""
        networks = (self.network, self.ema_network) if self.ema_network is not None else (self.network,)
        self._rests = {id(network): SharedView(network, dict.fromkeys(passed, Bypass())) for network in networks}

    def taking(self, network: Network, images: Tensor) -> Network | SharedView:
        """`network`, or its part behind the features that came in place of `images`."""
        return self._rests[id(network)] if images.is_floating_point() else network

    @property
    def predictor(self) -> Network:
        """The network that answers: the averaged one where there is one."""
        return self.ema_network if self.ema_network is not None else self.network

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, C, S, S] as the weights expect it; features stay as they are.

        In place, a row of pixels at a time as they lie in memory: a third of the time of `(images - mean) / std`, to the bit.
        """
        if images.is_floating_point():
            return images
        pixels = images.permute(0, 2, 3, 1)  # [B, S, S, C]
        batch, height, width, channels = pixels.shape
        rows = pixels.reshape(batch, height, width * channels).float()
        rows.sub_(self.mean.view(-1).repeat(width)).div_(self.std.view(-1).repeat(width))
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S], or features (see `use_features`) -> logits [B, K] of the network that answers."""
        return self.taking(self.predictor, images)(self.normalise(images))

    @property
    def temperature(self) -> float:
        """What the logits are divided by before they become probabilities: 1, or what `calibrate=true` has found."""
        return float(self.about.get("temperature") or 1.0)

    def flips(self) -> tuple[str, ...]:
        """The mirror images that show the same class, as the data set says; raises `ConfigError` where it says none."""
        config = self.about.get("config") or {}
        augment = (config.get("dataset") or {}).get("augment") or {}
        known = self.about.get("data", {}).get("flips") or [
            name for name in ("horizontal", "vertical") if augment.get(f"{name}_flip")
        ]
        if not known:
            raise ConfigError("tta: the data set of this checkpoint names no mirror image that shows the same class "
                              "(dataset.flips); leave it out, or train with dataset.flips=[horizontal]")  # fmt: skip
        return tuple(known)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the history; Lightning calls this too."""
        self.history = copy.deepcopy(checkpoint["imgclf"]["history"])


class TrainedNetwork(Answers, nn.Module):
    """A classifier for predictions only: no optimizer, no metrics, no Lightning. The keywords of an `ImageClassifier` that
    say how it is trained are taken and not looked at.
    """

    def __init__(self, model: Mapping[str, Any], classes: Sequence[str], preprocess: Mapping[str, Any],
                 ema_decay: float | None = None, seed: int = 0, **of_training: Any) -> None:  # fmt: skip
        super().__init__()
        self.assemble(model, classes, preprocess, ema_decay, seed)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device


class Answering(Protocol):
    """Whatever answers: an `ImageClassifier` or a `TrainedNetwork`."""

    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    preprocess: Preprocess

    @property
    def temperature(self) -> float:
        """What logits are divided by."""

    @property
    def device(self) -> Any:
        """Where it computes."""

    @property
    def predictor(self) -> Network:
        """The network that answers."""

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S], or features -> logits [B, K]."""

    def eval(self) -> Any:
        """Answer as after training."""


def restore(make: Callable[..., Made], path: str | Path, map_location: Any = "cpu", **changes: Any) -> Made:
    """What `make` makes of the settings in a checkpoint, with the weights in it, in eval mode; nothing but tensors and plain
    data is read from the file. Raises `CheckpointError` for a file that is no checkpoint of imgclf, or a damaged one.
    """
    checkpoint = read_checkpoint(path, map_location)
    hparams, state = {**checkpoint["hyper_parameters"], **changes}, checkpoint["state_dict"]
    try:
        check_facts(checkpoint)
        check_numbers(hparams["model"], state)
        with declared_within(state):
            check_shapes(_module(make(**hparams)), state)  # of a network that takes no memory
        made = make(**hparams)
        _module(made).load_state_dict(state)
        made.on_load_checkpoint(checkpoint)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:400]}") from None
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: no checkpoint that this version of imgclf can use "
                              f"({type(error).__name__}: {reason})") from None  # fmt: skip
    made.about = {key: value for key, value in checkpoint["imgclf"].items() if key in _ABOUT}
    _module(made).eval()
    return made


def _module(made: Any) -> nn.Module:
    return made
