"""What a loader hands to the classifier: the `Batch` of imgclf's own, or the images and targets of anyone's."""

from typing import Any

import torch
from torch import Tensor

from imgclf.data.loader import Batch
from imgclf.errors import DataError
from imgclf.preprocess import Preprocess

__all__ = ["as_batch", "as_pixels"]

_PAIR = "(images [B, C, S, S], targets [B]), or a Batch of imgclf"


def as_batch(batch: Any, preprocess: Preprocess, num_classes: int, *, labelled: bool = True) -> Batch:
    """Return a loader's `batch` as a `Batch`: one already, or a pair (images, targets).

    Images are those that `as_pixels` takes; targets are whole numbers [B] below `num_classes`. `labelled=False` takes images
    without targets too, which then are -1, as are the `indices` of any batch but imgclf's own. Raises `DataError`.
    """
    if isinstance(batch, Batch):
        images, targets, indices, features = batch
    else:
        (images, targets), indices, features = _pair(batch, labelled), None, None
    if features is None:
        if not isinstance(images, Tensor):
            raise DataError(f"a batch has {_described(images)} for images; expected {_PAIR}")
        images = as_pixels(images, preprocess)
    inputs: Any = images if features is None else features
    count = len(inputs)
    if targets is None:
        targets = torch.full((count,), -1, device=inputs.device)
    elif labelled:
        targets = _checked_targets(targets, count, num_classes)
    indices = torch.full((count,), -1, device=targets.device) if indices is None else indices
    return Batch(images, targets, indices, features)


def as_pixels(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return images [B, C, S, S], uint8 or floats from 0 to 1, as uint8; the network normalises them itself.

    Floats are rounded to 256 levels, the levels of an image file: torchvision's `ToTensor` gives the very pixels back.
    Raises `DataError` for another shape, and for floats beyond 0 and 1: whatever they were normalised by, it would go
    unnoticed.
    """
    side, channels = preprocess.size, preprocess.channels
    if tuple(images.shape[1:]) != (channels, side, side):
        raise DataError(
            f"a batch has images of {_described(images)}; expected [B, {channels}, {side}, {side}]: the classifier's "
            f"preprocess has {channels} channels and size={side}"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"a batch has images of {_described(images)}; expected uint8, or floats from 0 to 1")
    low, high = torch.aminmax(images) if images.numel() else (images.new_zeros(()), images.new_zeros(()))
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise DataError(
            f"a batch has images of {_described(images)} from {low.item():.3g} to {high.item():.3g}; expected uint8, or "
            "floats from 0 to 1: leave out Normalize, because the classifier normalises by itself"
        )
    return (images.float() * 255).round().to(torch.uint8)


def _pair(batch: Any, labelled: bool) -> tuple[Any, Any]:
    """Return images and targets of a batch that isn't one of imgclf's."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if not labelled and isinstance(batch, Tensor):
        return batch, None
    if not labelled and isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0], None
    raise DataError(f"a batch is {_described(batch)}; expected {_PAIR}")


def _checked_targets(targets: Any, count: int, num_classes: int) -> Tensor:
    """Return `targets` as int64 [B]."""
    whole = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if not whole or targets.dtype == torch.bool or tuple(targets.shape) != (count,):
        raise DataError(
            f"a batch has targets of {_described(targets)}; expected whole numbers [{count}], the index of each image's class"
        )
    on_cpu = targets.device.type == "cpu"  # on a GPU this would wait for the device
    if on_cpu and (wrong := [value for value in targets.tolist() if not 0 <= value < num_classes]):
        raise DataError(f"a batch has the target {wrong[0]}; the classifier has classes 0 to {num_classes - 1}")
    return targets.long()


def _described(value: Any) -> str:
    """Return type and shape of a value: "float32 [8, 3, 32, 32]", "a dict"."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
