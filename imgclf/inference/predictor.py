"""A trained classifier for other scripts: `imgclf.load("best.ckpt").predict("picture.jpg")`."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.data.loader import Batch
from imgclf.errors import ConfigError, ImageError
from imgclf.evaluation.evaluate import Answer, build_forward, predict_logits, softmax
from imgclf.images.decode import as_pixels, read_image
from imgclf.images.fitting import fit
from imgclf.inference.inputs import Picture, RemoteImage, each_input, is_one
from imgclf.models import ImageModel, load_image_model
from imgclf.models.engine import choose_engine
from imgclf.threads import prefetch_map

if TYPE_CHECKING:
    from imgclf.training.classifier import ImageClassifier

__all__ = ["Prediction", "Predictor", "load"]

AHEAD = 64  # pictures that are decoded while the network is busy: 10 MB of 224 x 224


@dataclass(frozen=True, eq=False)
class Prediction:
    """A picture's `probabilities` float32 [K] and the `pixels` uint8 [S, S, C] that the network saw; for one that can't be
    read NaNs, None, and the `error`.
    """

    picture: Picture
    probabilities: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None
    error: ImageError | None


def load(path: str | Path, device: str | torch.device = "cpu", engine: str = "auto",
         precision: str = "fp32", tta: bool = False) -> "Predictor":  # fmt: skip
    """The classifier in a checkpoint that `imgclf.train` wrote; needs nothing but the file, and runs no code in it.

    `engine`: what runs it, see `imgclf.models.engine`; `precision`: fp32 or bf16; `tta`: answer with the mean over the
    picture and the mirror images of it that show the same, as its data set says.

    Raises `CheckpointError` for any other or a damaged file, `ConfigError` for a device that isn't there.
    """
    trained = to_device(load_image_model(path), device)
    return Predictor(trained, path, engine, precision, trained.flips() if tta else ())


def to_device(network: Any, device: str | torch.device) -> Any:
    """`network` on `device`; raises `ConfigError` for one that isn't there."""
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        if "devic" not in str(error).lower() and "cuda" not in str(error).lower():
            raise
        raise ConfigError(
            f"device={str(device)!r}: {str(error).splitlines()[0]}; pass cpu, or what this machine has"
        ) from None


class Predictor:
    """Answers for pictures: paths, folders, web addresses, PIL images, numpy arrays or torch tensors, one or many.

    Arrays are [H, W] or [H, W, 3], tensors [C, H, W]; uint8, or floats from 0 to 1. A sequence, or an array or tensor with
    one axis more, is many; a folder stands for the pictures in it and below it, in natural order.
    """

    def __init__(self, trained: ImageModel, path: str | Path, engine: str = "auto", precision: str = "fp32",
                 flips: Sequence[str] = ()) -> None:  # fmt: skip
        self.trained = trained
        self.path, self.engine, self.precision, self.flips = path, engine, precision, flips
        self._engines: dict[str, Answer] = {}

    @cached_property
    def classifier(self) -> "ImageClassifier":
        """The same as an `ImageClassifier`, to train on or to give to a Trainer; read from the file when first asked for."""
        from imgclf.training.classifier import ImageClassifier  # here, because it loads Lightning

        return ImageClassifier.load_from_checkpoint(self.path).to(self.trained.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the columns of `predict_proba`."""
        return self.trained.classes

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch, with the columns of `history.csv`."""
        return self.trained.metadata.history

    @property
    def metrics(self) -> dict[str, Any]:
        """What the run measured: {split: {accuracy, loss, top5, macro_f1, correct, count}}."""
        return self.trained.metadata.metrics

    def predict(self, pictures: Any, *, errors: str = "raise", batch_size: int = 32) -> Any:
        """The class name of one picture, or a list of them for many, in order.

        `errors="return"` puts the `ImageError` in the place of a picture that can't be read, which otherwise is raised.
        """
        answers: list[Any] = []
        for _, probabilities, error in self.stream(pictures, errors=errors, batch_size=batch_size):
            answers.append(self.classes[int(probabilities.argmax())] if error is None else error)
        return answers[0] if is_one(pictures) else answers

    def predict_proba(self, pictures: Any, *, errors: str = "raise", batch_size: int = 32) -> NDArray[np.float32]:
        """Probabilities float32 [N, K]; a row of NaN for a picture that can't be read, with `errors="return"`."""
        rows = [row for _, row, _ in self.stream(pictures, errors=errors, batch_size=batch_size)]
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), dtype=np.float32)

    def stream(self, pictures: Any, *, errors: str = "raise",
               batch_size: int = 32) -> Iterator[tuple[str, NDArray[np.float32], ImageError | None]]:  # fmt: skip
        """(name, probabilities float32 [K], None) for each picture in order, or (name, NaNs, the error); holds one batch
        in memory at a time. A folder without pictures is a picture that can't be read.
        """
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors={errors!r}: expected raise or return")
        listed = list(each_input(pictures)) if _can_count(pictures) else None
        answers = self.answer(each_input(pictures) if listed is None else listed, len(listed or ()), batch_size)
        with closing(answers):
            for answered in answers:
                if answered.error is not None and errors == "raise":
                    raise answered.error
                yield answered.picture.name, answered.probabilities, answered.error

    def answer(
        self, pictures: Iterable[Picture], count: int = 0, batch_size: int = 32
    ) -> Generator[Prediction, None, None]:
        """Each of the `pictures` in order, answered; `count` is how many there are, as far as one knows. Holds a batch in
        memory at a time, and `AHEAD` pictures that are decoded already.
        """
        pending: list[tuple[Picture, NDArray[np.uint8] | ImageError]] = []
        engine = self._engine_for(count)
        decoded = prefetch_map(lambda picture: (picture, self._pixels(picture)), pictures, AHEAD)
        with closing(decoded):
            for entry in decoded:
                pending.append(entry)
                if len(pending) == batch_size:
                    yield from self._answer(pending, engine)
                    pending = []
        yield from self._answer(pending, engine)

    def _engine_for(self, count: int) -> Answer:
        name = choose_engine(self.engine, self.trained.device, count)
        if name not in self._engines:
            self._engines[name] = build_forward(self.trained, name, count, self.precision)
        return self._engines[name]

    def _pixels(self, picture: Picture) -> NDArray[np.uint8] | ImageError:
        """uint8 [S, S, C], by the decoder that training used."""
        source, preprocess = picture.source, self.trained.preprocess
        try:
            if isinstance(source, ImageError):
                return source
            if isinstance(source, RemoteImage):
                return read_image(source.read(), preprocess, picture.name)
            if isinstance(source, (str, os.PathLike, bytes)):
                return read_image(source, preprocess, picture.name)
            return fit(as_pixels(source), preprocess)
        except ImageError as error:
            return error

    def _answer(self, pending: Sequence[tuple[Picture, NDArray[np.uint8] | ImageError]], answer: Answer
                ) -> Iterator[Prediction]:  # fmt: skip
        good = [pixels for _, pixels in pending if not isinstance(pixels, ImageError)]
        rows = iter(())
        if good:
            images = torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2)  # [B, C, S, S]
            nothing = torch.zeros(len(good), dtype=torch.int64)
            logits = predict_logits(self.trained, [Batch(images, nothing, nothing)], None, answer, self.flips)
            rows = iter(softmax(logits, self.trained.temperature))
        for picture, pixels in pending:
            if isinstance(pixels, ImageError):
                yield Prediction(picture, np.full(len(self.classes), np.nan, dtype=np.float32), None, pixels)
            else:
                yield Prediction(picture, next(rows), pixels, None)
            if isinstance(picture.source, RemoteImage):
                picture.source.forget()


def _can_count(pictures: Any) -> bool:
    """Whether the pictures can be listed before they are read: names can, whatever a generator may give can't."""
    return isinstance(pictures, (str, os.PathLike, list, tuple, np.ndarray, torch.Tensor))
