"""The five data sets: exact counts on folders of the real layout, and the quirks of the real archives."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from imgclf import (
    ASLAlphabetDataModule,
    CardsDataModule,
    RockPaperScissorsDataModule,
    SignMNISTDataModule,
    SportsDataModule,
)
from imgclf.data.datamodule import SPLITS, ImageDataModule
from imgclf.data.datasets import FIFTEEN
from imgclf.errors import ConfigError, DataError

RANKS = ("ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "jack", "queen", "king")
CARDS = [*(f"{rank} of {suit}" for rank in RANKS for suit in ("clubs", "diamonds", "hearts", "spades")), "joker"]
ASL = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "del", "nothing", "space"]


def touch(folder: Path, names: Iterable[str]) -> None:
    """Create empty files; reading a layout opens none of them."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def counts(data: ImageDataModule) -> tuple[int, ...]:
    data.setup()
    return tuple(len(data.samples[split]) for split in SPLITS)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cards")
    for index, name in enumerate(CARDS):
        touch(root / "train" / name, (f"{i:03}.jpg" for i in range(144 if index < 45 else 143)))  # 45 * 144 + 8 * 143
        for split in ("valid", "test"):
            touch(root / split / name, (f"{i}.jpg" for i in range(1, 6)))
    (root / "cards.csv").write_text("class index,filepaths\n0,train/ace of clubs/999.jpg\n")
    return root


def test_cards_have_their_published_counts_and_classes(cards: Path) -> None:
    data = CardsDataModule(cards)
    assert counts(data) == (7_624, 265, 265)
    assert data.classes == tuple(sorted(CARDS))
    assert data.notes == ["not used: 1 other file (cards.csv)"]


def test_rock_paper_scissors_reads_its_flat_validation_folder(tmp_path: Path) -> None:
    root = tmp_path / "archive" / "Rock-Paper-Scissors"
    for name in ("rock", "paper", "scissors"):
        touch(root / "train" / name, (f"{name}{i}.png" for i in range(840)))
        touch(root / "test" / name, (f"test{name}{i}.png" for i in range(124)))
    tails = ("-hires1", "-hires2", *map(str, range(1, 10)))
    flat = [f"{name}{tail}.png" for name in ("rock", "paper", "scissors") for tail in tails]
    touch(root / "validation", [*flat, ".DS_Store", "._rock1.png"])
    data = RockPaperScissorsDataModule(tmp_path)
    assert counts(data) == (2_520, 33, 372)
    assert data.classes == ("paper", "rock", "scissors")
    assert data.samples["val"].counts().tolist() == [11, 11, 11]
    assert data.notes == ["ignored: 1 .DS_Store, 1 ._*"]


def test_asl_alphabet_holds_out_test_and_validation_images(tmp_path: Path) -> None:
    for name in ASL:
        touch(tmp_path / "asl_alphabet_train" / "asl_alphabet_train" / name, (f"{name}{i}.jpg" for i in range(1, 3001)))
    touch(tmp_path / "asl_alphabet_test" / "asl_alphabet_test", (f"{name}_test.jpg" for name in ASL if name != "del"))
    for holdout in ("blocks", "random"):
        data = ASLAlphabetDataModule(tmp_path, holdout=holdout)
        assert counts(data) == (62_640, 15_660, 8_700)
        assert len(data.classes) == 29
        assert data.samples["test"].counts().tolist() == [300] * 29
        assert not set(data.samples["train"].items) & set(data.samples["val"].items)
    assert ASLAlphabetDataModule(tmp_path).holdout == "blocks"
    flat = ASLAlphabetDataModule(tmp_path, splits={"test": ASLAlphabetDataModule.ARCHIVE_TEST})
    assert counts(flat)[2] == 28
    assert [note for note in flat.notes if note.startswith("test has no images of del (")]


def test_sign_mnist_has_24_letters_and_splits_its_test_file(tmp_path: Path) -> None:
    header = "label," + ",".join(f"pixel{i}" for i in range(1, 785))
    labels = [label for label in range(25) if label != 9]
    tail = ",".join(str(i % 256) for i in range(784))
    for name, rows in (("train", 27_455), ("test", 7_172)):
        lines = [header, *(f"{labels[row % 24]},{tail}" for row in range(rows))]
        (tmp_path / f"sign_mnist_{name}.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    data = SignMNISTDataModule(tmp_path)
    assert counts(data) == (27_455, 4_303, 2_869)
    assert data.classes == tuple("ABCDEFGHIKLMNOPQRSTUVWXY")
    assert data.notes == []
    train = data.samples["train"]
    assert [train.classes[target] for target in train.targets[8:11]] == ["I", "K", "L"]  # J has no images
    assert train.pixels is not None
    assert train.pixels.shape == (27_455, 28, 28, 1)
    assert train.pixels[0, 9, 4, 0] == (9 * 28 + 4) % 256
    assert data.samples["test"].items[0].endswith("sign_mnist_test.csv:4305")  # line 1 is the header
    images, targets, indices, _ = next(iter(SignMNISTDataModule(tmp_path, batch_size=4).val_dataloader()))
    assert images.shape == (4, 3, 224, 224)
    assert targets.tolist() == data.samples["val"].targets[indices].tolist()


@pytest.mark.parametrize("label", ["9", "25", "A"])
def test_unknown_sign_mnist_label_raises_data_error_with_its_line(tmp_path: Path, label: str) -> None:
    row = ",".join(["7"] * 784)
    (tmp_path / "sign_mnist_train.csv").write_text(f"0,{row}\n1,{row}\n{label},{row}\n")
    with pytest.raises(DataError, match=rf"sign_mnist_train\.csv, line 3: label '{label}'"):
        SignMNISTDataModule(tmp_path).setup()


@pytest.mark.parametrize("number", [15, 100])
def test_sports_has_the_classes_of_its_folders(tmp_path: Path, number: int) -> None:
    names = [*FIFTEEN, *(f"sport {i:02}" for i in range(number - 15))]
    for name in names:
        for split, count in (("train", 149), ("valid", 5), ("test", 5)):
            touch(tmp_path / split / name, (f"{i:03}.jpg" for i in range(count)))
    data = SportsDataModule(tmp_path)
    assert counts(data) == (149 * number, 5 * number, 5 * number)
    assert len(data.classes) == number
    assert counts(SportsDataModule(tmp_path, classes=FIFTEEN)) == (2235, 75, 75)


def test_chosen_classes_are_the_only_ones_and_unknown_ones_are_refused(cards: Path) -> None:
    data = CardsDataModule(cards, classes=["joker", "ace of clubs"])
    assert counts(data) == (144 + 143, 10, 10)
    assert data.classes == ("ace of clubs", "joker")
    with pytest.raises(ConfigError, match=r"jolly not in .*; expected one of ace of clubs"):
        CardsDataModule(cards, classes=["jolly", "joker"]).setup()
    with pytest.raises(ConfigError, match="True, which is no text: put the name into quotes"):
        CardsDataModule(cards, classes=[True, "joker"]).setup()


def test_incomplete_data_set_is_noted_with_the_expected_counts(cards: Path, tmp_path: Path) -> None:
    for name in CARDS:
        touch(tmp_path / "train" / name, (f"{i:03}.jpg" for i in range(10)))
    data = CardsDataModule(tmp_path)
    assert counts(data) == (53 * 7, 53 * 2, 53)  # 1 of 10 for test, 20 % of 9 for validation
    assert "371 / 106 / 53 images in train / val / test, the whole data set has 7,624 / 265 / 265" in data.notes[-1]
    assert sum("held out" in note for note in data.notes) == 2


@pytest.mark.parametrize(
    ("module", "name", "expected", "classes"),
    [
        (CardsDataModule, "cards", (1_433, 265, 159), 53),
        (SportsDataModule, "sports", (540, 75, 60), 15),
        (RockPaperScissorsDataModule, "rock_paper_scissors", (180, 33, 30), 3),
        (SignMNISTDataModule, "sign_mnist", (6_000, 900, 600), 24),
        (ASLAlphabetDataModule, "asl_alphabet", (522, 116, 87), 29),
    ],
)
def test_real_slice_has_its_counts_and_loads_batches(
    shared: Path, module: type[ImageDataModule], name: str, expected: tuple[int, ...], classes: int
) -> None:
    for root in (shared / "data" / name, shared / "data"):  # the data set's own folder, or the one above it
        data = module(root, batch_size=4)
        assert counts(data) == expected
        assert len(data.classes) == classes
    for split in SPLITS:
        batch = next(iter(data.loader(split)))
        assert batch.images.shape == (4, 3, 224, 224)
        assert batch.images.dtype.is_floating_point is False
        assert np.ptp(batch.images.numpy()) > 50


def test_root_may_be_the_demo_or_where_the_data_set_lies(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = SportsDataModule("demo", classes=["golf", "tennis"])
    assert demo.classes == ("golf", "tennis") and [len(demo.samples[split]) for split in SPLITS] == [60, 10, 10]
    others = "519 images of classes that dataset.classes doesn't name"
    assert demo.notes == [f"not used: 1 other file (sports.csv), {others}"], "the drawn edition is small on purpose"
    with pytest.raises(ConfigError, match="custom"):
        ImageDataModule("demo").setup()
    (tmp_path / "cards").symlink_to(cards)
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path))
    assert CardsDataModule().classes == CardsDataModule(cards).classes
