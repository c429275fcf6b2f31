"""Exported models on onnxruntime or OpenVINO, without torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import ConfigError
from imgclf.inference.predictor import Predictor
from imgclf.models.exported import ExportedModel, load_exported

__all__ = ["OnnxRunner", "load_onnx"]


class OnnxRunner:
    """Runs an exported model; see `imgclf.inference.predictor.Runner`."""

    def __init__(
        self, model: ExportedModel, engine: str = "auto", precision: str = "fp32", flips: Sequence[str] = ()
    ) -> None:
        self.model, self.engine, self.precision, self.flips = model, engine, precision, tuple(flips)

    @property
    def description(self) -> str:
        """The network and where it runs."""
        side = self.model.preprocess.size
        return f"{self.model.backbone} on {side} x {side} pixels, exported, on cpu"

    def prepare(self, count: int) -> str:
        """Return the engine for `count` images."""
        return self.model.choose_engine(self.engine, count)

    def run(self, pixels: NDArray[np.uint8], engine: str) -> NDArray[np.float32]:
        """uint8 [B, S, S, C] -> probabilities float32 [B, K]."""
        return self.model.probabilities(pixels, engine, self.precision, self.flips)

    def saliency(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Raise `ConfigError`: a saliency map needs gradients."""
        raise ConfigError(
            "saliency maps need the gradients of a checkpoint; pass the run's best.ckpt in place of the .onnx"
        )


def load_onnx(path: str | Path, device: str, engine: str, precision: str, tta: bool) -> Predictor:
    """Load the classifier from an exported file; `imgclf.load` says more. Raises `ConfigError` for another device than a CPU."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device {device}: an exported file runs on the CPU; leave it out, or load the checkpoint")
    model = load_exported(path)
    runner = OnnxRunner(model, engine, precision, model.metadata.flips() if tta else ())
    runner.prepare(1)  # refuses an engine that can't be used before anything is read
    return Predictor(model, path, runner)
