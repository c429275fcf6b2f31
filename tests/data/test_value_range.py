"""12-bit values in 16-bit files: the finding and the note, and `dataset.range=auto` from training to prediction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.checks import check, paths
from support.fabricate import composed
from support.image_files import SIZE_TAGS, assert_close, encoded, grey3, png, tiff

import imgclf
from imgclf.data.datamodule import ImageDataModule
from imgclf.data.samples import Samples
from imgclf.data.value_range import describe_range
from imgclf.errors import ConfigError
from imgclf.images import as_pixels, decode, fit, peak
from imgclf.preprocess import Preprocess
from imgclf.quality.scan import exact_groups, near_groups, scan
from imgclf.training.build import data_of

Run = Callable[..., Path]
# Mean grey of each class, of 4,095.
LEVELS = {"bright": 2600, "dark": 700, "middle": 1300}


def cells(level: int, seed: int, side: int = 24) -> np.ndarray:
    """Return 12-bit numbers around a level in blocks: uint16 [side, side]."""
    blocks = np.random.default_rng(seed).integers(-600, 601, (side // 4, side // 4))
    return (level + np.kron(blocks, np.ones((4, 4)))).astype(np.uint16)


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 12-bit images in 16-bit PNG and TIFF files; one training image has the value 4,000, one of test 9,000."""
    root = tmp_path_factory.mktemp("microscope")
    for split, count in (("train", 12), ("valid", 4), ("test", 4)):
        for position, (name, level) in enumerate(LEVELS.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                values = cells(level, 100 * position + number + 1000 * ord(split[1]))
                if name == "bright" and number == 2 and split != "valid":
                    values[3, 5] = 4000 if split == "train" else 9000
                suffix = ("png", "tif")[number % 2]
                Image.fromarray(values).save(root / split / name / f"{number:02}.{suffix}")
    return root


def words(root: Path, *overrides: str) -> tuple[str, ...]:
    return ("dataset=folders", f"data_dir='{root}'", *overrides)


def measured(root: Path, *overrides: str) -> ImageDataModule:
    data: ImageDataModule = data_of(composed(*words(root, "dataset.range=auto", *overrides)))
    return data


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("bits", [1, 10, 12, 15, 16])
def test_bits_make_their_largest_number_white(kind: str, bits: int) -> None:
    values = np.arange(0, 65536, 97, dtype=np.uint16)[:660].reshape(22, 30)
    expected = grey3(np.rint(np.minimum(values / (2**bits - 1) * 255, 255)).astype(np.uint8))
    data = encoded(Image.fromarray(values), kind)
    assert_close(decode(data, bits=bits), expected, 0)
    assert_close(as_pixels(Image.fromarray(values), bits), expected, 0)
    assert peak(data) == values.max()


def test_bits_change_no_other_images() -> None:
    values = np.arange(864, dtype=np.uint16).reshape(24, 36) * 4
    stated = tiff({**SIZE_TAGS, 258: (3, [16]), 262: (3, [1])}, values.astype("<u2").tobytes())
    packed = np.repeat(values.reshape(-1, 2), 1, axis=0)
    twelve = np.stack([packed[:, 0] >> 4, (packed[:, 0] & 15) << 4 | packed[:, 1] >> 8, packed[:, 1] & 255], axis=1)
    tagged = tiff({**SIZE_TAGS, 258: (3, [12]), 262: (3, [1])}, twelve.astype(np.uint8).tobytes())
    assert peak(stated) == values.max() and peak(tagged) is None, "a TIFF that says 12 bits is read by them"
    assert (decode(tagged, bits=10) == decode(tagged)).all()
    assert_close(decode(tagged), decode(stated, bits=12), 0)
    grey8 = (values >> 4).astype(np.uint8)
    small = encoded(Image.fromarray(grey8.astype(np.int32)), "TIFF")
    for data in (encoded(Image.fromarray(grey8), "PNG"), encoded(Image.fromarray(values.astype(np.float32)), "TIFF")):
        assert peak(data) is None and (decode(data, bits=10) == decode(data)).all()
    assert peak(small) is None
    large = encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    assert peak(large) == values.max()
    assert_close(decode(large, bits=12), decode(stated, bits=12), 0)
    transparent = png(36, 24, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    assert_close(decode(transparent, bits=12), decode(stated, bits=12), 0)


@pytest.mark.parametrize("bits", [0, 17, 12.0, "12"])
def test_preprocessing_refuses_other_numbers_of_bits(bits: object) -> None:
    with pytest.raises(ConfigError, match=f"^bits={bits!r}: expected a whole number( of at least 1 and at most 16)?$"):
        Preprocess(bits=bits)  # type: ignore[arg-type]


def test_the_bits_are_those_of_all_training_images_and_of_no_others(microscope: Path) -> None:
    data = measured(microscope)
    assert data.preprocess.bits == 12 and "4,095 is white in 16-bit grey (12 bits are used)" in data.notes[-1]
    without = measured(microscope, "+dataset.exclude=[train:train/bright/02.png]", "dataset.classes=[dark,middle]")
    assert without.preprocess.bits == 11
    assert data_of(composed(*words(microscope))).preprocess.bits == 16
    pixels = data.image("test", 2)
    assert pixels.max() == 255 and pixels.mean() > 100


def test_images_without_16_bit_grey_keep_all_bits(colours: Path) -> None:
    data = measured(colours)
    assert data.preprocess.bits == 16 and data.preprocess == data_of(composed(*words(colours))).preprocess


@pytest.mark.trust(
    "12-bit images in 16-bit files trained on with dataset.range=auto", "val, test or predict scaled otherwise"
)
def test_all_splits_and_predictions_of_a_resumed_run_are_scaled_alike(
    microscope: Path, run_tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_tiny(f"data_dir='{microscope}'", "dataset.range=auto", "trainer.max_epochs=1")
    printed = capsys.readouterr().out
    assert "note: dataset.range=auto: 4,095 is white in 16-bit grey (12 bits are used)" in printed
    assert "of its range" not in printed
    run_tiny(f"resume='{folder}'", "trainer.max_epochs=2", folder=folder)
    run = imgclf.open_run(folder)
    classifier = imgclf.load(folder)
    assert classifier.model.preprocess.bits == 12
    for split in ("train", "val", "test"):
        loader = run.data.loader(split)
        for batch in loader:
            for image, index in zip(batch.images, batch.indices, strict=True):
                with Image.open(loader.samples.items[index]) as file:
                    values = np.minimum(np.asarray(file) / 4095 * 255, 255)
                expected = fit(grey3(np.rint(values).astype(np.uint8)), classifier.model.preprocess)
                assert (image.permute(1, 2, 0).numpy() == expected).all()
    items = list(run.data.samples["test"].items)
    files = classifier.predict_proba(items)
    memory = classifier.predict_proba([Image.open(item) for item in items])
    np.testing.assert_allclose(files, memory, atol=1e-6)
    correct = files.argmax(axis=1) == run.data.samples["test"].targets
    assert float(correct.mean()) == pytest.approx(run.metrics["test"]["accuracy"])


def test_caches_hold_no_pixels_of_another_range(microscope: Path) -> None:
    def mean(bits: int) -> float:
        data = data_of(composed(*words(microscope)))
        data.connect(Preprocess(size=16, bits=bits))
        loader = data.loader("train")
        assert loader.options.num_workers == 0
        return float(np.mean([np.mean(batch.images.numpy()) for batch in loader]))

    assert mean(12) == mean(12) > 10 * mean(16)


def test_training_notes_values_that_use_little_of_their_range(
    microscope: Path, run_tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tiny(f"data_dir='{microscope}'", "trainer.max_epochs=1")
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: 16-bit grey uses 6% of its range: the largest value is 4,000 of 65,535" in printed
    assert "dataset.range=auto makes 4,095 white (16 training images were looked at)" in printed


def test_check_finds_values_that_use_little_of_their_range(
    microscope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = check(microscope, tmp_path / "full")
    (finding,) = report["findings"]  # and no duplicates, as which dark images may appear
    assert report["near"] == [] and finding["kind"] == "range"
    assert code == 1 and paths(report, "range") == [["train/bright/02.png"]] and finding["excluded"] == 0
    message = finding["groups"][0]["message"]
    assert message == f"{describe_range(4000)} (36 training images)" and "uses 6% of its range" in message
    assert (
        message in capsys.readouterr().out.replace("\n", "")
        and message in (tmp_path / "full" / "check.html").read_text()
    )
    code, report = check(microscope, tmp_path / "auto", "dataset.range=auto")
    assert code == 0 and report["findings"] == []
    code, report = check(microscope, tmp_path / "quick", "quick=true")
    assert code == 0 and [note["kind"] for note in report["notes"]] == ["range"]


@pytest.mark.trust("different 16-bit images that 8 bits don't tell apart, checked", "duplicates that are none")
def test_different_dark_images_are_no_duplicates(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 120, (24, 24)).astype(np.uint16)
    items = []
    for number, image in enumerate((values, values[::-1], values)):
        items.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(items[-1])
    assert decode(items[0]).max() == decode(items[1]).max() == 0
    scanned = scan([Samples(tuple(items), np.zeros(3, np.int64), ("a", "b"))], workers=0)
    assert [group.tolist() for group in exact_groups(scanned.digests, scanned.readable)] == [[0, 2]]
    assert [group.tolist() for group in near_groups(scanned.thumbnails, scanned.readable)] == [[0, 2]]


@pytest.mark.parametrize(("most", "little"), [(0, True), (255, True), (16383, True), (16384, False), (65535, False)])
def test_a_quarter_of_the_range_is_enough(most: int, little: bool) -> None:
    assert (describe_range(most) is not None) == little
