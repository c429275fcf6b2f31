"""Exported models are distrusted: damaged, foreign and hostile ONNX files are refused in one line, within bounded memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.memory import in_child

import imgclf
from imgclf.errors import CheckpointError, ConfigError
from imgclf.files.onnx_format import check_onnx
from imgclf.models.exported import METADATA_KEY, load_exported
from imgclf.preprocess import Preprocess

SIDE, CLASSES = 4, ["a", "b"]
FACTS: dict[str, Any] = {
    "format": 1,
    "version": "0.1.0",
    "classes": CLASSES,
    "preprocess": Preprocess(size=SIDE).to_dict(),
    "backbone": "small_cnn",
    "licence": None,
    "metadata": {"data": {"name": "", "root": "", "counts": {}, "flips": ["horizontal"]}, "temperature": 1.0},
}
TRIED = pytest.mark.trust("hostile and damaged ONNX files", "a traceback, 300 MB more, or an answer")


def model(facts: object = FACTS, extra: tuple[Any, ...] = (), tensors: tuple[Any, ...] = ()) -> onnx.ModelProto:
    """The smallest exported file: the mean of the left and right half of an image, as probabilities."""
    weights = np.zeros((SIDE * SIDE * 3, len(CLASSES)), dtype=np.float32)
    left = (np.arange(SIDE * SIDE * 3) // 3) % SIDE < SIDE // 2
    weights[left, 0] = weights[~left, 1] = 0.001
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        *extra,
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "imgclf",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", len(CLASSES)])],
        [numpy_helper.from_array(weights, "weights"), *tensors],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if facts is not None:
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, facts if isinstance(facts, str) else json.dumps(facts)
    return proto


def write(tmp_path: Path, proto: onnx.ModelProto | bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def external() -> onnx.ModelProto:
    proto = model()
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    return proto


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = model()
    change(proto)
    return proto


def branching() -> onnx.ModelProto:
    body = helper.make_graph([], "body", [], [])
    return model(extra=(helper.make_node("Loop", ["a", "b"], ["c"], body=body),))


def constant(elements: int) -> tuple[Any, ...]:
    shape = numpy_helper.from_array(np.array([elements], dtype=np.int64), "sides")
    nodes = (
        helper.make_node("ConstantOfShape", ["sides"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["logits", "zero"], ["unused"]),
    )
    return nodes, (shape,)


HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "empty": (lambda: b"", "not an ONNX file"),
    "text": (lambda: b"<html>not found</html>" * 20, "not an ONNX file"),
    "a png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX file"),
    "cut off": (lambda: model().SerializeToString()[:-40], "not an ONNX file"),
    "of another program": (lambda: model(None), "it names no classes"),
    "data in another file": (external, "lies in another file"),
    "a tensor that claims more": (
        lambda: changed(lambda proto: proto.graph.initializer[0].dims.append(10**6)),
        "claims 384,000,000 bytes and holds 384",
    ),
    "a tensor of negative size": (
        lambda: changed(lambda proto: proto.graph.initializer[0].dims.append(-1)),
        "unknown type or size",
    ),
    "a foreign operator": (
        lambda: model(extra=(helper.make_node("Evil", ["logits"], ["x"], domain="com.example"),)),
        "'com.example', which aren't ONNX's own",
    ),
    "a foreign import": (
        lambda: changed(lambda proto: proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))),
        "'com.microsoft', which aren't ONNX's own",
    ),
    "an unknown operator": (
        lambda: model(extra=(helper.make_node("Evil", ["logits"], ["x"]),)),
        "onnxruntime can't take it",
    ),
    "a loop": (branching, "the operator Loop"),
    "random numbers": (lambda: model(extra=(helper.make_node("RandomNormal", [], ["x"], shape=[2]),)), "RandomNormal"),
    "two graphs": (lambda: model().SerializeToString() * 2, "more than one graph"),
    "functions": (
        lambda: changed(lambda proto: proto.functions.append(helper.make_function("x", "f", [], [], [], []))),
        "functions",
    ),
    "metadata that is no json": (lambda: model("{"), "its metadata can't be read"),
    "metadata that is nested": (lambda: model("[" * 100_000), "its metadata can't be read"),
    "a newer format": (lambda: model({**FACTS, "format": 2}), "have format 2, this version of imgclf reads 1"),
    "no classes": (lambda: model({**FACTS, "classes": []}), "its classes isn't what imgclf writes"),
    "classes that are numbers": (lambda: model({**FACTS, "classes": [1, 2]}), "its classes isn't"),
    "more classes": (lambda: model({**FACTS, "classes": ["a", "b", "c"]}), "its metadata say"),
    "another size": (lambda: model({**FACTS, "preprocess": Preprocess(size=9).to_dict()}), "its metadata say"),
    "an absurd size": (lambda: model({**FACTS, "preprocess": {**FACTS["preprocess"], "size": 10**9}}), "image_size"),
    "an absurd temperature": (
        lambda: model({**FACTS, "metadata": {**FACTS["metadata"], "temperature": 0}}),
        "its temperature",
    ),
    "metadata that is a list": (lambda: model({**FACTS, "metadata": []}), "its metadata isn't"),
    "a licence that is a number": (lambda: model({**FACTS, "licence": 3}), "its licence isn't"),
}


@TRIED
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    make, words = HOSTILE[kind]
    path = write(tmp_path, make())
    with pytest.raises(CheckpointError) as caught:
        imgclf.load(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and words in line and "\n" not in line, line


def _loads_and_answers(path: str) -> str:
    try:
        return str(load_exported(path).probabilities(np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8)).shape)
    except CheckpointError as error:
        return str(error)


@TRIED
@pytest.mark.parametrize("gigabytes", [5, 1000])
def test_a_graph_that_asks_for_gigabytes_is_stopped(tmp_path: Path, gigabytes: int) -> None:
    nodes, tensors = constant(gigabytes << 28)  # floats
    proto = model(extra=nodes, tensors=tensors)
    proto.graph.node[-1].input[0] = "unused"
    path = write(tmp_path, proto)
    outcome = in_child(lambda: load_exported(path).probabilities(np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8)))
    assert outcome.refused and "more than 4 GB of memory" in outcome.text, outcome


@TRIED
@pytest.mark.parametrize("part", range(4))
def test_a_file_with_any_byte_changed_answers_or_is_one_line(tmp_path: Path, part: int) -> None:
    data = model().SerializeToString()
    random = np.random.default_rng(part)
    for position in range(part, len(data), 4 * 3):
        damaged = bytearray(data)
        damaged[position] ^= int(random.integers(1, 256))
        answer = _loads_and_answers(str(write(tmp_path, bytes(damaged))))
        assert "\n" not in answer and (answer == "(1, 2)" or "model.onnx" in answer or "computed" in answer), answer


def test_flips_are_averaged_before_the_temperature(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    plain = load_exported(write(tmp_path, model()))
    sides = plain.probabilities(images), plain.probabilities(images[:, :, ::-1])
    np.testing.assert_allclose(plain.probabilities(images, flips=["horizontal"]), np.mean(sides, axis=0), atol=1e-6)
    warm = load_exported(write(tmp_path, model({**FACTS, "metadata": {**FACTS["metadata"], "temperature": 2.0}})))
    raw = [side**2 / (side**2).sum(axis=1, keepdims=True) for side in sides]  # the file says that it divided by 2
    expected = np.sqrt(np.mean(raw, axis=0))
    np.testing.assert_allclose(
        warm.probabilities(images, flips=["horizontal"]), expected / expected.sum(axis=1, keepdims=True), atol=1e-6
    )


def test_outputs_that_are_not_finite_are_an_error_of_the_image(tmp_path: Path) -> None:
    proto = model()
    weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[:] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    predictor = imgclf.load(write(tmp_path, proto))
    with pytest.raises(imgclf.ImageError, match="aren't finite"):
        predictor.predict(np.zeros((8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "eager"}, "engine eager: an exported file runs on onnxruntime or openvino"),
        ({"device": "cuda"}, "device cuda: an exported file runs on the CPU"),
        ({"precision": "bf16"}, "precision bf16: onnxruntime computes in fp32"),
    ],
)
def test_options_that_an_exported_file_has_not_are_one_line(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    path = write(tmp_path, model())
    with pytest.raises(ConfigError, match=words):
        imgclf.load(path, **options).predict(np.zeros((8, 8, 3), dtype=np.uint8))


def test_what_needs_torch_is_refused_in_one_line(tmp_path: Path) -> None:
    predictor = imgclf.load(write(tmp_path, model()))
    with pytest.raises(ConfigError, match="can't be trained; load the checkpoint"):
        _ = predictor.classifier
    with pytest.raises(ConfigError, match="saliency maps need the gradients of a checkpoint"):
        predictor.runner.saliency(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), 0)


def test_the_summary_counts_nodes_and_tensors() -> None:
    summary = check_onnx(model().SerializeToString())
    assert (summary.parts, summary.opset) == (5, 20) and json.loads(summary.metadata[METADATA_KEY]) == FACTS
