"""Any timm network without its head: normalised images to a feature map."""

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from imgclf.errors import ConfigError, nearest
from imgclf.models import small_cnn  # noqa: F401, registers itself with timm

__all__ = ["Backbone", "build_backbone", "check_name", "size_keywords"]

# Keywords of timm's `create_model` and `build_model_with_cfg` that load files or wrap the network: a checkpoint, which
# brings the keywords of its network along, may not use them.
_REFUSED_KEYWORDS = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
    *("pretrained_custom_load", "pretrained_model_args", "checkpoint_path", "cache_dir", "scriptable", "exportable"),
    *("no_jit", "features_only", "feature_cfg", "out_indices", "model_cfg", "kwargs_filter"),
}
# The widths and depths of any known network add up to a tenth of this. Some are loop counts in timm's code, before there
# is a layer that could be counted: those of a checkpoint must be small.
MAX_KEYWORDS = 65_536
# What timm's networks raise for settings that they can't take.
_BUILD_ERRORS = (
    TypeError,
    AssertionError,
    RuntimeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
)


class Backbone(nn.Module):
    """The timm `network` called `name`, without the parts that only its own head needs: [B, C, S, S] -> [B, F, h, w].

    Networks without such a feature map (transformers) pool in their own way and give [B, F]. `shape` is the shape of
    one image's features, for the input size that the network was built for.
    """

    def __init__(self, network: Any, traced: "_Traced", name: str) -> None:
        super().__init__()
        self.network: Any = network
        self.name = name
        self.spatial, self.shape = traced.spatial, traced.shape
        for part in traced.unused:
            setattr(network, part, nn.Identity())
        spare_strided_convolutions(network)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, F, h, w], or [B, F]."""
        features = self.network.forward_features(images)
        return features if self.spatial else self.network.forward_head(features, pre_logits=True)


def spare_strided_convolutions(network: nn.Module) -> None:
    """Let 1x1 convolutions with a stride take no more of their input than they use; their outputs stay the same.

    In channels_last, oneDNN's gradient of the weights of such a convolution writes outside its memory on a CPU if it has
    fewer input channels than a vector register has numbers (8 with AVX2, so 16 here, for AVX-512) and rows or columns
    remain behind the last one that it uses (torch 2.15): the process dies of SIGSEGV or SIGABRT, or hangs. timm's networks have
    such a layer where an image comes in: those of fastvit and mobileone. `tests/models/test_families.py` shows it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _overruns(module):
            module.register_forward_pre_hook(_crop_to_stride)


def _overruns(module: nn.Conv2d) -> bool:
    strided_point = module.kernel_size == (1, 1) and max(module.stride) > 1 and module.padding in ((0, 0), "valid")
    return strided_point and module.in_channels < 16 and module.groups == 1


def _crop_to_stride(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cut off the rows and columns behind the last ones that a 1x1 convolution `module` with a stride uses."""
    assert isinstance(module, nn.Conv2d)
    images, (down, across) = inputs[0], module.stride
    height, width = images.shape[-2:]
    return (images[..., : height - (height - 1) % down, : width - (width - 1) % across],)


def check_name(name: str, setting: str = "model.backbone") -> None:
    """Raise `ConfigError` unless timm has registered `name`, which `setting` had: nothing is fetched from a hub by name."""
    if not timm.is_model(name.partition(".")[0]) or ":" in name or "/" in name:
        hint = nearest(name, timm.list_models())
        raise ConfigError(f"{setting}={name}: timm has no network of that name; {hint}")


def build_backbone(name: str, in_chans: int, size: int, kwargs: Mapping[str, object] | None = None) -> Backbone:
    """Return timm's network `name` for `in_chans` channels and images of side `size`, with random weights.

    Raises `ConfigError` for an unknown name, a keyword that the network doesn't take, or a size it can't take.
    """
    check_name(name)
    keywords: dict[str, Any] = dict(kwargs or {})
    _check_keywords(keywords)
    keywords = {**size_keywords(name, size), **keywords}
    try:
        network = timm.create_model(name, pretrained=False, in_chans=in_chans, num_classes=0, **keywords)
        key = (name, repr(keywords), in_chans, size)
        if key not in _TRACED:
            _TRACED[key] = _trace(network, in_chans, size)
        return Backbone(network, _TRACED[key], name)
    except _BUILD_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        own = timm.get_pretrained_cfg(name)
        other = f"; its own image_size is {own.input_size[-1]}" if own and own.input_size[-1] != size else ""
        given = f", {keywords}" if keywords else ""
        raise ConfigError(f"model.backbone={name} at image_size={size}{given}: {reason[:200]}{other}") from error


def _check_keywords(kwargs: Mapping[str, object]) -> None:
    """Raise `ConfigError` unless the keywords are plain values that describe the network, and nothing else."""
    if refused := sorted(_REFUSED_KEYWORDS.intersection(kwargs)):
        raise ConfigError(
            f"model.backbone_kwargs: {refused[0]} would make timm read or fetch a file, or wrap the network; "
            "pass model.weights=<file> or model.pretrained instead"
        )
    pending, total = list(kwargs.items()), 0.0
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(key, inner) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            pending += [(key, inner) for inner in value]
        elif isinstance(value, (int, float)) and math.isfinite(value):
            total += abs(value)
        elif value is not None and not isinstance(value, str):
            raise ConfigError(
                f"model.backbone_kwargs.{key}={value!r}: expected finite numbers, words, or lists of them"
            )
    if total > MAX_KEYWORDS:
        raise ConfigError(
            f"model.backbone_kwargs: its numbers add up to {total:,.0f}; expected at most {MAX_KEYWORDS:,}, "
            "because timm loops over some of them"
        )


def size_keywords(name: str, size: int) -> dict[str, int]:
    """Return the keywords that set the input size of networks whose timm configuration has a fixed one (transformers)."""
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != (size, size)
    return {"img_size": size} if fixed else {}


class _Traced(NamedTuple):
    """What running a network once shows: whether its features are a map, their shape, and the parts it doesn't call."""

    spatial: bool
    shape: tuple[int, ...]
    unused: tuple[str, ...]


_TRACED: dict[
    tuple[object, ...], _Traced
] = {}  # a run builds the same network three times: to train, to check, to test


def _trace(network: Any, in_chans: int, size: int) -> _Traced:
    """Run one empty image through a copy of `network` on torch's meta device: shapes only, fast at any size."""
    tensors = (*network.parameters(), *network.buffers())
    shadow = copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors}).eval()
    called: set[str] = set()
    for name, module in shadow.named_modules():
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(f"{name}."))
    with torch.no_grad(), torch.device("meta"):
        images = torch.zeros(1, in_chans, size, size)
        features = shadow.forward_features(images)  # of several scales, some networks give a list
        spatial = isinstance(features, Tensor) and features.ndim == 4 and features.shape[1] == network.num_features
        pooled = features if spatial else shadow.forward_head(features, pre_logits=True)
        uncalled = [
            name
            for name, part in network.named_children()
            if not any(path.startswith(f"{name}.") for path in called) and (*part.parameters(), *part.buffers())
        ]
        unused = [name for name in uncalled if _runs_without(shadow, name, images, spatial)]
    return _Traced(spatial, tuple(pooled.shape[1:]), tuple(unused))


def _runs_without(network: Any, part: str, images: Tensor, spatial: bool) -> bool:
    """Return whether `network` runs without `part`, which is never called: some of it, such as the angles of a rotary
    position embedding, may be read all the same.
    """
    module = getattr(network, part)
    setattr(network, part, nn.Identity())
    try:
        features = network.forward_features(images)
        if not spatial:
            network.forward_head(features, pre_logits=True)
        return True
    except _BUILD_ERRORS:
        setattr(network, part, module)
        return False
