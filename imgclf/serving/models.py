"""A model as a service needs it: its name, what is said of it, predictions for decoded images, and saliency maps."""

import base64
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import ConfigError, nearest
from imgclf.images import read_image
from imgclf.names import printable
from imgclf.serving.samples import ClassSamples

if TYPE_CHECKING:
    from imgclf.inference import Predictor
    from imgclf.inference.prediction import Prediction

__all__ = ["Decoded", "ServedModel", "find_model", "split_name"]

Pixels: TypeAlias = NDArray[np.uint8]
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
_UNNAMED = ("best", "last", "model")  # of files, which say nothing of what is in them


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as the network takes it: its name, and `pixels` uint8 [S, S, C]."""

    name: str
    pixels: Pixels


class ServedModel:
    """A predictor under the name by which requests choose it. All methods may be called from any thread."""

    def __init__(self, name: str, predictor: "Predictor") -> None:
        self.name, self.predictor = name, predictor
        licence = getattr(predictor.model, "licence", None)
        self.samples = ClassSamples(predictor.classes, predictor.model.metadata, licence)
        self._lock = threading.Lock()
        self._explains: bool | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.predictor.classes

    def read(self, data: bytes, name: str) -> Decoded:
        """Return the image in the bytes of a file; raises `ImageError`, which begins with `name`."""
        return Decoded(name, read_image(data, self.predictor.model.preprocess, name))

    def predict(self, images: Sequence[Decoded]) -> "list[Prediction]":
        """Return the predictions for one batch."""
        from imgclf.inference.inputs import InputImage  # here, because a model file needs no torch

        inputs = [InputImage(image.name, None) for image in images]
        with self._lock:
            return self.predictor.predict_pixels(inputs, [image.pixels for image in images])

    def warm_up(self) -> bool:
        """Predict a black image, so that the first request waits for no preparation; returns whether saliency maps exist."""
        preprocess = self.predictor.model.preprocess
        black = np.zeros((preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)
        (prediction,) = self.predict([Decoded("black", black)])
        if self._explains is None:
            try:
                self._explains = bool(self.explain(prediction, 0))
            except ConfigError:  # a transformer, or an exported file
                self._explains = False
        return self._explains

    @property
    def explains(self) -> bool:
        """Whether the network has saliency maps: a checkpoint's that has a feature map."""
        return self.warm_up() if self._explains is None else self._explains

    def explain(self, prediction: "Prediction", target: int | None = None) -> str:
        """Return the saliency map of the predicted class, or of `target`, over the image: `data:image/png;base64,...`."""
        import cv2

        assert prediction.pixels is not None
        if target is None:
            target = int(prediction.probabilities.argmax())
        with self._lock:
            pixels = self.predictor.runner.saliency(prediction.pixels, target)
        _, png = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
        return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()

    def facts(self, position: int) -> dict[str, Any]:
        """Return what `/metadata` says of the model, the `position`-th of the service; the first call looks for samples."""
        from imgclf.report.tables import finite

        metadata, preprocess = self.predictor.model.metadata, self.predictor.model.preprocess
        return {
            "name": self.name,
            "network": network_name(self.predictor),
            "size": preprocess.size,
            "classes": list(self.classes),
            "data": metadata.data.name,
            "metrics": finite(metadata.metrics),
            "licence": self.samples.licence,
            "saliency": self.explains,
            "samples": {self.classes[index]: f"/samples/{position}/{index}" for index in self.samples.available()},
        }


def network_name(predictor: "Predictor") -> str:
    """Return timm's name of the backbone; that of the network's type where it has none."""
    model: Any = predictor.model
    backbone = getattr(model, "backbone", None) or getattr(getattr(model, "network", None), "backbone", None)
    if isinstance(backbone, str):
        return backbone
    return str(getattr(backbone, "name", None) or type(getattr(model, "network", model)).__name__)


def split_name(text: str) -> tuple[str | None, str]:
    """Return the name and the path of a `NAME=PATH`; without a name None and the path, which may hold "=" too."""
    match = None if Path(text).exists() else _NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)


def choose_names(given: Sequence[str | None], paths: Sequence[str], predictors: Sequence["Predictor"]) -> list[str]:
    """Return a name of its own for each model: the given one, the file's, the data set's, or the network's.

    Raises `ConfigError` for a name that is given twice.
    """
    if twice := [name for name, count in Counter(filter(None, given)).items() if count > 1]:
        raise ConfigError(f"{twice[0]}: two models have this name; give each its own, as in a=first b=second")
    names: list[str] = []
    for name, path, predictor in zip(given, paths, predictors, strict=True):
        stem = Path(path).stem if Path(path).is_file() else ""
        stem = "" if stem in _UNNAMED else stem
        wanted = name or printable(stem) or printable(predictor.model.metadata.data.name) or network_name(predictor)
        taken, number = {*names, *(other for other in given if other and other != name)}, 2
        unique = wanted
        while unique in taken:
            unique, number = f"{wanted}-{number}", number + 1
        names.append(unique)
    return names


def find_model(models: Sequence[ServedModel], name: str) -> ServedModel | None:
    """Return the model of that name; None for an unknown one."""
    return next((model for model in models if model.name == name), None)


def unknown_model(models: Sequence[ServedModel], name: str) -> str:
    """Return the line about a name that no model has."""
    return f"model {printable(name)[:80]}: not served here; {nearest(name, [model.name for model in models])}"
