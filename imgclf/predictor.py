"""A trained classifier for other scripts: `imgclf.load("best.ckpt").predict("picture.jpg")`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from imgclf.data.decode import as_pixels, read_image
from imgclf.data.fitting import fit
from imgclf.data.loader import Batch
from imgclf.data.sources import list_images
from imgclf.errors import ConfigError, ImageError
from imgclf.inference import Answer, engine_for, predict_logits, softmax
from imgclf.models.engine import choose_engine
from imgclf.threads import ahead
from imgclf.trained import TrainedNetwork, restore

if TYPE_CHECKING:
    from imgclf.classifier import ImageClassifier

__all__ = ["Predictor", "load"]

AHEAD = 64  # pictures that are decoded while the network is busy: 10 MB of 224 x 224


def load(path: str | Path, device: str | torch.device = "cpu", engine: str = "auto",
         precision: str = "fp32") -> "Predictor":  # fmt: skip
    """The classifier in a checkpoint that `imgclf.train` wrote; needs nothing but the file, and runs no code in it.

    `engine`: what runs it, see `imgclf.models.engine`; `precision`: fp32 or bf16.

    Raises `CheckpointError` for any other or a damaged file, `ConfigError` for a device that isn't there.
    """
    try:
        trained = restore(TrainedNetwork, path).to(device)
    except (RuntimeError, AssertionError) as error:
        if "devic" not in str(error).lower() and "cuda" not in str(error).lower():
            raise
        raise ConfigError(
            f"device={str(device)!r}: {str(error).splitlines()[0]}; pass cpu, or what this machine has"
        ) from None
    return Predictor(trained, path, engine, precision)


class Predictor:
    """Answers for pictures: paths, folders, PIL images, numpy arrays or torch tensors, one or many.

    Arrays are [H, W] or [H, W, 3], tensors [C, H, W]; uint8, or floats from 0 to 1. A sequence, or an array or tensor with
    one axis more, is many; a folder stands for the pictures in it and below it, in natural order.
    """

    def __init__(
        self, trained: TrainedNetwork, path: str | Path, engine: str = "auto", precision: str = "fp32"
    ) -> None:
        self.trained, self.path, self.engine, self.precision = trained, path, engine, precision
        self._engines: dict[str, Answer] = {}

    @cached_property
    def classifier(self) -> "ImageClassifier":
        """The same as an `ImageClassifier`, to train on or to give to a Trainer; read from the file when first asked for."""
        from imgclf.classifier import ImageClassifier  # here, because it loads Lightning

        return ImageClassifier.load_from_checkpoint(self.path).to(self.trained.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the columns of `predict_proba`."""
        return self.trained.classes

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch, with the columns of `history.csv`."""
        return self.trained.history

    @property
    def metrics(self) -> dict[str, Any]:
        """What the run measured: {split: {accuracy, loss, top5, macro_f1, correct, count}}."""
        return self.trained.about.get("metrics", {})

    def predict(self, pictures: Any, *, errors: str = "raise", batch_size: int = 32) -> Any:
        """The class name of one picture, or a list of them for many, in order.

        `errors="return"` puts the `ImageError` in the place of a picture that can't be read, which otherwise is raised.
        """
        answers: list[Any] = []
        for _, probabilities, error in self.stream(pictures, errors=errors, batch_size=batch_size):
            answers.append(self.classes[int(probabilities.argmax())] if error is None else error)
        return answers[0] if _is_one(pictures) else answers

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
        pending: list[tuple[str, NDArray[np.uint8] | ImageError]] = []
        items = list(_each(pictures)) if _can_count(pictures) else None
        answer = self._engine_for(len(items) if items is not None else 0)
        decoded = ahead(lambda item: (item[0], self._pixels(*item, errors)), items or _each(pictures), AHEAD)
        with closing(decoded):
            for name, pixels in decoded:
                pending.append((name, pixels))
                if len(pending) == batch_size:
                    yield from self._answer(pending, answer)
                    pending = []
        yield from self._answer(pending, answer)

    def _engine_for(self, count: int) -> Answer:
        name = choose_engine(self.engine, self.trained.device, count)
        if name not in self._engines:
            self._engines[name] = engine_for(self.trained, name, count, self.precision)
        return self._engines[name]

    def _pixels(self, name: str, picture: Any, errors: str) -> NDArray[np.uint8] | ImageError:
        """uint8 [S, S, C], by the decoder that training used."""
        try:
            if isinstance(picture, ImageError):
                raise picture
            if isinstance(picture, (str, os.PathLike, bytes)):
                return read_image(picture, self.trained.preprocess, name)
            return fit(as_pixels(picture), self.trained.preprocess)
        except ImageError as error:
            if errors == "raise":
                raise
            return error

    def _answer(self, pending: Sequence[tuple[str, NDArray[np.uint8] | ImageError]], answer: Answer
                ) -> Iterator[tuple[str, NDArray[np.float32], ImageError | None]]:  # fmt: skip
        good = [pixels for _, pixels in pending if not isinstance(pixels, ImageError)]
        rows = iter(())
        if good:
            images = torch.from_numpy(np.stack(good)).permute(0, 3, 1, 2)  # [B, C, S, S]
            nothing = torch.zeros(len(good), dtype=torch.int64)
            rows = iter(softmax(predict_logits(self.trained, [Batch(images, nothing, nothing)], None, answer)))
        for name, pixels in pending:
            if isinstance(pixels, ImageError):
                yield name, np.full(len(self.classes), np.nan, dtype=np.float32), pixels
            else:
                yield name, next(rows), None


def _can_count(pictures: Any) -> bool:
    """Whether the pictures can be listed before they are read: names can, whatever a generator may give can't."""
    return isinstance(pictures, (str, os.PathLike, list, tuple, np.ndarray, torch.Tensor))


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, (str, os.PathLike)):
        return not Path(pictures).is_dir()
    if isinstance(pictures, (np.ndarray, torch.Tensor)):
        return pictures.ndim <= 3
    return isinstance(pictures, bytes) or not isinstance(pictures, Iterable)


def _each(pictures: Any) -> Iterator[tuple[str, Any]]:
    """(name, picture) for one or many; a folder gives its pictures."""
    if isinstance(pictures, (str, os.PathLike)):
        yield from _files(Path(pictures))
    elif _is_one(pictures):
        yield "picture 0", pictures
    else:
        for number, picture in enumerate(pictures):
            if isinstance(picture, (str, os.PathLike)):
                yield from _files(Path(picture))
            else:
                yield f"picture {number}", picture


def _files(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_dir():
        yield str(path), path
        return
    files = [
        file for folder in [path, *sorted(p for p in path.rglob("*") if p.is_dir())] for file in list_images(folder)
    ]
    if not files:
        yield (
            str(path),
            ImageError(f"{path}: no pictures in this folder or below it; expected files such as .jpg or .png"),
        )
    yield from ((str(file), file) for file in files)
