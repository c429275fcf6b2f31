"""A synthetic miniature of each of the five data sets, in the layout of the real one, quirks included."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from imgclf.demo.cards import CARD_CLASSES, card_faces
from imgclf.demo.hands import GESTURES, MOVES, SIGNS, SKINS, Pose, draw_hand
from imgclf.demo.scenes import Pixels, backgrounds, colour, crop, lights, paste, relight, view, write_image
from imgclf.demo.sports import SPORTS_CLASSES, sport_sign
from imgclf.errors import ConfigError
from imgclf.files.atomic import cache_folder

__all__ = ["DEMO_NAMES", "demo_folder", "draw_demo"]

# Pictures a class, by split; for the alphabet, which has one test picture a class, videos and their frames
_COUNTS = {
    "sign_mnist": {"train": 30, "test": 8},
    "asl_alphabet": {"videos": 5, "frames": 4},
    "rock_paper_scissors": {"train": 36, "test": 24, "validation": 3, "hires": 2},
    "cards": {"train": 39, "valid": 4, "test": 4},
    "sports": {"train": 30, "valid": 5, "test": 5},
}
_VERSION = "2"  # of the drawings: raise it with any change that moves a byte, so that no older folder is taken for new


def draw_demo(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Draw the miniature called `name` into `folder`, the same bytes for the same seed; returns the folder.

    Raises `ConfigError` for a name that isn't one of `DEMO_NAMES`.
    """
    _check(name)
    _WRITERS[name](Path(folder), np.random.default_rng([seed, DEMO_NAMES.index(name)]))
    return Path(folder)


def demo_folder(name: str, seed: int = 0) -> Path:
    """The miniature's folder in the cache, drawn at first use: whole under this path, or not there at all.

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
    if name not in _WRITERS:
        raise ConfigError(f"demo {name!r}: expected one of {', '.join(DEMO_NAMES)}")


def _cards(folder: Path, rng: np.random.Generator) -> None:
    tables, lamps, faces = backgrounds(rng, 36, 336), lights(rng, 16, 224), card_faces()
    rows = ["class index,filepaths,labels,card type,data set"]
    for split, count in _COUNTS["cards"].items():
        for index, name in enumerate(CARD_CLASSES):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(1, count + 1):
                table, lamp = tables[rng.integers(len(tables))], lamps[rng.integers(len(lamps))]
                matrix = view(faces[name], 224, rng, scale=(0.78, 0.94), turn=8, tilt=0.02, shift=0.13)
                path = f"{split}/{name}/{number:0{3 if split == 'train' else 1}}.jpg"
                write_image(folder / path, paste(crop(table, 224, rng), faces[name], matrix, lamp))
                rows.append(f"{index},{path},{name},{name.split()[0]},{split}")
    twin = (folder / "train" / "four of clubs" / "001.jpg").read_bytes()  # as in the original, under two classes
    (folder / "train" / "four of spades" / "001.jpg").write_bytes(twin)
    rows.append("0,train/ace of clubs/output,ace of clubs,ace,train")  # as in the original, a file that isn't there
    (folder / "cards.csv").write_text("\n".join(rows) + "\n", newline="")


def _sports(folder: Path, rng: np.random.Generator) -> None:
    tables, lamps = backgrounds(rng, 24, 336), lights(rng, 16, 224)
    rows = ["class id,filepaths,labels,data set"]
    for split, count in _COUNTS["sports"].items():
        for index, name in enumerate(SPORTS_CLASSES):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(1, count + 1 - (split == "test" and name == "rowing")):  # one class is a picture short
                table, lamp = tables[rng.integers(len(tables))], lamps[rng.integers(len(lamps))]
                plate = colour(rng, (40, 200), (60, 250))
                figure = (28, 30, 42) if sum(plate) > 3 * 128 else (250, 250, 250)
                sign = sport_sign(name, figure, plate)
                matrix = view(sign, 224, rng, scale=(0.65, 0.95), turn=22, tilt=0.05, shift=0.08)
                image = paste(crop(table, 224, rng), sign, matrix, lamp)
                path = f"{split}/{name}/{number:0{3 if split == 'train' else 1}}.jpg"
                write_image(folder / path, image, grey=len(rows) % 60 == 7)
                rows.append(f"{index},{path},{name},{split}")
    twin = (folder / "train" / "golf" / "001.jpg").read_bytes()  # a duplicate across the splits
    (folder / "valid" / "golf" / "1.jpg").write_bytes(twin)
    (folder / "sports.csv").write_text("\n".join(rows) + "\n", newline="")


def _rock_paper_scissors(folder: Path, rng: np.random.Generator) -> None:
    top = folder / "Rock-Paper-Scissors"
    lamps, counts = lights(rng, 16, 300), _COUNTS["rock_paper_scissors"]
    for name, gesture in GESTURES.items():
        paths = [top / "train" / name / f"{name}01-{number:03}.png" for number in range(counts["train"])]
        paths += [top / "test" / name / f"test{name}01-{number:02}.png" for number in range(counts["test"])]
        paths += [top / "validation" / f"{name}{number}.png" for number in range(1, counts["validation"] + 1)]
        paths += [top / "validation" / f"{name}-hires{number}.png" for number in range(1, counts["hires"] + 1)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            hires = "hires" in path.name
            side = 600 if hires else 300
            wall = np.full((side, side, 3), colour(rng, (10, 110), (90, 255)), np.uint8)
            hand = Pose(gesture.fingers, gesture.thumb, gesture.spread, float(rng.uniform(-180, 180)))
            moves, skin = rng.normal(size=MOVES), SKINS[rng.integers(len(SKINS))]
            moves[9:11] *= 2  # so that where the picture is bright tells little
            image = draw_hand(wall, hand, moves, skin, mirrored=rng.random() < 0.5, size=rng.uniform(0.2, 0.34))
            lamp = cv2.resize(lamps[rng.integers(len(lamps))], (side, side))
            image = relight(image, np.asarray(lamp, np.uint8))
            stored = cv2.resize(image, (900, 900), interpolation=cv2.INTER_CUBIC) if hires else image
            write_image(path, np.asarray(cv2.cvtColor(stored, cv2.COLOR_RGB2RGBA), np.uint8))


def _asl_alphabet(folder: Path, rng: np.random.Generator) -> None:
    train = folder / "asl_alphabet_train" / "asl_alphabet_train"
    test = folder / "asl_alphabet_test" / "asl_alphabet_test"
    test.mkdir(parents=True, exist_ok=True)
    rooms, lamps, counts = backgrounds(rng, 24, 300, things=2), lights(rng, 16, 200), _COUNTS["asl_alphabet"]
    for name in sorted([*SIGNS, "nothing"]):
        (train / name).mkdir(parents=True, exist_ok=True)
        takes = [_take(SIGNS.get(name), counts["frames"], rooms, lamps, rng) for _ in range(counts["videos"])]
        for number, frame in enumerate((frame for take in takes for frame in take), start=1):
            write_image(train / name / f"{name}{number}.jpg", frame)
        if name != "del":  # the original has no test picture of it
            write_image(test / f"{name}_test.jpg", _take(SIGNS.get(name), 1, rooms, lamps, rng)[0])


def _take(
    sign: Pose | None, frames: int, rooms: list[Pixels], lamps: list[Pixels], rng: np.random.Generator
) -> list[Pixels]:
    """Frames of one video, each close to the one before: one room, one hand that drifts; None is an empty room."""
    room, lamp = crop(rooms[rng.integers(len(rooms))], 200, rng), lamps[rng.integers(len(lamps))]
    skin, moves = SKINS[rng.integers(len(SKINS))], rng.normal(size=MOVES)
    shots = []
    for _ in range(frames):
        moves = 0.95 * moves + 0.31 * rng.normal(size=MOVES)  # keeps a spread of 1: 0.95^2 + 0.31^2 = 1
        room = np.roll(room, rng.integers(-1, 2, 2), (0, 1))  # a hand-held camera
        shots.append(relight(room if sign is None else draw_hand(room, sign, 0.7 * moves, skin, size=0.3), lamp))
    return shots


def _sign_mnist(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    walls, lamps = backgrounds(rng, 24, 84, things=3), lights(rng, 16, 56)
    labels = [label for label in range(25) if label != 9]  # positions in the alphabet; J and Z are movements
    for split, count in _COUNTS["sign_mnist"].items():
        rows = []
        for label in labels * count:
            wall, skin = crop(walls[rng.integers(len(walls))], 56, rng), SKINS[rng.integers(len(SKINS))]
            image = draw_hand(wall, SIGNS[chr(65 + label)], 0.7 * rng.normal(size=MOVES), skin, size=0.32)
            image = relight(image, lamps[rng.integers(len(lamps))])
            grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (28, 28), interpolation=cv2.INTER_AREA)
            rows.append(",".join(map(str, (label, *grey.ravel().tolist()))))
        header = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
        lines = [header, *(rows[index] for index in rng.permutation(len(rows)))]
        (folder / f"sign_mnist_{split}.csv").write_text("\r\n".join(lines) + "\r\n", newline="")


_WRITERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "sign_mnist": _sign_mnist,
    "asl_alphabet": _asl_alphabet,
    "rock_paper_scissors": _rock_paper_scissors,
    "cards": _cards,
    "sports": _sports,
}
DEMO_NAMES = tuple(_WRITERS)
