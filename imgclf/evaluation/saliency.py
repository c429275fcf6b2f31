"""Saliency maps: which places of an image raise the logit of a class, for any CNN, frozen or not.

HiResCAM (R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations, arXiv:2011.08891, 2020): the
last feature map times the gradient of the class's logit by it, summed over channels. Where the head averages the map it is
Grad-CAM (R. R. Selvaraju et al., ICCV 2017) to a factor; where the head depends on places (`pool: flatten`) it stays right,
while Grad-CAM averages the places away.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imgclf.errors import ConfigError
from imgclf.models import ImageModel
from imgclf.models.network import Network

__all__ = ["explain", "overlay"]

# Dark to bright in one hue family that colour-blind readers can order: of matplotlib's inferno, every 51st colour.
_HEAT = np.array([[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]])  # RGB


def explain(model: ImageModel, images: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """Return the saliency map of each image for its target: uint8 [B, C, S, S] and int64 [B] -> float32 [B, S, S].

    From 0 (no effect on the class, or a negative one) to 1, the largest in the image; all 0 where no place has a positive
    effect. Raises `ConfigError` for a network without a feature map, such as a transformer.
    """
    network = model.network
    if not isinstance(network, Network) or not network.backbone.spatial:
        raise ConfigError("explain: this network has no feature map (a transformer, or one without a head of imgclf)")
    model.eval()
    with torch.no_grad():  # frozen or not: no gradient is needed below the map
        features = network.backbone(model.normalize(images.to(model.device)))  # [B, F, h, w]
    with torch.enable_grad():
        features = features.detach().requires_grad_(True)
        logits = network.head(features)  # [B, K]
        chosen = logits.gather(1, targets.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    maps = (gradient * features).sum(dim=1, keepdim=True).detach().clamp_min(0)  # [B, 1, h, w]
    size = tuple(images.shape[-2:])
    heat = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]  # [B, S, S]
    return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).cpu().numpy()


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the image in grey with its saliency map in colour: uint8 [S, S, C], float [S, S] -> uint8 [S, S, 3]."""
    grey = pixels.mean(axis=2, keepdims=True) if pixels.shape[2] == 3 else pixels.astype(np.float64)  # [S, S, 1]
    steps = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(heat, steps, _HEAT[:, channel]) for channel in range(3)], axis=2)  # [S, S, 3]
    share = (0.75 * np.clip(heat * 1.5, 0, 1))[:, :, None]  # pale where the map is low, so that the image is seen
    mixed = grey * 0.9 * (1 - share) + colour * share
    return np.ascontiguousarray(cv2.convertScaleAbs(mixed))
