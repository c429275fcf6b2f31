"""Predictions from a checkpoint in Python: `imgclf.load("best.ckpt").predict("image.jpg")`."""

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from imgclf.data.loader import Batch
from imgclf.errors import ConfigError, ImageError, require_value
from imgclf.evaluation.evaluate import ForwardFn, build_forward, not_finite, predict_logits, softmax
from imgclf.files.run_folder import find_checkpoint
from imgclf.images import as_pixels, fit, read_image
from imgclf.inference.inputs import InputImage, RemoteImage, each_input, is_single
from imgclf.inference.prediction import Prediction
from imgclf.models import ImageModel, load_image_model
from imgclf.models.backbone import check_name
from imgclf.models.engine import choose_engine
from imgclf.models.network import Network, to_channels_last
from imgclf.models.weights import copy_tensors, describe_weights, find_weights, pretrained_network
from imgclf.threads import prefetch_map

if TYPE_CHECKING:
    from imgclf.training.classifier import ImageClassifier

__all__ = ["Predictor", "choose_device", "load", "load_imagenet"]

PREFETCHED = 64  # images decoded while the network computes: 10 MB of 224 x 224
_NAMED = 8  # classes that the text of a predictor names
DEVICES = "auto, cpu, cuda, cuda:<number> or mps"


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    engine: str = "auto",
    precision: str = "fp32",
    tta: bool = False,
) -> "Predictor":
    """Load the classifier from a checkpoint of `imgclf train`; needs no other file, and runs no code from it.

    `path`: the checkpoint, the run's folder (its best.ckpt is taken), or `latest` for the newest finished run.
    `device`: see `choose_device`; `engine`: auto, eager or openvino, see `imgclf.models.engine`; `precision`: fp32 or bf16;
    `tta`: average the probabilities over the label-preserving flips of the data set (test-time augmentation).

    Raises `CheckpointError` for a folder without a best.ckpt, and for another or a damaged file, `ConfigError` for a device
    that this machine lacks.
    """
    target = choose_device(device)
    file = find_checkpoint(path)
    model = load_image_model(file).to(target)
    return Predictor(model, file, engine, precision, model.flips() if tta else ())


def load_imagenet(
    name: str, weights: str | None = None, device: str = "auto", engine: str = "auto", precision: str = "fp32"
) -> "Predictor":
    """Load timm's network `name` with its ImageNet weights, from the file `weights`, the folder
    $IMGCLF_WEIGHTS or the hub; images are cropped as
    for the weights. `device`, `engine` and `precision` are those of `imgclf.load`.

    Raises `ConfigError` for a network that timm does not have or whose classes are not ImageNet's, `CheckpointError` for
    weights that cannot be read or downloaded.
    """
    place = choose_device(device)
    require_value("weights", weights)
    if weights and not os.path.isfile(os.path.expanduser(weights)):  # noqa: PTH111, PTH113
        raise ConfigError(f"weights {weights}: no such file; expected safetensors or pth")
    check_name(name, "network")
    weights = weights or (str(found) if (found := find_weights(name)) else None)
    preprocess, keywords = describe_weights(name, weights, resize="crop")
    if weights:
        network = timm.create_model(name, pretrained=False, **keywords)
        copy_tensors(network, Path(weights).expanduser(), name)
    else:
        network = pretrained_network(name, {}, preprocess.channels, preprocess.size)
    network = network.eval().requires_grad_(False)
    to_channels_last(network)
    model = ImageModel(network, _class_names(network, name), preprocess).eval().to(place)
    return Predictor(model, weights or name, engine, precision)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device `name`; "auto" is CUDA if there is a GPU, else MPS, else the CPU.

    Raises `ConfigError` for a device that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {name}: no such device; expected {DEVICES}") from None
    if device.type not in available:
        raise ConfigError(f"device {name}: not supported; expected {DEVICES}")
    if not available[device.type]:
        raise ConfigError(f"device {name}: not available on this machine; choose cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    return device


class Predictor:
    """Predicts the classes of images: paths, folders, URLs, PIL images, NumPy arrays or torch tensors, one or several.

    Arrays are [H, W] or [H, W, 3], tensors [C, H, W]; uint8, or floats from 0 to 1. A sequence is several images, and so is
    an array or tensor with one more axis. A folder stands for the images in it and below it, in natural order.
    """

    def __init__(
        self,
        model: ImageModel,
        path: str | Path,
        engine: str = "auto",
        precision: str = "fp32",
        flips: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.path, self.engine, self.precision, self.flips = path, engine, precision, flips
        self._engines: dict[str, ForwardFn] = {}

    def __repr__(self) -> str:
        network, size = self.model.network, self.model.preprocess.size
        name = network.backbone.name if isinstance(network, Network) else type(network).__name__
        return (
            f"Predictor of {self.path}\n  {name} on {size} x {size} pixels, on {self.model.device}\n"
            f"  {len(self.classes)} classes: {_shortened(self.classes)}"
        )

    @cached_property
    def classifier(self) -> "ImageClassifier":
        """The same checkpoint as an `ImageClassifier`, for training or a Trainer; read from the file at first use."""
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
        countable = isinstance(images, (str, os.PathLike, list, tuple, np.ndarray, torch.Tensor))
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
        engine = self._engine_for(count)
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
        return list(self._predict_batch(list(zip(images, pixels, strict=True)), self._engine_for(len(images))))

    def _engine_for(self, count: int) -> ForwardFn:
        name = choose_engine(self.engine, self.model.device, count)
        if name not in self._engines:
            self._engines[name] = build_forward(self.model, name, count, self.precision)
        return self._engines[name]

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
        self, batch: Sequence[tuple[InputImage, NDArray[np.uint8] | ImageError]], forward: ForwardFn
    ) -> Iterator[Prediction]:
        readable = [pixels for _, pixels in batch if not isinstance(pixels, ImageError)]
        rows: Iterator[tuple[NDArray[np.float32], bool]] = iter(())
        if readable:
            images = torch.from_numpy(np.stack(readable)).permute(0, 3, 1, 2)  # [B, C, S, S]
            nothing = torch.zeros(len(readable), dtype=torch.int64)
            logits = predict_logits(self.model, [Batch(images, nothing, nothing)], None, forward, self.flips)
            probabilities = softmax(logits, self.model.temperature)
            finite = np.isfinite(logits) & np.isfinite(probabilities)  # [B, K]
            rows = ((row, bool(known.all())) for row, known in zip(probabilities, finite, strict=True))
        nothing_known = np.full(len(self.classes), np.nan, dtype=np.float32)
        for image, pixels in batch:
            if isinstance(pixels, ImageError):
                yield Prediction(image, nothing_known, None, pixels, self.classes)
                continue
            row, is_finite = next(rows)
            error = None if is_finite else ImageError(not_finite(image.name))
            yield Prediction(image, row if is_finite else nothing_known, pixels, error, self.classes)
            if isinstance(image.source, RemoteImage):
                image.source.release()


def _shortened(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:_NAMED])
    return shown if len(classes) <= _NAMED else f"{shown}, ... {classes[-1]}"


def _class_names(network: Any, name: str) -> tuple[str, ...]:
    """Return the WordNet name of each class; one that several classes share (crane: bird and machine) is followed by its id."""
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ConfigError(
            f"{name}: its {network.num_classes} classes are not those of ImageNet; choose another network"
        )
    info = ImageNetInfo(subset)
    words = [info.index_to_description(index).partition(",")[0] for index in range(network.num_classes)]
    wnids = [info.index_to_label_name(index) for index in range(network.num_classes)]
    uses = Counter(words)
    return tuple(f"{word} ({wnid})" if uses[word] > 1 else word for word, wnid in zip(words, wnids, strict=True))
