"""A network that is the moving average of another one's weights (Polyak and Juditsky 1992; Keras and timm call it EMA)."""

import torch
from torch import nn

__all__ = ["average"]


@torch.no_grad()
def average(averaged: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """Move `averaged` towards `network`, by `decay` or, in the first of so many `updates`, by less memory: (1 + n)/(10 + n)."""
    decay, own = min(decay, (1 + updates) / (10 + updates)), network.state_dict()
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(own[name], 1 - decay)
        else:
            value.copy_(own[name])
