"""imgclf: image classification by transfer learning. Importing it loads no torch; each name does when it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.data.asl_alphabet import ASLAlphabetDataModule
    from imgclf.data.cards import CardsDataModule
    from imgclf.data.datamodule import ImageDataModule
    from imgclf.data.rock_paper_scissors import RockPaperScissorsDataModule
    from imgclf.data.sign_mnist import SignMNISTDataModule
    from imgclf.data.sports import SportsDataModule
    from imgclf.errors import CheckpointError, ConfigError, DataError, ImageError, ImgclfError, RunError
    from imgclf.inference.predictor import Predictor, load
    from imgclf.preprocess import Preprocess
    from imgclf.training.classifier import ImageClassifier

_HOMES = {
    "ASLAlphabetDataModule": "imgclf.data.asl_alphabet",
    "CardsDataModule": "imgclf.data.cards",
    "CheckpointError": "imgclf.errors",
    "ConfigError": "imgclf.errors",
    "DataError": "imgclf.errors",
    "ImageClassifier": "imgclf.training.classifier",
    "ImageDataModule": "imgclf.data.datamodule",
    "ImageError": "imgclf.errors",
    "ImgclfError": "imgclf.errors",
    "Predictor": "imgclf.inference.predictor",
    "Preprocess": "imgclf.preprocess",
    "RockPaperScissorsDataModule": "imgclf.data.rock_paper_scissors",
    "RunError": "imgclf.errors",
    "SignMNISTDataModule": "imgclf.data.sign_mnist",
    "SportsDataModule": "imgclf.data.sports",
    "load": "imgclf.inference.predictor",
}

__all__ = [
    "ASLAlphabetDataModule",
    "CardsDataModule",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageClassifier",
    "ImageDataModule",
    "ImageError",
    "ImgclfError",
    "Predictor",
    "Preprocess",
    "RockPaperScissorsDataModule",
    "RunError",
    "SignMNISTDataModule",
    "SportsDataModule",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imgclf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
