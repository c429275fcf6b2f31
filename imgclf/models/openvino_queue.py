"""OpenVINO on the CPU: each thread takes a few images of a batch through the whole network.

That keeps them in the thread's own cache and makes the numbers independent of the number of threads. Nothing here loads
torch.
"""

import importlib.metadata
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import ConfigError, install_hint

__all__ = ["MICRO_BATCH", "OPENVINO_MIN_IMAGES", "OpenVINOQueue", "openvino_version", "require_openvino"]

OPENVINO_MIN_IMAGES = 1000  # MobileNetV2 wins its preparation back at 400, MobileNetV3-small at 1,100
MICRO_BATCH = 8  # images that one thread takes; up to 1.5 times as fast as 32 by all threads together


class OpenVINOQueue:
    """A network of OpenVINO that is compiled for `threads` threads, with up to `batch` images at a time.

    `network` takes pixels uint8 [B, S, S, C]. The last few images of a batch are padded, and the padding is cut off.
    """

    def __init__(self, network: Any, side: int, channels: int, threads: int, batch: int, precision: str) -> None:
        import openvino

        streams = min(threads, batch)
        self.micro_batch = min(MICRO_BATCH, batch // streams)
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        network.reshape([self.micro_batch, side, side, channels])
        self._queue = openvino.AsyncInferQueue(openvino.Core().compile_model(network, "CPU", hints), streams)
        results: list[NDArray[np.float32]] = []

        def store(request: Any, number: int) -> None:  # no `self`: the queue would keep both alive for ever
            results[number] = request.get_output_tensor(0).data.copy()  # the request is reused

        self._queue.set_callback(store)
        self._results = results

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [B, S, S, C] -> float32 [B, ...]."""
        missing = -len(pixels) % self.micro_batch
        padded = np.concatenate([pixels, np.repeat(pixels[:1], missing, axis=0)]) if missing else pixels
        parts = np.split(np.ascontiguousarray(padded), len(padded) // self.micro_batch)
        self._results[:] = parts  # as many places, which `store` fills
        for number, part in enumerate(parts):
            self._queue.start_async([part], number)
        self._queue.wait_all()
        return np.concatenate(self._results)[: len(pixels)]


def openvino_version() -> str | None:
    """Return the version of OpenVINO, None where it isn't installed; imports nothing."""
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def require_openvino() -> None:
    """Raise `ConfigError` where OpenVINO isn't installed."""
    if not openvino_version():
        raise ConfigError(f"engine openvino isn't installed; {install_hint('fast')}, or choose another engine")
