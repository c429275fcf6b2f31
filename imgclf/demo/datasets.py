"""A drawn miniature of each of the five data sets, in the layout of the real one, quirks included."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from imgclf.demo.cards import CARD_CLASSES, card_face
from imgclf.demo.figures import GESTURES, SIGNS, SPORTS, paint
from imgclf.demo.scenes import Pixels, Studio, colour, write_image
from imgclf.errors import ConfigError
from imgclf.files.atomic import cache_folder

__all__ = ["DEMO_NAMES", "demo_folder", "draw_demo"]

# Images per class, by split; for the alphabet, which has one test image per class, videos and their frames
_COUNTS = {
    "sign_mnist": {"train": 30, "test": 8},
    "asl_alphabet": {"videos": 5, "frames": 4},
    "rock_paper_scissors": {"train": 36, "test": 24, "validation": 3, "hires": 2},
    "cards": {"train": 39, "valid": 4, "test": 4},
    "sports": {"train": 30, "valid": 5, "test": 5},
}
DEMO_NAMES = tuple(_COUNTS)
# Version of the drawings: raise it with any change that moves a byte, so that the cache never serves older drawings.
_VERSION = "3"
_SKINS = ((255, 219, 190), (241, 194, 150), (224, 172, 125), (190, 130, 88), (141, 90, 60), (92, 58, 40))


def draw_demo(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Draw the miniature `name` into `folder`, the same bytes for the same seed, and return the folder.

    Raises `ConfigError` for a name that isn't one of `DEMO_NAMES`.
    """
    _check(name)
    _WRITERS[name](Path(folder), np.random.default_rng([seed, DEMO_NAMES.index(name)]))
    return Path(folder)


def demo_folder(name: str, seed: int = 0) -> Path:
    """Return the miniature's folder in the cache, drawn at first use: whole under this path, or not there at all.

    Where two processes draw at once, the second to finish takes the first one's folder.
    """
    _check(name)
    folder = cache_folder() / "demo" / _VERSION / f"{name}-{seed}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder.parent) as aside:
        drawn = draw_demo(name, Path(aside) / folder.name, seed)
        try:
            os.rename(drawn, folder)
        except OSError:  # a rename never replaces a folder that holds files
            if not folder.is_dir():
                raise
    return folder


def _check(name: str) -> None:
    if name not in _COUNTS:
        raise ConfigError(f"demo {name!r}: expected one of {', '.join(DEMO_NAMES)}")


def _sign_mnist(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    studio = Studio(rng, 112, 24, scale=(0.85, 1.0), shift=0.06, tilt=0.03, turn=10, things=3)
    labels = [label for label in range(25) if label != 9]  # positions in the alphabet; J and Z are movements
    for split, count in _COUNTS["sign_mnist"].items():
        rows = []
        for label in labels * count:
            grey = cv2.cvtColor(studio.photograph(_hand(chr(65 + label), rng)), cv2.COLOR_RGB2GRAY)
            pixels = cv2.resize(grey, (28, 28), interpolation=cv2.INTER_AREA).ravel()
            rows.append(",".join(map(str, (label, *pixels.tolist()))))
        header = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
        lines = [header, *(rows[index] for index in rng.permutation(len(rows)))]
        (folder / f"sign_mnist_{split}.csv").write_text("\r\n".join(lines) + "\r\n", newline="")


def _asl_alphabet(folder: Path, rng: np.random.Generator) -> None:
    train, test = (folder / f"asl_alphabet_{split}" / f"asl_alphabet_{split}" for split in ("train", "test"))
    videos, frames = _COUNTS["asl_alphabet"].values()
    studio = Studio(rng, 200, 24, scale=(0.9, 1.0), shift=0.02, tilt=0.01, turn=4, things=1)
    for name in sorted([*SIGNS, "nothing"]):
        takes = [islice(studio.film(_hand(name, rng)), frames) for _ in range(videos)]
        for number, frame in enumerate((frame for take in takes for frame in take), start=1):
            write_image(train / name / f"{name}{number}.jpg", frame)
        if name != "del":  # the original has no test image of it
            write_image(test / f"{name}_test.jpg", studio.photograph(_hand(name, rng)))


def _rock_paper_scissors(folder: Path, rng: np.random.Generator) -> None:
    paths = {
        "train": "train/{0}/{0}01-{1:03}.png",
        "test": "test/{0}/test{0}01-{1:02}.png",
        "validation": "validation/{0}{1}.png",
        "hires": "validation/{0}-hires{1}.png",
    }
    studio = Studio(rng, 300, 24, scale=(0.8, 1.0), shift=0.08, tilt=0.04, turn=180, things=0, kinds=("felt",))
    for name in GESTURES:
        for split, count in _COUNTS["rock_paper_scissors"].items():
            for number in range(count) if split in ("train", "test") else range(1, count + 1):
                hand = _hand(name, rng)[:, :: rng.choice((-1, 1))]
                image = studio.photograph(np.ascontiguousarray(hand))
                if split == "hires":
                    image = np.asarray(cv2.resize(image, (900, 900), interpolation=cv2.INTER_CUBIC), np.uint8)
                write_image(folder / "Rock-Paper-Scissors" / paths[split].format(name, number), image)


def _hand(name: str, rng: np.random.Generator) -> Pixels:
    """Return a hand's layer with random skin and sleeve; an empty layer for "nothing".

    The hands of gestures wear gloves of any colour: a linear model could count pixels in the colours of skin.
    """
    sleeve, glove = colour(rng, (60, 200), (60, 230)), colour(rng, (40, 200), (60, 250))
    skin = glove if name in GESTURES else _SKINS[rng.integers(len(_SKINS))]
    outline = (skin[0] // 3, skin[1] // 3, skin[2] // 3)
    return np.zeros((200, 200, 4), np.uint8) if name == "nothing" else paint(name, (skin, outline, sleeve))


def _cards(folder: Path, rng: np.random.Generator) -> None:
    studio = Studio(rng, 224, 36, scale=(0.78, 0.94), shift=0.13, tilt=0.02, turn=8)
    rows = ["class index,filepaths,labels,card type,data set"]
    for split, index, name, path in _images("cards", CARD_CLASSES):
        write_image(folder / path, studio.photograph(card_face(name)))
        rows.append(f"{index},{path},{name},{name.split()[0]},{split}")
    # As in the original: one image in two classes, and a row for a file that isn't there
    shutil.copy(folder / "train/four of clubs/001.jpg", folder / "train/four of spades/001.jpg")
    rows.append("0,train/ace of clubs/output,ace of clubs,ace,train")
    (folder / "cards.csv").write_text("\n".join(rows) + "\n", newline="")


def _sports(folder: Path, rng: np.random.Generator) -> None:
    studio = Studio(rng, 224, 24, scale=(0.65, 0.95), shift=0.08, tilt=0.05, turn=22)
    rows = ["class id,filepaths,labels,data set"]
    for split, index, name, path in _images("sports", SPORTS):
        if path == f"test/rowing/{_COUNTS['sports']['test']}.jpg":  # one class has an image less
            continue
        plate, accent = colour(rng, (40, 200), (60, 250)), colour(rng, (120, 255), (180, 255))
        figure = (28, 30, 42) if sum(plate) > 3 * 128 else (250, 250, 250)
        image = studio.photograph(paint(name, (plate, figure, accent)))
        if len(rows) % 60 == 7:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        write_image(folder / path, image)
        rows.append(f"{index},{path},{name},{split}")
    # A duplicate across the splits
    shutil.copy(folder / "train/golf/001.jpg", folder / "valid/golf/1.jpg")
    (folder / "sports.csv").write_text("\n".join(rows) + "\n", newline="")


def _images(data_set: str, classes: tuple[str, ...]) -> Iterator[tuple[str, int, str, str]]:
    """Yield split, class index, class and relative path of every image."""
    for split, count in _COUNTS[data_set].items():
        for index, name in enumerate(classes):
            for number in range(1, count + 1):
                yield split, index, name, f"{split}/{name}/{number:0{3 if split == 'train' else 1}}.jpg"


_WRITERS = dict(zip(DEMO_NAMES, (_sign_mnist, _asl_alphabet, _rock_paper_scissors, _cards, _sports), strict=True))
