"""Small pictures inside a page's own text, so that it asks nothing of any other place."""

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["data_uri", "shrunk"]


def shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 1 or 3] with the longer side at most `side`; smaller ones stay as they are."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small: NDArray[Any] = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], -1)


def data_uri(image: NDArray[np.uint8], side: int, quality: int = 80) -> str:
    """`data:image/jpeg;base64,...` of uint8 [H, W, 1 or 3], shrunk to `side` pixels."""
    small = shrunk(image, side)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
