"""The model card of an exported folder: what the model is, how accurate it was on which data, and how to run it.

The sections follow M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019, as far as a run knows them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.evaluation.calibration import accuracy_interval
from imgclf.names import printable

__all__ = ["model_card"]

_CLASSES, _PAIRS = 60, 10  # that are listed

Confusion = tuple[Sequence[str], NDArray[np.int64]]


def model_card(facts: Mapping[str, Any], files: Mapping[str, str], confusion: Confusion | None = None) -> str:
    """Return the card as Markdown.

    `facts`: what `imgclf.exporting.onnx_file.facts_of` gives; `files`: a sentence for each file of the folder;
    `confusion`: classes and counts [K, K] of the test split, rows true.
    """
    metadata, preprocess, classes = facts["metadata"], facts["preprocess"], facts["classes"]
    name = metadata["data"]["name"] or "images"
    sections = {
        "": [
            f"A classifier of images into {len(classes)} classes: {facts['backbone']} on {preprocess['size']} x "
            f"{preprocess['size']} pixels, trained with imgclf {facts['version']}.",
            f"Classes: {_listed(classes)}.",
        ],
        "Files": [f"- `{file}`: {sentence}" for file, sentence in files.items()],
        "Run it": [
            "```bash\npip install -r requirements.txt\npython predict.py image.jpg\n```",
            "Or in Python: `from predict import Classifier; Classifier('model.onnx').predict('image.jpg')`.",
            "Any ONNX runtime takes `model.onnx`: input `images`, uint8 [B, S, S, C]; output `probabilities`, float32 [B, K]. "
            "Normalisation, temperature and softmax are inside; images are decoded and resized before.",
        ],
        "Data": _data(metadata, facts.get("licence")),
        "Accuracy": [*_accuracy(metadata["metrics"]), *_confused(confusion)],
        "Limits": [
            "- Every image is answered with one of the classes above, also an image of something else: a low probability is "
            "the only sign of that.",
            "- The accuracy was measured on images of the same source as the training data. Images of another camera, "
            "background or region may be classified worse; measure on your own before you rely on it.",
            *_calibration(metadata),
        ],
    }
    text = "\n\n".join(
        f"## {title}\n\n{_joined(parts)}" if title else f"# {printable(name)}: {facts['backbone']}\n\n{_joined(parts)}"
        for title, parts in sections.items()
    )
    return f"{text}\n"


def _joined(parts: Sequence[str]) -> str:
    """Return paragraphs with an empty line between them; lines of one list or table follow each other."""
    text = ""
    for before, part in zip(["", *parts], parts, strict=False):
        together = before[:1] == part[:1] and part[:1] in ("-", "|")
        text += part if not text else ("\n" if together else "\n\n") + part
    return text


def _listed(classes: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in classes[:_CLASSES])
    return shown if len(classes) <= _CLASSES else f"{shown} and {len(classes) - _CLASSES} more (in the file's metadata)"


def _data(metadata: Mapping[str, Any], licence: str | None) -> list[str]:
    counts = metadata["data"]["counts"]
    numbers = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count) or "unknown"
    unknown = "The licence of the data isn't known to imgclf; state it here."
    known = f"The data set's licence is {licence}." if licence else unknown
    return [f"Data set: {printable(metadata['data']['name']) or 'unknown'}. Images: {numbers}.", known]


def _accuracy(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = []
    for split in ("val", "test"):
        if values := metrics.get(split):
            correct, count = int(values["correct"]), int(values["count"])
            low, high = accuracy_interval(correct, count)
            share = f"{correct / count:.1%} | {low:.1%} to {high:.1%}"
            rows.append(
                f"| {split} | {correct:,} of {count:,} | {share} | {values['macro_f1']:.3f} | {values['loss']:.3f} |"
            )
    if not rows:
        return ["The checkpoint holds no measurement; `imgclf evaluate` makes one."]
    header = "| split | correct | accuracy | 95 % interval | macro F1 | loss |"
    return [
        header,
        "|---|---|---|---|---|---|",
        *rows,
        "The best epoch was chosen on val; test took no part in training.",
    ]


def _confused(confusion: Confusion | None) -> list[str]:
    """Return the pairs of classes that were confused most."""
    if confusion is None:
        return []
    classes, matrix = confusion
    errors = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    pairs = [np.unravel_index(index, errors.shape) for index in order if errors.flat[index]]
    if not pairs:
        return ["No test image was classified wrongly."]
    rows = [
        f"| {printable(classes[true])} | {printable(classes[guess])} | {errors[true, guess]} |" for true, guess in pairs
    ]
    return ["Most confused on test:", "| actual | predicted | images |", "|---|---|---|", *rows]


def _calibration(metadata: Mapping[str, Any]) -> list[str]:
    values = metadata["metrics"].get("test") or metadata["metrics"].get("val") or {}
    error = values.get("calibrated_ece", values.get("ece"))
    if error is None:
        return []
    return [f"- Probabilities differ from the accuracy by {error:.1%} on average (expected calibration error)."]
