"""Runtimes for a network whose weights stay as they are: PyTorch (eager), or OpenVINO, which fuses layers for the CPU.

The rule never looks at a clock, so that the same run takes the same engine: `auto` is OpenVINO on a CPU where it is
installed and at least `OPENVINO_MIN_IMAGES` images are to be seen, below which its two to three seconds of preparation
don't pay; else eager. OpenVINO is compared with eager before its first use, and eager is taken where they differ.
`scripts/bench/peers/engines.py` measures them.
"""

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imgclf.config import ENGINES
from imgclf.console import print_text
from imgclf.errors import ConfigError, one_line
from imgclf.models.image_model import ImageModel
from imgclf.models.openvino_queue import OPENVINO_MIN_IMAGES, OpenVINOQueue, openvino_version, require_openvino

__all__ = ["BATCH", "Engine", "build_engine", "choose_engine", "label_of", "run_padded"]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = 32  # images
TOLERANCE = 1e-4  # of the largest value


class Engine(Protocol):
    """A way to run an image model: uint8 [B, C, S, S] -> float32 [B, ...], on the CPU or the model's device.

    `label` names it with its version and precision: two engines of one label give the same numbers. It takes at most
    `batch` images, and is fastest on that many.
    """

    label: str
    batch: int

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""


class Eager:
    """PyTorch in channels_last; `precision` bf16 and fp16 use autocast."""

    def __init__(self, model: ImageModel, precision: str = "fp32") -> None:
        self.model, self.precision = model, precision
        self.label = label_of("eager", precision)
        self.batch = BATCH if model.device.type == "cpu" else 256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""
        images = images.to(self.model.device, non_blocking=True)
        half = PRECISIONS[self.precision]
        with torch.autocast(images.device.type, half, enabled=half is not None):
            return self.model(images).float()


class OpenVINO:
    """The model compiled by OpenVINO for the CPU, see `OpenVINOQueue`."""

    def __init__(self, model: ImageModel, precision: str = "fp32") -> None:
        self.label, self.batch = label_of("openvino", precision), BATCH
        side, channels = model.preprocess.size, model.preprocess.channels
        network = _convert(model, (1, side, side, channels))
        self._queue = OpenVINOQueue(network, side, channels, torch.get_num_threads(), BATCH, precision)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # [B, S, S, C]
        return torch.from_numpy(self._queue(pixels))


class _ChannelsLast(nn.Module):
    """An image model that takes pixels as they lie in memory."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, C] -> [B, ...]."""
        return self.model(pixels.permute(0, 3, 1, 2))


def _convert(model: ImageModel, shape: tuple[int, ...]) -> Any:
    """Return OpenVINO's form of `model` for pixels uint8 of `shape` [B, S, S, C]."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    pixels = torch.zeros(shape, dtype=torch.uint8)
    trace: Any = torch.jit.trace
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of shapes, which are fixed here, and of its own age
        decoder = TorchScriptPythonDecoder(trace(_ChannelsLast(model).eval(), pixels, check_trace=False))
        # Through the front end, because `openvino.convert_model` reports its use over the network.
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def choose_engine(wanted: str, device: torch.device, images: int) -> str:
    """Return "eager" or "openvino" for so many images, by the rule of this module.

    Raises `ConfigError` where the `wanted` engine isn't available.
    """
    if wanted not in ENGINES:
        raise ConfigError(f"engine {wanted}: expected one of {', '.join(ENGINES)}")
    if wanted == "openvino":
        require_openvino()
    if wanted == "openvino" and device.type != "cpu":
        raise ConfigError(f"engine openvino runs on the CPU, but the network is on {device}; choose engine eager")
    if wanted != "auto":
        return wanted
    return "openvino" if device.type == "cpu" and images >= OPENVINO_MIN_IMAGES and openvino_version() else "eager"


def label_of(name: str, precision: str) -> str:
    """Return the label of the engine `name` here, without importing it."""
    return f"{name} {openvino_version() if name == 'openvino' else torch.__version__} {precision}"


def build_engine(name: str, model: ImageModel, precision: str = "fp32") -> Engine:
    """Return the engine `name` for `model`, in eval mode, whose weights stay as they are.

    Where OpenVINO can't take the network, or differs from eager by more than 1e-4 of the largest value, it prints why and
    returns eager. In bf16 the comparison is made in fp32: rounding is expected there.
    """
    eager = Eager(model, precision)
    if name == "eager":
        return eager
    try:
        engine = OpenVINO(model)
    except Exception as error:  # its converter may raise anything that the traced code meets
        reason = one_line(error, 120)
        print_text(f"engine: eager, OpenVINO can't take this network ({type(error).__name__}: {reason})")
        return eager
    side, channels = model.preprocess.size, model.preprocess.channels
    noise = torch.randint(0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(0))
    images = noise.to(torch.uint8)
    expected, actual = Eager(model)(images), engine(images)
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not difference <= TOLERANCE:  # NaN isn't either
        print_text(f"engine: eager, OpenVINO's numbers differ by {difference:.1e} of the largest")
        return eager
    return engine if precision == "fp32" else OpenVINO(model, precision)


def run_padded(engine: Engine, images: Tensor, batch: int) -> Tensor:
    """Run `engine` on images uint8 [N, C, S, S], exactly `batch` at a time: float32 [N, ...] on the CPU.

    The last batch is padded, because PyTorch may add in another order when a batch has another size.
    """
    parts = torch.split(images, batch)
    return torch.cat([engine(_pad(part, batch - len(part)))[: len(part)].cpu() for part in parts])


def _pad(images: Tensor, count: int) -> Tensor:
    """Return `images` and `count` copies of the first one after them."""
    return torch.cat([images, images[:1].expand(count, -1, -1, -1)]) if count else images
