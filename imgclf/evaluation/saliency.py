"""Where in a picture a network found what it says: a map for any CNN, frozen or not.

HiResCAM (R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations, arXiv:2011.08891, 2020): the
last feature map times the gradient of the class's logit by it, summed over channels. Where the head averages the map it is
Grad-CAM (R. R. Selvaraju et al., ICCV 2017) to a factor; where the head looks at places (`pool: flatten`) it stays right,
while Grad-CAM averages the places away.
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgclf.errors import ConfigError
from imgclf.models.image_model import Answering

__all__ = ["explain", "overlay"]

# Dark to bright in one hue family that colour-blind readers can order: of matplotlib's inferno, every 51st colour.
_HEAT = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]])  # RGB


def explain(classifier: Answering, images: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """How much each place speaks for the class: uint8 [B, C, S, S] and int64 [B] -> float32 [B, S, S].

    From 0 (nothing, or against it) to 1, the place that says most; all 0 where nothing speaks for the class. Raises
    `ConfigError` for a network without a feature map, such as a transformer.
    """
    network: Any = classifier.predictor
    backbone: Any = getattr(network, "backbone", None)
    if not getattr(backbone, "spatial", False):
        raise ConfigError(
            "explain: this network has no map of features to look at (a transformer, or one of another kind)"
        )
    module: Any = classifier
    module.eval()
    with torch.no_grad():  # frozen or not: no gradient goes further than the map
        pixels = (images.to(classifier.device).float() - classifier.mean) / classifier.std  # [B, C, S, S]
        features = backbone(pixels)  # [B, F, h, w]
    with torch.enable_grad():
        features = features.detach().requires_grad_(True)
        logits = network.head(features)  # [B, K]
        chosen = logits.gather(1, targets.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    maps = (gradient * features).sum(dim=1).detach().clamp_min(0)  # [B, h, w]
    size = tuple(images.shape[-2:])
    large = torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[
        :, 0
    ]  # [B, S, S]
    return (large / large.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).cpu().numpy()


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture, in grey, with the places that speak for the class in colour: uint8 [S, S, C], float [S, S] -> uint8
    [S, S, 3].
    """
    grey = pixels.mean(axis=2, keepdims=True) if pixels.shape[2] == 3 else pixels.astype(np.float64)  # [S, S, 1]
    steps = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(heat, steps, _HEAT[:, channel]) for channel in range(3)], axis=2)  # [S, S, 3]
    share = (0.75 * np.clip(heat * 1.5, 0, 1))[:, :, None]  # pale where little speaks, so that the picture is seen
    mixed = grey * 0.9 * (1 - share) + colour * share
    return np.ascontiguousarray(cv2.convertScaleAbs(mixed))
