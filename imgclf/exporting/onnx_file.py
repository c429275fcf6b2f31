"""A classifier as one ONNX file: normalisation, network, temperature and softmax in its graph, the rest in its metadata.

The graph takes `images` uint8 [B, S, S, C] and gives `probabilities` float32 [B, K]. The file is written only after
onnxruntime has given the checkpoint's own answers with it, and the same checkpoint always gives the same bytes.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgclf.data.datasets import datamodule_class
from imgclf.errors import CheckpointError, ConfigError, one_line
from imgclf.exporting import require_packages
from imgclf.files.atomic import write_atomically
from imgclf.models.exported import FORMAT, INPUT, METADATA_KEY, OUTPUT, read_exported
from imgclf.models.image_model import ImageModel
from imgclf.models.network import Network

__all__ = ["OPSET", "Exported", "export_onnx"]

OPSET = 20  # of ONNX's operators; onnxruntime reads it from version 1.17 on, which came out in January 2024
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # between the probabilities of the checkpoint and of the file
_SMALL = 1024  # numbers of a tensor that stays in fp32 with `half`: it saves nothing, and may be a scale


@dataclass(frozen=True)
class Exported:
    """A written file: its `path`, `size` in bytes, and by how much its probabilities differ from the checkpoint's, at most."""

    path: Path
    size: int
    difference: float


def export_onnx(
    model: ImageModel, path: Path, images: NDArray[np.uint8], half: bool = False, public: bool = False
) -> Exported:
    """Write `model` to `path` as ONNX after it has answered for `images` uint8 [N, S, S, C] as the checkpoint does.

    `half` stores the weights in fp16 and computes in fp32: half the size; for `public` see `facts_of`.

    Raises `ConfigError` where the packages of the extra `export` aren't installed, and `CheckpointError` for a network that
    can't be exported, and where the probabilities differ by more than 1e-4 (`half`: 1e-2) or a predicted class does; nothing
    is written then.
    """
    require_packages()
    data = _serialized(model, half, public)
    try:
        exported = read_exported(data)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: not written, it couldn't be loaded: {one_line(error, 300)}") from None
    expected, actual = _answers(model, images), exported.probabilities(images)
    difference = float(np.abs(expected - actual).max(initial=0))
    changed = int((expected.argmax(axis=1) != actual.argmax(axis=1)).sum())
    if not difference <= (HALF_TOLERANCE if half else TOLERANCE) or changed:  # NaN isn't at most the tolerance either
        remedy = "leave --half out" if half else "predict with the checkpoint itself"
        raise CheckpointError(
            f"{path}: not written: of {len(images)} images {changed} have another class than the checkpoint gives, and the "
            f"probabilities differ by up to {difference:.1e}; {remedy}"
        )
    write_atomically(path, data)
    return Exported(path, len(data), difference)


def facts_of(model: ImageModel, public: bool = False) -> dict[str, Any]:
    """Return what the file's metadata say, as plain data that `ExportedModel` reads.

    With `public` they leave out the run's settings and history, and name no path of this machine.
    """
    network, metadata = model.network, model.metadata.to_dict()
    kept = ["data", "metrics", "temperature", *([] if public else ["config", "history"])]
    facts = {**vars(model.metadata.data), **({"root": "", "flips": _flips(model)} if public else {})}
    is_drawn = (model.metadata.config or {}).get("data_dir") == "demo"
    if is_drawn:
        facts["name"] = f"{facts['name']} (drawn miniature)"
    metadata["data"] = facts
    return {
        "format": FORMAT,
        "version": version("imgclf"),
        "opset": OPSET,
        "classes": list(model.classes),
        "preprocess": model.preprocess.to_dict(),
        "backbone": network.backbone.name if isinstance(network, Network) else type(network).__name__,
        "licence": None if is_drawn else datamodule_class(model.metadata.data.name).licence,
        "metadata": {key: metadata[key] for key in kept},
    }


def _flips(model: ImageModel) -> list[str]:
    try:
        return list(model.metadata.flips())
    except ConfigError:
        return []


class _Answer(nn.Module):
    """The graph of the file: a model with everything that comes before and after its network."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.network, self.temperature = model.network, float(model.temperature)
        self.register_buffer("mean", model.mean.detach().float().clone())  # [1, C, 1, 1], in units of 255
        self.register_buffer("std", model.std.detach().float().clone())

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, C] -> float32 [B, K]."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # [B, C, S, S]
        logits = self.network((pixels - self.mean) / self.std)  # [B, K]
        if self.temperature != 1:
            logits = logits / self.temperature
        return logits.softmax(dim=1)


@torch.inference_mode()
def _answers(model: ImageModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # [N, C, S, S]
    parts = [model(part.to(model.device)).float().cpu() for part in torch.split(pixels, 8)]
    return (torch.cat(parts) / model.temperature).softmax(dim=1).numpy()


def _serialized(model: ImageModel, half: bool, public: bool) -> bytes:
    """Return the bytes of the file; raises `CheckpointError` for a network that torch can't export."""
    import onnx

    side, channels = model.preprocess.size, model.preprocess.channels
    example = torch.zeros(2, side, side, channels, dtype=torch.uint8)
    answer, device = _Answer(model).eval().cpu(), model.device
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                answer,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("B", min=1, max=2**16)},),
                verbose=False,
            )
    except Exception as error:  # the exporter may raise anything that the traced code meets
        reason = one_line(str(error).strip().splitlines()[0] if str(error).strip() else error, 160)
        raise CheckpointError(f"torch can't export this network ({type(error).__name__}: {reason})") from None
    finally:
        model.to(device)
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    if half:
        _halve(proto.graph, onnx)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(facts_of(model, public), ensure_ascii=True)
    return bytes(proto.SerializeToString(deterministic=True))


def _strip(proto: Any) -> None:
    """Remove what the exporter notes about the source code: paths of this machine, and several times the size of the graph."""
    del proto.metadata_props[:]
    del proto.functions[:]
    proto.doc_string, proto.producer_name, proto.producer_version = "", "imgclf", version("imgclf")
    proto.graph.doc_string, proto.graph.name = "", "imgclf"
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]  # shapes that a runtime infers itself
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _halve(graph: Any, onnx: Any) -> None:
    """Store the large tensors in fp16, each with a cast to fp32 in front of its users."""
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALL or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints its steps and logs the packages that it could use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
