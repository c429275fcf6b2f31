"""Rock, paper, scissors: rendered hands before white."""

from imgclf.data.datamodule import ImageDataModule

__all__ = ["RockPaperScissorsDataModule"]


class RockPaperScissorsDataModule(ImageDataModule):
    """L. Moroney's hands, RGBA PNGs of 300x300 (six of 900x900): `{train,test}/<class>/*.png`, and a flat `validation/`
    where the file name begins with the class (`rock-hires1.png`, `paper3.png`). A mirrored hand keeps its label.
    """

    name = "rock_paper_scissors"
    handle = "sanikamal/rock-paper-scissors-dataset"
    licence = "CC-BY-2.0"
    flips = ("horizontal",)
    splits = {
        **ImageDataModule.splits,
        "val": {"kind": "flat", "names": ["validation", "valid", "val"], "pattern": "(?P<label>[A-Za-z]+)"},
    }
    expected = {3: (2_520, 33, 372)}
