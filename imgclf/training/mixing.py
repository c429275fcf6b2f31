"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), a batch at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["mixup_cutmix"]


def mixup_cutmix(images: Tensor, targets: Tensor, options: Mapping[str, Any],
        generator: np.random.Generator) -> tuple[Tensor, Tensor | None, float]:  # fmt: skip
    """Mix a batch [B, C, S, S] with itself in another order: (images, the partners' targets, the share of the first).

    `options`: `mixup` and `cutmix` are the alpha of the Beta distribution that the share is drawn from, 0 for off; with
    both on, each batch gets one of them. With both off: (images, None, 1.0).
    """
    alphas = [(kind, options.get(kind) or 0.0) for kind in ("mixup", "cutmix")]
    active = [(kind, alpha) for kind, alpha in alphas if alpha > 0]
    if not active:
        return images, None, 1.0
    kind, alpha = active[int(generator.integers(len(active)))]
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    if kind == "mixup":
        return images * share + images[order] * (1 - share), targets[order], share
    side = images.shape[-1]
    cut = int(side * np.sqrt(1 - share))
    centre = generator.integers(0, side, 2)
    (top, left), (bottom, right) = np.clip(centre - cut // 2, 0, side), np.clip(centre + cut // 2, 0, side)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
    return images, targets[order], 1 - float((bottom - top) * (right - left)) / side**2
