"""What runs a network whose weights stay as they are: PyTorch itself, or OpenVINO, which fuses its layers for the CPU.

The rule, which never looks at a clock, so that the same run takes the same engine: `auto` is OpenVINO on a CPU where it is
installed and at least `WORTHWHILE` pictures are to be seen, below which its two to three seconds of preparation aren't won
back; else eager. OpenVINO is compared with eager before its first use, and eager is taken when they differ.
`scripts/bench/engines.py` measures them.
"""

import importlib.metadata
import importlib.util
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imgclf.errors import ConfigError

__all__ = [
    "BATCH",
    "ENGINES",
    "PRECISIONS",
    "WORTHWHILE",
    "Eager",
    "Engine",
    "build_engine",
    "choose_engine",
    "label_of",
    "run",
]

ENGINES = ("auto", "eager", "openvino")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTHWHILE = 1000  # pictures; MobileNetV2 wins its preparation back at 400, MobileNetV3-small at 1,100
BATCH = 32  # pictures
FEW = 8  # pictures that OpenVINO takes at a time; up to 1.5 times as fast as 32 by all threads together
TOLERANCE = 1e-4  # of the largest value


class Engine(Protocol):
    """Runs pixels through a network: uint8 [B, C, S, S] -> float32 [B, ...], on the CPU or where the network is.

    `label` names it with its version and precision: what two must share to give the same numbers. It is fastest on `batch`
    pictures, and takes no more.
    """

    label: str
    batch: int

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""


class Normalised(nn.Module):
    """A network behind its normalisation, and in front of it the pixels as they lie in memory: uint8 [B, S, S, C]."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, C] -> [B, ...]."""
        return self.network((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)


class Eager:
    """PyTorch as it is, in channels_last; `precision` bf16 and fp16 compute what autocast deems safe in these."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, precision: str = "fp32") -> None:
        self.network, self.precision = Normalised(network, mean, std), precision
        self.label = label_of("eager", precision)
        self.batch = BATCH if mean.device.type == "cpu" else 256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""
        pixels = images.to(self.network.mean.device, non_blocking=True).permute(0, 2, 3, 1)
        half = PRECISIONS[self.precision]
        with torch.autocast(pixels.device.type, half, enabled=half is not None):
            return self.network(pixels).float()


class OpenVINO:
    """The network as OpenVINO compiles it for the CPU: each thread takes a few pictures of the batch through the whole
    network, which keeps them in its own cache, and its numbers from depending on how many threads there are. Pictures
    that are missing from the last few are made up for, and cut again.
    """

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, side: int, precision: str = "fp32") -> None:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        self.label, self.batch = label_of("openvino", precision), BATCH
        streams = min(torch.get_num_threads(), BATCH)
        self._few = min(FEW, BATCH // streams)
        pixels = torch.zeros(self._few, side, side, mean.shape[1], dtype=torch.uint8)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer about shapes, which are fixed here, and of its own age
            trace: Any = torch.jit.trace
            decoder = TorchScriptPythonDecoder(
                trace(Normalised(network, mean, std).eval(), pixels[:1], check_trace=False)
            )
            # By the front end itself: `openvino.convert_model` would report its use over the network.
            front = FrontEndManager().load_by_framework("pytorch")
            model = front.convert(front.load(decoder))
        model.reshape(list(pixels.shape))
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
                 "NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}  # fmt: skip
        self._queue = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", hints), streams)
        found: list[Tensor] = []

        def keep(request: Any, number: int) -> None:  # doesn't know `self`: the queue would keep both alive for ever
            found[number] = torch.from_numpy(request.get_output_tensor(0).data.copy())  # it will be used again

        self._queue.set_callback(keep)
        self._found = found

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, ...]."""
        missing = -len(images) % self._few
        full = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]).permute(0, 2, 3, 1).contiguous()
        parts = torch.split(full, self._few)
        self._found[:] = [full] * len(parts)
        for number, part in enumerate(parts):
            self._queue.start_async([part.numpy()], number)
        self._queue.wait_all()
        return torch.cat(self._found)[: len(images)]


def choose_engine(wanted: str, device: torch.device, pictures: int) -> str:
    """ "eager" or "openvino", by the rule of this module; raises `ConfigError` for one that can't be had."""
    if wanted not in ENGINES:
        raise ConfigError(f"engine={wanted!r}: expected one of {', '.join(ENGINES)}")
    if wanted == "openvino" and not openvino_version():
        raise ConfigError("engine=openvino: it isn't installed; pip install 'imgclf[fast]', or pass engine=eager")
    if wanted == "openvino" and device.type != "cpu":
        raise ConfigError(f"engine=openvino runs on the CPU, the network is on {device}; pass engine=eager")
    if wanted != "auto":
        return wanted
    return "openvino" if device.type == "cpu" and pictures >= WORTHWHILE and openvino_version() else "eager"


def label_of(name: str, precision: str) -> str:
    """The label that the engine of this name would have here; nothing is imported to find out."""
    return f"{name} {openvino_version() if name == 'openvino' else torch.__version__} {precision}"


def build_engine(
    name: str, network: nn.Module, mean: Tensor, std: Tensor, side: int, precision: str = "fp32"
) -> Engine:
    """The engine `name` for `network`, in eval mode, whose weights stay as they are.

    OpenVINO that can't take the network, or differs from eager by more than 1e-4 of the largest value, gives way to eager;
    what happened is printed. In bf16 it is compared in fp32: rounding is what was asked for.
    """
    eager = Eager(network, mean, std, precision)
    if name == "eager":
        return eager
    try:
        engine = OpenVINO(network, mean, std, side)
    except Exception as error:  # its converter raises whatever the traced code made it meet
        reason = " ".join(str(error).split())[:120]
        print(f"engine: eager, OpenVINO can't take this network ({type(error).__name__}: {reason})", flush=True)
        return eager
    noise = torch.randint(0, 256, (2, mean.shape[1], side, side), generator=torch.Generator().manual_seed(0))
    expected, found = Eager(network, mean, std)(noise.to(torch.uint8)), engine(noise.to(torch.uint8))
    apart = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not apart <= TOLERANCE:  # nor if it isn't a number
        print(f"engine: eager, OpenVINO's numbers differ by {apart:.1e} of the largest", flush=True)
        return eager
    return engine if precision == "fp32" else OpenVINO(network, mean, std, side, precision)


def run(engine: Engine, images: Tensor, batch: int) -> Tensor:
    """`engine` of any number of pictures uint8 [N, C, S, S], always `batch` at a time: the last ones are filled up with
    copies of a picture, because PyTorch may add in another order when a batch has another size.
    """
    results = []
    for part in torch.split(images, batch):
        missing = batch - len(part)
        full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
        results.append(engine(full)[: len(part)].cpu())
    return torch.cat(results)


def openvino_version() -> str | None:
    """The installed version; nothing is imported to find out."""
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None
