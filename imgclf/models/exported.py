"""An exported classifier: an ONNX file that answers without torch, on onnxruntime or OpenVINO.

The file holds normalisation, network, temperature and softmax; its metadata say the rest (see `imgclf.exporting`). It is
read with the same distrust as a checkpoint: nothing in it runs but ONNX's own operators, within `_MEMORY_BYTES`.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import CheckpointError, ConfigError, install_hint, one_line
from imgclf.files.onnx_format import check_onnx
from imgclf.models.metadata import CheckpointMetadata, is_list, mirror_axes, require
from imgclf.models.openvino_queue import OPENVINO_MIN_IMAGES, OpenVINOQueue, openvino_version, require_openvino
from imgclf.preprocess import Preprocess
from imgclf.threads import available_cpus

__all__ = ["FORMAT", "INPUT", "METADATA_KEY", "OUTPUT", "SUFFIX", "ExportedModel", "load_exported", "read_exported"]

SUFFIX, INPUT, OUTPUT, METADATA_KEY = ".onnx", "images", "probabilities", "imgclf"
FORMAT = 1  # of the metadata
BATCH = 32  # images
TOLERANCE = 1e-4  # between the probabilities of two engines
_MEMORY_BYTES = 2**32  # that all models of a process may take at a time
_MAX_BYTES = 2**31  # of a file: a protocol buffer can't be larger
_MAX_DEPTH = 50  # of the metadata

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
ProbabilitiesFn = Callable[[Pixels], Floats]


class ExportedModel:
    """The classifier in an exported file: pixels uint8 [B, S, S, C] -> probabilities float32 [B, K], on the CPU.

    `classes`, `preprocess` and `metadata` are those of the checkpoint that was exported; `backbone` is timm's name of its
    network, and `licence` that of its data, if known.
    """

    def __init__(self, data: bytes, facts: dict[str, Any]) -> None:
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.preprocess = Preprocess.from_dict(facts["preprocess"])
        count = len(self.classes)
        unused = {"running": [0.0, 0.0], "confusion": [[0] * count] * count}  # sums of an epoch, for resuming
        self.metadata = CheckpointMetadata.from_dict({**facts["metadata"], **unused}, count)
        self.backbone, self.licence = str(facts.get("backbone", "")), facts.get("licence")
        self._data = data
        self._session = _open_session(data)
        self._engines: dict[tuple[str, str], ProbabilitiesFn] = {}
        self._check_ports()

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax, which the file applies itself."""
        return self.metadata.temperature

    def choose_engine(self, wanted: str, count: int) -> str:
        """Return "onnxruntime" or "openvino" for `count` images; raises `ConfigError` for an engine that can't be used.

        auto is OpenVINO, where it is installed, from `OPENVINO_MIN_IMAGES` images on: below, compiling doesn't pay.
        """
        if wanted == "openvino":
            require_openvino()
        elif wanted not in ("auto", "onnxruntime"):
            raise ConfigError(
                f"engine {wanted}: an exported file runs on onnxruntime or openvino; pass one of these, or auto"
            )
        if wanted != "auto":
            return wanted
        return "openvino" if count >= OPENVINO_MIN_IMAGES and openvino_version() else "onnxruntime"

    def probabilities(
        self, pixels: Pixels, engine: str = "onnxruntime", precision: str = "fp32", flips: Sequence[str] = ()
    ) -> Floats:
        """Return the probabilities float32 [B, K] of pixels uint8 [B, S, S, C], by an engine of `choose_engine`.

        With `flips` ("horizontal", "vertical") they are the mean over an image and its mirror images, before the
        temperature is applied. Raises `CheckpointError` where the network can't be computed.
        """
        run = self._engine(engine, precision)
        views = [run(pixels), *(run(np.ascontiguousarray(np.flip(pixels, axes))) for axes in mirror_axes(flips, 1, 2))]
        if len(views) == 1:
            return views[0]
        mean = np.mean([_sharpened(view, self.temperature) for view in views], axis=0)  # [B, K]
        return _sharpened(mean, 1 / self.temperature).astype(np.float32)

    def _engine(self, name: str, precision: str) -> ProbabilitiesFn:
        if (name, precision) not in self._engines:
            self._engines[name, precision] = self._build(name, precision)
        return self._engines[name, precision]

    def _build(self, name: str, precision: str) -> ProbabilitiesFn:
        if name == "onnxruntime":
            if precision != "fp32":
                raise ConfigError(
                    f"precision {precision}: onnxruntime computes in fp32; leave it out, or pass engine openvino"
                )
            return self._run
        import openvino

        side, channels = self.preprocess.size, self.preprocess.channels
        noise = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), dtype=np.uint8)
        expected = self._run(noise)  # first, because its memory is bounded
        try:
            network = openvino.Core().read_model(self._data)
            queue = OpenVINOQueue(network, side, channels, available_cpus(), BATCH, precision)
            difference = float(np.abs(queue(noise) - expected).max())
        except Exception as error:  # its front end may raise anything for an operator that it doesn't know
            raise ConfigError(
                f"engine openvino can't take this network ({one_line(error, 120)}); leave engine out"
            ) from None
        if precision == "fp32" and not difference <= TOLERANCE:  # NaN isn't either
            raise ConfigError(f"engine openvino differs by {difference:.1e} from onnxruntime; leave engine out")
        return lambda pixels: np.concatenate([queue(part) for part in _batches(pixels)])

    def _run(self, pixels: Pixels) -> Floats:
        try:
            parts = [self._session.run([OUTPUT], {INPUT: part})[0] for part in _batches(pixels)]
        except Exception as error:  # onnxruntime's errors have no common type of their own
            raise CheckpointError(f"the exported network can't be computed ({_reason(error)})") from None
        result = np.concatenate(parts)
        if result.shape != (len(pixels), len(self.classes)):
            raise CheckpointError(
                f"the exported network gives {list(result.shape)} for {len(pixels)} images; use another file"
            )
        return result

    def _check_ports(self) -> None:
        """Raise `CheckpointError` unless the graph takes and gives what its metadata say."""
        side, channels, count = self.preprocess.size, self.preprocess.channels, len(self.classes)
        ports = [
            (port.name, port.type, port.shape[1:])
            for port in (*self._session.get_inputs(), *self._session.get_outputs())
        ]
        expected = [(INPUT, "tensor(uint8)", [side, side, channels]), (OUTPUT, "tensor(float)", [count])]
        if ports != expected:
            raise CheckpointError(
                f"its graph has {str(ports)[:200]}, and its metadata say {expected}; use another file"
            )


def load_exported(path: str | Path) -> ExportedModel:
    """Return the classifier in a file of `imgclf export`; raises `CheckpointError` for any other or a damaged file."""
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be opened ({error.strerror}); expected a file of imgclf export") from None
    try:
        return read_exported(data)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {one_line(error, 400)}") from None


def read_exported(data: bytes) -> ExportedModel:
    """Return the classifier in the bytes of a file; raises `CheckpointError` or `ConfigError` for any other file."""
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"larger than {_MAX_BYTES:,} bytes; refused")
    return ExportedModel(data, _facts(check_onnx(data).metadata))


def _facts(metadata: dict[str, str]) -> dict[str, Any]:
    """Return what the file's metadata say, checked as far as `CheckpointMetadata` and `Preprocess` don't do it themselves."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            "an ONNX file, but not of `imgclf export`: it names no classes; export the checkpoint again"
        )
    depth = deepest = 0
    for letter in text:  # an upper bound: brackets within names count too
        depth += (letter in "[{") - (letter in "]}")
        deepest = max(deepest, depth)
    try:
        facts = json.loads(text) if deepest <= _MAX_DEPTH else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError("its metadata can't be read; export the checkpoint again")
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"its metadata have format {str(facts.get('format'))[:20]}, this version of imgclf reads {FORMAT}; export it again"
        )
    classes: Any = facts.get("classes")
    require(
        {
            "classes": is_list(classes, str) and 0 < len(classes) == len(set(classes)),
            "preprocess": isinstance(facts.get("preprocess"), dict),
            "metadata": isinstance(facts.get("metadata"), dict),
            "licence": isinstance(facts.get("licence"), (str, type(None))),
        }
    )
    return facts


def _open_session(data: bytes) -> Any:
    """Return onnxruntime's session; raises `ConfigError` where it isn't installed, `CheckpointError` for what it can't run."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            f"an exported model needs onnxruntime, which isn't installed; {install_hint('export')}"
        ) from None
    _bound_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    options.intra_op_num_threads = available_cpus()
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common type of their own
        raise CheckpointError(f"onnxruntime can't take it ({_reason(error)}); use another file") from None


@cache
def _bound_memory() -> None:
    """Bound the memory of all sessions of this process: a small graph may ask for any amount (Expand, ConstantOfShape)."""
    import onnxruntime

    kind, place = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    limits = {"max_mem": _MEMORY_BYTES, "arena_extend_strategy": 1}  # 1: as much as is asked for
    arena = onnxruntime.OrtArenaCfg({**limits, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, place), arena)


def _reason(error: Exception) -> str:
    """Return what an error of onnxruntime means, in a line; its texts begin with numbers and places of its source code."""
    if "Available memory" in str(error):
        return f"it asks for more than {_MEMORY_BYTES >> 30} GB of memory"
    return one_line(str(error).rpartition("Status Message: ")[2], 200)


def _batches(pixels: Pixels) -> list[Pixels]:
    return [pixels[start : start + BATCH] for start in range(0, max(len(pixels), 1), BATCH)]


def _sharpened(probabilities: Floats, exponent: float) -> Floats:
    """Return probabilities [B, K] to the power `exponent`, scaled to a sum of 1: those of logits times `exponent`."""
    if exponent == 1 or not math.isfinite(exponent):
        return probabilities
    powers = probabilities.astype(np.float64) ** exponent
    return powers / powers.sum(axis=1, keepdims=True)
