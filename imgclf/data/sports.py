"""Sports: one picture of people at one of 100 sports."""

from imgclf.data.datamodule import ImageDataModule

__all__ = ["FIFTEEN", "SportsDataModule"]

# The reference used 15 of the 100 and named four of them; these are imgclf's.
FIFTEEN = (
    "archery", "baseball", "basketball", "bowling", "boxing", "cheerleading", "fencing", "football", "golf", "hockey",
    "rowing", "swimming", "tennis", "volleyball", "wheelchair basketball",
)  # fmt: skip


class SportsDataModule(ImageDataModule):
    """Kaggle's sports: `{train,valid,test}/<class>/NNN.jpg`, 224x224, a few of them grey. A mirrored picture keeps its
    label; `classes=FIFTEEN` is the reference's subset. The 100 classes' total isn't checked: editions differ.
    """

    name = "sports"
    handle = "gpiosenka/sports-classification"
    licence = "CC0-1.0"
    flips = ("horizontal",)
