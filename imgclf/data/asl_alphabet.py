"""The American Sign Language alphabet: video frames of one hand."""

from imgclf.data.datamodule import ImageDataModule

__all__ = ["ASLAlphabetDataModule"]


class ASLAlphabetDataModule(ImageDataModule):
    """Kaggle's ASL alphabet, doubly nested `asl_alphabet_train/asl_alphabet_train/<class>/A1.jpg`, 200x200, 3,000 a class.

    Its flat test folder holds 28 pictures (no `del`), too few to test on: 10 % of train is held out for test and 20 % of
    the rest for validation. Neighbouring frames are near-duplicates, so the hold-out takes runs of neighbours
    ("blocks"); "random" is what the reference did, and flatters. `splits={"test": ARCHIVE_TEST}` reads the 28.
    """

    name = "asl_alphabet"
    handle = "grassknoted/asl-alphabet"
    licence = "GPL-2.0"
    splits = {"train": {"kind": "folders", "names": ["asl_alphabet_train", "train", "."]}}
    expected = {29: (62_640, 15_660, 8_700)}
    holdout = "blocks"

    ARCHIVE_TEST = {"kind": "flat", "names": ["asl_alphabet_test"], "pattern": "(?P<label>.+)_test$",
                    "anywhere": True}  # fmt: skip
