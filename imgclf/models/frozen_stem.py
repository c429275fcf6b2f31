"""Where a partly frozen network can be cut: what lies before sees each picture once, what lies behind is trained.

The cut lies at the input of the first module that is trained, or as near before it as the network allows: a module whose
parameters, and those of all that was called before it, are frozen is passed over, and a container is entered. Both parts
are views: the same modules and parameters in other containers, where `Bypass` stands for what the other part does. A network
whose parts don't add up to the whole (a connection that skips the cut, code between the modules) is cut further to the front,
or not at all: it is run on noise, and compared.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgclf.models.network import Network

__all__ = ["Bypass", "FrozenStem", "SharedView", "find_frozen_stem"]

TOLERANCE = 1e-6  # of the largest logit; the parts do the same sums in the same order


class Bypass(nn.Module):
    """Gives back what it is given first, whatever else comes along."""

    def forward(self, features: Tensor, *_: Any, **__: Any) -> Tensor:
        """The same features."""
        return features


@dataclass(frozen=True)
class FrozenStem:
    """`stem`: normalised images [B, C, S, S] -> features [B, ...] of `shape`; `rest`: those -> logits [B, K].

    `passed` names the modules of the network that the stem consists of.
    """

    stem: nn.Module
    rest: "SharedView"
    passed: tuple[str, ...]
    shape: tuple[int, ...]

    def frozen(self) -> bool:
        """Whether nothing in the stem is trained."""
        return not any(parameter.requires_grad for parameter in self.stem.parameters())


class SharedView:
    """A network whose modules are shared with another one, container by container: what is trained there is trained here."""

    def __init__(self, network: nn.Module, replaced: dict[str, nn.Module]) -> None:
        self._copies: list[tuple[nn.Module, nn.Module]] = []
        self.module = self._copy(network, "", replaced)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the network gives."""
        for mine, original in self._copies:
            mine.training = original.training
        return self.module(inputs)

    def _copy(self, module: nn.Module, path: str, replaced: dict[str, nn.Module]) -> nn.Module:
        """A copy of every container above something that is replaced; all else is the very module."""
        if path in replaced:
            return replaced[path]
        if not any(name.startswith(f"{path}.") or not path for name in replaced):
            return module
        mine = copy.copy(module)  # parameters and buffers stay the same objects, in the same dictionaries
        children = {key: self._copy(child, f"{path}.{key}".lstrip("."), replaced) if child is not None else None
                    for key, child in module._modules.items()}  # fmt: skip
        object.__setattr__(mine, "_modules", children)
        self._copies.append((mine, module))
        return mine


def find_frozen_stem(network: Network, in_chans: int, size: int) -> FrozenStem | None:
    """The deepest cut of `network` that leaves its logits as they are; None where nothing can be cached.

    Call it with the right parts frozen. The network must be in full precision; it is run on two pictures of noise.
    """
    images = torch.rand(2, in_chans, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parameter = next(network.parameters())
    images = images.to(parameter.device).contiguous(memory_format=torch.channels_last)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            calls = _calls(network, images)
            whole = network(images)
            for passed in _cuts(network, calls):
                if split := _try(network, images, whole, passed, calls):
                    return split
        return None
    finally:
        network.train(was_training)


def _calls(network: nn.Module, images: Tensor) -> list[str]:
    """The paths of the modules in the order in which they are called; a module that is called twice comes once."""
    order: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in network.named_modules()
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def _cuts(network: Network, calls: list[str]) -> Iterator[tuple[str, ...]]:
    """The modules before the cut, by path: the deepest cut first, then those that lie nearer to the front."""
    passed = _frozen_before(network, "", calls)
    while passed and any(
        parameter.numel() for path in passed for parameter in network.get_submodule(path).parameters()
    ):
        yield tuple(passed)
        depth = max(path.count(".") for path in passed)
        above = [path for path in passed if path.count(".") < depth]  # no longer inside the innermost container
        passed = above if len(above) < len(passed) and above else passed[:-1]


def _frozen_before(network: nn.Module, path: str, calls: list[str]) -> list[str]:
    """The paths of the modules at `path` and below it that are called before the first that learns or draws numbers."""
    inside = [call for call in calls if call and (not path or call.startswith(f"{path}."))]
    passed: list[str] = []
    for call in inside:  # `network.backbone.network` is never called itself, what it contains is
        if any(call.startswith(f"{other}.") for other in inside):
            continue
        if not _is_fixed(network.get_submodule(call)):
            return passed + _frozen_before(network, call, calls)
        passed.append(call)
    return passed


def _is_fixed(module: nn.Module) -> bool:
    """Whether it gives the same for the same in training: frozen, and drops nothing at random."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    if next(module.parameters(), None) is not None:
        return True  # a frozen module stays in eval mode, and what it contains with it
    if any(name.endswith("running_mean") for name, _ in module.named_buffers()):
        return False  # a BatchNorm without parameters learns statistics all the same
    drops = [getattr(m, "p", getattr(m, "drop_prob", 0)) for m in module.modules() if "Drop" in type(m).__name__]
    return not any(drops)


def _try(
    network: Network, images: Tensor, whole: Tensor, passed: tuple[str, ...], calls: list[str]
) -> FrozenStem | None:
    """The two parts, if they add up to the whole."""
    others = [call for call in calls if call and not any(f"{call}.".startswith(f"{path}.") or path.startswith(f"{call}.")
                                                         for path in passed)]  # fmt: skip
    outer = {path: Bypass() for path in others if not any(path.startswith(f"{other}.") for other in others)}
    stem, rest = SharedView(network, dict(outer)), SharedView(network, {path: Bypass() for path in passed})
    try:
        features = stem(images)
        logits = rest(features)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ):  # code between the modules wants other shapes
        return None
    if logits.shape != whole.shape or float((logits - whole).abs().max()) > TOLERANCE * float(whole.abs().max()):
        return None
    return FrozenStem(stem.module, rest, passed, tuple(features.shape[1:]))
