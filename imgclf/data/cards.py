"""Playing cards: 52 and the joker, photographed, one a picture."""

from imgclf.data.datamodule import ImageDataModule

__all__ = ["CardsDataModule"]


class CardsDataModule(ImageDataModule):
    """Kaggle's cards: `{train,valid,test}/<class>/NNN.jpg`, 224x224; `cards.csv` beside them names a file that isn't there
    and is not read. Flips mirror the indices, so they make pictures that no camera sees.
    """

    name = "cards"
    handle = "gpiosenka/cards-image-datasetclassification"
    licence = "CC0-1.0"
    expected = {53: (7_624, 265, 265)}
