"""From files on disk to batches."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgclf.data.datamodule import ImageDataModule

# name of the data set -> module and class; any other name is an `ImageDataModule`, described by its YAML alone
KNOWN = {
    "sign_mnist": ("imgclf.data.sign_mnist", "SignMNISTDataModule"),
    "asl_alphabet": ("imgclf.data.asl_alphabet", "ASLAlphabetDataModule"),
    "rock_paper_scissors": ("imgclf.data.rock_paper_scissors", "RockPaperScissorsDataModule"),
    "cards": ("imgclf.data.cards", "CardsDataModule"),
    "sports": ("imgclf.data.sports", "SportsDataModule"),
}


def datamodule_class(name: str) -> "type[ImageDataModule]":
    """The data module for the data set called `name`: its own, or the general one."""
    module, attribute = KNOWN.get(name, ("imgclf.data.datamodule", "ImageDataModule"))
    return getattr(import_module(module), attribute)
