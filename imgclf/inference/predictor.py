"""Predictions from a model file in Python: `imgclf.load("best.ckpt").predict("image.jpg")`.

Nothing here loads torch: an exported model answers without it.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imgclf.errors import ConfigError, ImageError, not_finite, require_value
from imgclf.files.run_folder import find_checkpoint
from imgclf.images import as_pixels, fit, read_image
from imgclf.inference.inputs import InputImage, RemoteImage, each_input, is_array, is_single
from imgclf.inference.prediction import Prediction
from imgclf.models.metadata import CheckpointMetadata
from imgclf.preprocess import Preprocess
from imgclf.threads import prefetch_map

if TYPE_CHECKING:
    import torch

    from imgclf.training.classifier import ImageClassifier

__all__ = ["Predictor", "Runner", "load"]

PREFETCHED = 64  # images decoded while the network computes: 10 MB of 224 x 224
_NAMED = 8  # classes that the text of a predictor names


class Model(Protocol):
    """What is known of a model, whatever runs it: an `ImageModel` of torch or an `ExportedModel`."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    metadata: CheckpointMetadata


class Runner(Protocol):
    """A model and what computes it."""

    @property
    def description(self) -> str:
        """The network and where it runs, in a line."""

    def prepare(self, count: int) -> str:
        """Choose and build the engine for `count` images in all (0: unknown); return its name. Raises `ConfigError`."""

    def run(self, pixels: NDArray[np.uint8], engine: str) -> NDArray[np.float32]:
        """uint8 [B, S, S, C] -> probabilities float32 [B, K]; a row of NaN where the outputs aren't finite."""

    def saliency(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Return the saliency map of a class over pixels uint8 [S, S, C]: uint8 [S, S, 3]. Raises `ConfigError`."""


def load(
    path: str | Path,
    device: "str | torch.device" = "auto",
    engine: str = "auto",
    precision: str = "fp32",
    tta: bool = False,
) -> "Predictor":
    """Load the classifier from a checkpoint of `imgclf train` or a file of `imgclf export`; runs no code from it.

    `path`: the checkpoint, the run's folder (its best.ckpt is taken), `latest` for the newest finished run, or an exported
    file (`.onnx`), which answers without torch, on the CPU.
    `device`: auto, cpu, cuda, cuda:<number> or mps; auto is a GPU if there is one. `engine`: auto, eager or openvino for a
    checkpoint, see `imgclf.models.engine`; auto, onnxruntime or openvino for an exported file. `precision`: fp32 or bf16;
    `tta`: average the probabilities over the label-preserving flips of the data set (test-time augmentation).

    On Linux it lets the allocator of this process keep memory, see `imgclf.malloc`; `IMGCLF_MALLOC=0` leaves it as it is.

    Raises `CheckpointError` for a folder without a best.ckpt, and for another or a damaged file, `ConfigError` for a device
    that this machine lacks.
    """
    require_value("model", path)
    if str(path).lower().endswith(".onnx"):
        from imgclf.inference.onnx_runner import load_onnx  # here, because it loads onnxruntime

        return load_onnx(path, str(device), engine, precision, tta)
    file = find_checkpoint(path)  # before torch is loaded: a wrong path is answered at once
    from imgclf.inference.torch_runner import load_checkpoint  # here, because it loads torch

    return load_checkpoint(file, device, engine, precision, tta)


class Predictor:
    """Predicts the classes of images: paths, folders, URLs, PIL images, NumPy arrays or torch tensors, one or several.

    Arrays are [H, W] or [H, W, 3], tensors [C, H, W]; uint8, or floats from 0 to 1. A sequence is several images, and so is
    an array or tensor with one more axis. A folder stands for the images in it and below it, in natural order.
    """

    def __init__(self, model: Model, path: str | Path, runner: Runner) -> None:
        self.model, self.path, self.runner = model, path, runner

    def __repr__(self) -> str:
        return (
            f"Predictor of {self.path}\n  {self.runner.description}\n"
            f"  {len(self.classes)} classes: {_shortened(self.classes)}"
        )

    @cached_property
    def classifier(self) -> "ImageClassifier":
        """The same checkpoint as an `ImageClassifier`, for training or a Trainer; read from the file at first use.

        Raises `ConfigError` for an exported file, which can't be trained.
        """
        if not hasattr(self.model, "device"):
            raise ConfigError(
                f"{self.path}: an exported file can't be trained; load the checkpoint that it was made from"
            )
        from imgclf.training.classifier import ImageClassifier  # here, because it loads Lightning

        return ImageClassifier.load_from_checkpoint(self.path).to(self.model.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the columns of `predict_proba`."""
        return self.model.classes

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per epoch, with the columns of `history.csv`."""
        return self.model.metadata.history

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the run: {split: {accuracy, loss, macro_f1, correct, count, ...}}."""
        return self.model.metadata.metrics

    def predict(self, images: object, *, errors: str = "raise", batch_size: int = 32) -> Any:
        """Return the class name of one image, or a list of them for several, in order.

        With `errors="return"` an image that cannot be read yields its `ImageError`; by default it is raised.
        """
        results: list[str | ImageError] = []
        for _, probabilities, error in self.stream(images, errors=errors, batch_size=batch_size):
            results.append(self.classes[int(probabilities.argmax())] if error is None else error)
        return results[0] if is_single(images) else results

    def predict_one(self, image: object, *, top: int = 5) -> Prediction:
        """Return the prediction for one image: its `label`, `probability` and as many `top` classes; raises `ImageError`."""
        if top < 1:
            raise ConfigError(f"top={top}: expected at least 1")
        if not is_single(image):
            raise ConfigError("predict_one takes one image; predict takes several, or a folder")
        (prediction,) = self.predict_each(each_input(image), 1)
        if prediction.error is not None:
            raise prediction.error
        return replace(prediction, top_count=top)

    def predict_proba(self, images: object, *, errors: str = "raise", batch_size: int = 32) -> NDArray[np.float32]:
        """Return probabilities float32 [N, K]; with `errors="return"` an image that cannot be read has a row of NaN."""
        rows = [row for _, row, _ in self.stream(images, errors=errors, batch_size=batch_size)]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), dtype=np.float32)

    def stream(
        self, images: object, *, errors: str = "raise", batch_size: int = 32
    ) -> Iterator[tuple[str, NDArray[np.float32], ImageError | None]]:
        """Yield (name, probabilities float32 [K], None) of each image in order, or (name, NaN, error); one batch at a time
        is in memory. A folder without images counts as an image that cannot be read.
        """
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors={errors!r}: expected raise or return")
        # Paths and arrays are listed before they are read, so that their number can choose the engine; generators cannot.
        countable = isinstance(images, (str, os.PathLike, list, tuple)) or is_array(images)
        inputs = list(each_input(images)) if countable else each_input(images)
        count = len(inputs) if isinstance(inputs, list) else 0
        with closing(self.predict_each(inputs, count, batch_size)) as predictions:
            for prediction in predictions:
                if prediction.error is not None and errors == "raise":
                    raise prediction.error
                yield prediction.image.name, prediction.probabilities, prediction.error

    def predict_each(
        self, images: Iterable[InputImage], count: int = 0, batch_size: int = 32
    ) -> Generator[Prediction, None, None]:
        """Yield the prediction for each image in order; `count`: number of images, if known, which may choose the engine.

        In memory are one batch, and `PREFETCHED` decoded images.
        """
        batch: list[tuple[InputImage, NDArray[np.uint8] | ImageError]] = []
        engine = self.runner.prepare(count)
        with closing(prefetch_map(lambda image: (image, self._pixels(image)), images, PREFETCHED)) as decoded:
            for entry in decoded:
                batch.append(entry)
                if len(batch) == batch_size:
                    yield from self._predict_batch(batch, engine)
                    batch = []
        yield from self._predict_batch(batch, engine)

    def predict_pixels(self, images: Sequence[InputImage], pixels: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return the predictions for one batch of images that are decoded and fitted already: `pixels` uint8 [S, S, C] each.

        The number of images may choose the engine, as in `predict_each`.
        """
        return list(self._predict_batch(list(zip(images, pixels, strict=True)), self.runner.prepare(len(images))))

    def _pixels(self, image: InputImage) -> NDArray[np.uint8] | ImageError:
        """Return uint8 [S, S, C], decoded as in training, or the error of an image that cannot be read."""
        source, preprocess = image.source, self.model.preprocess
        try:
            if isinstance(source, ImageError):
                return source
            if isinstance(source, RemoteImage):
                return read_image(source.read(), preprocess, image.name)
            if isinstance(source, (str, os.PathLike, bytes)):
                return read_image(source, preprocess, image.name)
            return fit(as_pixels(source, preprocess.bits), preprocess)
        except ImageError as error:
            return error

    def _predict_batch(
        self, batch: Sequence[tuple[InputImage, NDArray[np.uint8] | ImageError]], engine: str
    ) -> Iterator[Prediction]:
        readable = [pixels for _, pixels in batch if not isinstance(pixels, ImageError)]
        rows: Iterator[NDArray[np.float32]] = iter(self.runner.run(np.stack(readable), engine) if readable else ())
        nothing_known = np.full(len(self.classes), np.nan, dtype=np.float32)
        for image, pixels in batch:
            if isinstance(pixels, ImageError):
                yield Prediction(image, nothing_known, None, pixels, self.classes)
                continue
            row = next(rows)
            is_finite = bool(np.isfinite(row).all())
            error = None if is_finite else ImageError(not_finite(image.name))
            yield Prediction(image, row if is_finite else nothing_known, pixels, error, self.classes)
            if isinstance(image.source, RemoteImage):
                image.source.release()


def _shortened(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:_NAMED])
    return shown if len(classes) <= _NAMED else f"{shown}, ... {classes[-1]}"
