"""Any timm network without its head: images to a feature map."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from imgclf.errors import ConfigError
from imgclf.models import small_cnn  # noqa: F401, registers itself with timm

__all__ = ["Backbone", "build_backbone", "check_name", "sized"]

# Keywords of timm's `create_model` and `build_model_with_cfg` that say where to load from, or what to wrap around: a
# checkpoint, which brings the keywords of its network along, may not use them.
_READERS = frozenset((
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn",
    "pretrained_custom_load", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only",
    "feature_cfg", "out_indices", "model_cfg", "kwargs_filter", "pretrained_model_args",
))  # fmt: skip


class Backbone(nn.Module):
    """`network`, a timm model, without all that only its own head needs: [B, C, S, S] -> [B, F, h, w].

    Networks whose features are no such map (transformers) pool in their own way and give [B, F]. `shape` is the shape of
    one picture's features, for the input size that it was built for.
    """

    def __init__(self, network: Any, in_chans: int, size: int) -> None:
        super().__init__()
        self.network: Any = network
        self.spatial, self.shape = _trace(network, in_chans, size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, F, h, w], or [B, F]."""
        features = self.network.forward_features(images)
        return features if self.spatial else self.network.forward_head(features, pre_logits=True)


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is one that timm has registered: nothing is fetched from a hub by name."""
    if not timm.is_model(name.partition(".")[0]) or ":" in name or "/" in name:
        near = get_close_matches(name, timm.list_models(), n=5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"model.backbone={name!r}: timm has no network of that name{hint}; `timm.list_models()` lists all"
        )


def build_backbone(name: str, in_chans: int, size: int, kwargs: Mapping[str, Any] | None = None) -> Backbone:
    """timm's `name` for `in_chans` channels and pictures of side `size`, with random weights.

    Raises `ConfigError` for an unknown name, a keyword that the network doesn't take, or a size it can't take.
    """
    check_name(name)
    if refused := sorted(_READERS.intersection(kwargs or {})):
        raise ConfigError(f"model.backbone_kwargs: {refused[0]} would make timm read or fetch a file, or wrap the network; "
                          "pass model.weights=<file> or model.pretrained instead")  # fmt: skip
    try:
        network = timm.create_model(name, pretrained=False, in_chans=in_chans, num_classes=0, **sized(name, size),
                                    **(kwargs or {}))  # fmt: skip
        return Backbone(network, in_chans, size)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.backbone={name} at image_size={size}, {dict(kwargs or {})}: {reason[:200]}"
        ) from error


def sized(name: str, size: int) -> dict[str, Any]:
    """Transformers must be told the size; they are known by a fixed input size in timm's own configuration."""
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != (size, size)
    return {"img_size": size} if fixed else {}


def _trace(network: Any, in_chans: int, size: int) -> tuple[bool, tuple[int, ...]]:
    """Run one empty picture through, drop the parts that its features didn't need, and say what the features are."""
    called: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda module, _: called.add(module)) for m in network.modules()]
    was_training = network.training
    try:
        with torch.no_grad():
            features = network.eval().forward_features(torch.zeros(1, in_chans, size, size))
            spatial = features.ndim == 4 and features.shape[1] == network.num_features
            pooled = features if spatial else network.forward_head(features, pre_logits=True)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    for name, child in list(network.named_children()):
        if not called.intersection(child.modules()):
            setattr(network, name, nn.Identity())
    return spatial, tuple(pooled.shape[1:])
