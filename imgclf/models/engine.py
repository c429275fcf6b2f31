"""Runtimes for a network whose weights stay as they are: PyTorch (eager), or OpenVINO, which fuses layers for the CPU.

The rule never looks at a clock, so that the same run takes the same engine: `auto` is OpenVINO on a CPU where it is
installed and at least `OPENVINO_MIN_IMAGES` images are to be seen, below which its two to three seconds of preparation
don't pay; else eager. OpenVINO is compared with eager before its first use, and eager is taken where they differ.
`scripts/bench/peers/engines.py` measures them.
"""

import importlib.metadata
import importlib.util
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imgclf.config import ENGINES
from imgclf.console import print_text
from imgclf.errors import ConfigError, install_hint, one_line
from imgclf.models.image_model import ImageModel

__all__ = ["BATCH", "Engine", "build_engine", "choose_engine", "label_of", "openvino_version", "run_padded"]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPENVINO_MIN_IMAGES = 1000  # MobileNetV2 wins its preparation back at 400, MobileNetV3-small at 1,100
BATCH = 32  # images
MICRO_BATCH = 8  # images that one thread of OpenVINO takes; up to 1.5 times as fast as 32 by all threads together
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
    """The model compiled by OpenVINO for the CPU.

    Each thread takes `MICRO_BATCH` images of the batch through the whole network, which keeps them in its own cache and
    makes the numbers independent of the number of threads. The last few images are padded, and the padding is cut off.
    """

    def __init__(self, model: ImageModel, precision: str = "fp32") -> None:
        import openvino

        self.label, self.batch = label_of("openvino", precision), BATCH
        streams = min(torch.get_num_threads(), BATCH)
        self._micro_batch = min(MICRO_BATCH, BATCH // streams)
        side, channels = model.preprocess.size, model.preprocess.channels
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        converted = _convert(model, (self._micro_batch, side, side, channels))
        self._queue = openvino.AsyncInferQueue(openvino.Core().compile_model(converted, "CPU", hints), streams)
        results: list[Tensor] = []

        def store(
            request: Any, number: int
        ) -> None:  # doesn't refer to `self`: the queue would keep both alive for ever
            results[number] = torch.from_numpy(request.get_output_tensor(0).data.copy())  # the request is reused

        self._queue.set_callback(store)
        self._results = results

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""
        pixels = _pad(images, -len(images) % self._micro_batch).permute(0, 2, 3, 1).contiguous()
        parts = torch.split(pixels, self._micro_batch)
        self._results[:] = [pixels] * len(parts)
        for number, part in enumerate(parts):
            self._queue.start_async([part.numpy()], number)
        self._queue.wait_all()
        return torch.cat(self._results)[: len(images)]


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

    pixels = torch.zeros(1, *shape[1:], dtype=torch.uint8)
    trace: Any = torch.jit.trace
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of shapes, which are fixed here, and of its own age
        decoder = TorchScriptPythonDecoder(trace(_ChannelsLast(model).eval(), pixels, check_trace=False))
        # Through the front end, because `openvino.convert_model` reports its use over the network.
        frontend = FrontEndManager().load_by_framework("pytorch")
        converted = frontend.convert(frontend.load(decoder))
    converted.reshape(list(shape))
    return converted


def choose_engine(wanted: str, device: torch.device, images: int) -> str:
    """Return "eager" or "openvino" for so many images, by the rule of this module.

    Raises `ConfigError` where the `wanted` engine isn't available.
    """
    if wanted not in ENGINES:
        raise ConfigError(f"engine {wanted}: expected one of {', '.join(ENGINES)}")
    if wanted == "openvino" and not openvino_version():
        raise ConfigError(f"engine openvino isn't installed; {install_hint('fast')}, or choose engine eager")
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


def openvino_version() -> str | None:
    """Return the installed version of OpenVINO, None without it; imports nothing."""
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None
