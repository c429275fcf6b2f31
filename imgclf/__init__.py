"""imgclf: image classification by transfer learning. Importing it loads no torch; each name loads when it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgclf.jupyter import import_tqdm_quietly

if TYPE_CHECKING:
    from imgclf.config import DatasetConfig as DatasetConfig
    from imgclf.data.datamodule import ImageDataModule as ImageDataModule
    from imgclf.data.datasets import ASLAlphabetDataModule as ASLAlphabetDataModule
    from imgclf.data.datasets import CardsDataModule as CardsDataModule
    from imgclf.data.datasets import RockPaperScissorsDataModule as RockPaperScissorsDataModule
    from imgclf.data.datasets import SignMNISTDataModule as SignMNISTDataModule
    from imgclf.data.datasets import SportsDataModule as SportsDataModule
    from imgclf.data.show import show_batch as show_batch
    from imgclf.data.show import show_classes as show_classes
    from imgclf.errors import CheckpointError as CheckpointError
    from imgclf.errors import ConfigError as ConfigError
    from imgclf.errors import DataError as DataError
    from imgclf.errors import ImageError as ImageError
    from imgclf.errors import ImgclfError as ImgclfError
    from imgclf.errors import RunError as RunError
    from imgclf.inference.predictor import Predictor as Predictor
    from imgclf.inference.predictor import load as load
    from imgclf.inference.run import Run as Run
    from imgclf.inference.run import open_run as open_run
    from imgclf.preprocess import Preprocess as Preprocess
    from imgclf.train import train as train
    from imgclf.training.classifier import ImageClassifier as ImageClassifier

_HOMES = {
    "imgclf.config": ("DatasetConfig",),
    "imgclf.data.datamodule": ("ImageDataModule",),
    "imgclf.data.datasets": (
        "ASLAlphabetDataModule",
        "CardsDataModule",
        "RockPaperScissorsDataModule",
        "SignMNISTDataModule",
        "SportsDataModule",
    ),
    "imgclf.errors": ("CheckpointError", "ConfigError", "DataError", "ImageError", "ImgclfError", "RunError"),
    "imgclf.inference.predictor": ("Predictor", "load"),
    "imgclf.data.show": ("show_batch", "show_classes"),
    "imgclf.inference.run": ("Run", "open_run"),
    "imgclf.preprocess": ("Preprocess",),
    "imgclf.train": ("train",),
    "imgclf.training.classifier": ("ImageClassifier",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
import_tqdm_quietly()

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        from imgclf.errors import nearest

        raise AttributeError(f"module 'imgclf' has no attribute {name!r}; {nearest(name, __all__)}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
