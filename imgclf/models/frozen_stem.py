"""Cut a partly frozen network in two: the stem, run once per image, and the rest, which is trained.

The cut lies at the input of the first module that is trained, or as near before it as the network allows: a module belongs
to the stem if its parameters, and those of all modules called before it, are frozen; a container is entered. Both parts
are views: the same modules and parameters in other containers, where a `Bypass` stands in for the other part. A network
whose parts don't add up to the whole (a connection that skips the cut, code between the modules) is cut further to the
front, or not at all: this is checked by running it on noise.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Bypass", "FrozenStem", "SharedView", "find_frozen_stem"]

TOLERANCE = 1e-6  # of the largest logit; the parts do the same sums in the same order


class Bypass(nn.Module):
    """Returns its first argument."""

    def forward(self, features: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return `features`."""
        return features


@dataclass(frozen=True)
class FrozenStem:
    """`stem`: normalised images [B, C, S, S] -> features [B, ...] of `shape`; `rest`: those -> logits [B, K].

    `frozen_modules` names the modules of the network that the stem consists of.
    """

    stem: nn.Module
    rest: "SharedView"
    frozen_modules: tuple[str, ...]
    shape: tuple[int, ...]

    def is_frozen(self) -> bool:
        """Return whether nothing in the stem is trained."""
        return not any(parameter.requires_grad for parameter in self.stem.parameters())


class SharedView:
    """A network with some modules replaced and all others shared, so that what is trained in the one is in the other."""

    def __init__(self, network: nn.Module, replaced: dict[str, nn.Module]) -> None:
        self._copies: list[tuple[nn.Module, nn.Module]] = []
        self.module = self._copy(network, "", replaced)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Run the network with its modules replaced."""
        for copied, original in self._copies:
            copied.training = original.training
        return self.module(inputs)

    def _copy(self, module: nn.Module, path: str, replaced: dict[str, nn.Module]) -> nn.Module:
        """Copy every container that holds a replaced module; return all other modules themselves."""
        if path in replaced:
            return replaced[path]
        if not any(name.startswith(f"{path}.") or not path for name in replaced):
            return module
        copied = copy.copy(module)  # parameters and buffers stay the same objects, in the same dictionaries
        children = {
            key: self._copy(child, f"{path}.{key}".lstrip("."), replaced) if child is not None else None
            for key, child in module._modules.items()
        }
        object.__setattr__(copied, "_modules", children)
        self._copies.append((copied, module))
        return copied


def find_frozen_stem(network: nn.Module, in_chans: int, size: int) -> FrozenStem | None:
    """Return the deepest cut of `network` that keeps its logits; None where no frozen stem can be cut off.

    The network must be in full precision, its parts frozen as in training; it is run on two images of noise.
    """
    images = torch.rand(2, in_chans, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parameter = next(network.parameters())
    images = images.to(parameter.device).contiguous(memory_format=torch.channels_last)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            calls = _calls(network, images)
            logits = network(images)
            attempts = (_cut(network, images, logits, modules, calls) for modules in _candidates(network, calls))
            return next((stem for stem in attempts if stem), None)
    finally:
        network.train(was_training)


def _calls(network: nn.Module, images: Tensor) -> list[str]:
    """Return the paths of the modules in the order of their first call."""
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


def _candidates(network: nn.Module, calls: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the modules before the cut: the deepest cut first, then those nearer to the front."""
    modules = _frozen_before(network, "", calls)
    while any(parameter.numel() for path in modules for parameter in network.get_submodule(path).parameters()):
        yield tuple(modules)
        depth = max(path.count(".") for path in modules)
        above = [path for path in modules if path.count(".") < depth]  # outside the innermost container
        modules = above if 0 < len(above) < len(modules) else modules[:-1]


def _frozen_before(network: nn.Module, path: str, calls: list[str]) -> list[str]:
    """Return the paths of the modules at `path` and below that are called before the first that learns or draws."""
    inside = [call for call in calls if call and (not path or call.startswith(f"{path}."))]
    frozen: list[str] = []
    for call in inside:  # `network.backbone.network` is never called itself, what it contains is
        if any(call.startswith(f"{other}.") for other in inside):
            continue
        if not _is_fixed(network.get_submodule(call)):
            return frozen + _frozen_before(network, call, calls)
        frozen.append(call)
    return frozen


def _is_fixed(module: nn.Module) -> bool:
    """Return whether the module's outputs stay the same in training: it is frozen, and drops nothing at random."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    if next(module.parameters(), None) is not None:
        return True  # a frozen module stays in eval mode, and what it contains with it
    if any(name.endswith("running_mean") for name, _ in module.named_buffers()):
        return False  # a BatchNorm without parameters learns statistics all the same
    drops = [getattr(m, "p", getattr(m, "drop_prob", 0)) for m in module.modules() if "Drop" in type(m).__name__]
    return not any(drops)


def _cut(
    network: nn.Module, images: Tensor, logits: Tensor, modules: tuple[str, ...], calls: list[str]
) -> FrozenStem | None:
    """Return the two parts if together they give the `logits` of the whole network."""

    def overlap(one: str, other: str) -> bool:
        return f"{one}.".startswith(f"{other}.") or other.startswith(f"{one}.")

    others = [call for call in calls if call and not any(overlap(call, path) for path in modules)]
    outermost = [path for path in others if not any(path.startswith(f"{other}.") for other in others)]
    stem = SharedView(network, {path: Bypass() for path in outermost})
    rest = SharedView(network, {path: Bypass() for path in modules})
    try:
        features = stem(images)
        actual = rest(features)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None  # code between the modules needs other shapes
    if actual.shape != logits.shape or float((actual - logits).abs().max()) > TOLERANCE * float(logits.abs().max()):
        return None
    return FrozenStem(stem.module, rest, modules, tuple(features.shape[1:]))
