"""Layouts: folder names, depth, several data sets in one folder, and errors."""

from pathlib import Path

import numpy as np
import pytest
from support.fabricate import COLOURS, composed, draw_image, draw_tree

from imgclf.data.datamodule import ImageDataModule
from imgclf.data.datasets import CardsDataModule
from imgclf.errors import ConfigError, DataError
from imgclf.training.build import data_of


def counts(data: ImageDataModule) -> list[int]:
    data.setup()
    return [len(samples) for samples in data.samples.values()]


@pytest.mark.parametrize("name", ["valid", "val", "validation", "Validation"])
def test_validation_folder_is_recognised_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    draw_tree(tmp_path, {"Train": 3, name: 2, "TEST": 1})
    assert counts(ImageDataModule(tmp_path)) == [9, 6, 3]


@pytest.mark.parametrize("depth", ["", "a", "a/b", "a/b/c"])
def test_splits_are_searched_three_levels_deep(tmp_path: Path, depth: str) -> None:
    draw_tree(tmp_path / depth, {"train": 2, "val": 1, "test": 1})
    assert counts(ImageDataModule(tmp_path)) == [6, 3, 3]
    draw_tree(tmp_path / "deep/a/b/c", {"train": 2})
    with pytest.raises(DataError, match="nothing like it down to 3 levels"):
        ImageDataModule(
            tmp_path / "deep/../deep/..", splits={"train": {"kind": "folders", "names": ["elsewhere"]}}
        ).setup()


def test_path_with_spaces_brackets_and_equals_sign_is_read(tmp_path: Path) -> None:
    root = draw_tree(tmp_path / "my [new] images, a=b", {"train": 2, "val": 1, "test": 1})
    assert counts(ImageDataModule(root)) == [6, 3, 3]
    settings = composed("dataset=folders", f"data_dir='{root}'")
    assert counts(data_of(settings)) == [6, 3, 3]


def test_folder_named_like_the_data_set_is_chosen_among_several(tmp_path: Path) -> None:
    for name in ("Cards-Image-Dataset_Classification", "sports"):
        draw_tree(tmp_path / name, {"train": 2, "val": 1, "test": 1})
    data = CardsDataModule(tmp_path)
    data.setup()
    assert "Cards-Image" in data.samples["train"].items[0]
    with pytest.raises(DataError, match=r"several data sets that fit: .*Cards-Image.*, .*sports; pass one of them"):
        ImageDataModule(tmp_path).setup()


def test_nested_copy_of_a_data_set_is_ignored(tmp_path: Path) -> None:
    draw_tree(tmp_path / "set", {"train": 2, "val": 1, "test": 1})
    draw_tree(tmp_path / "set" / "set", {"train": 2, "val": 1, "test": 1})
    assert counts(ImageDataModule(tmp_path)) == [6, 3, 3]


def test_class_folders_without_splits_are_held_out(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"images": 10})
    for root in (tmp_path, tmp_path / "images"):
        data = ImageDataModule(root)
        assert counts(data) == [21, 6, 3]
        assert data.classes == tuple(COLOURS)
    assert counts(ImageDataModule(tmp_path, test_fraction=0.0, val_fraction=0.5)) == [15, 15, 0]


def test_test_folder_beside_class_folders_is_not_a_class(tmp_path: Path) -> None:
    draw_tree(tmp_path, {".": 10})
    draw_image(tmp_path / "test" / "0.png", (1, 2, 3), 0)
    data = ImageDataModule(tmp_path)
    data.setup()
    assert data.classes == tuple(COLOURS)


def test_stray_image_adds_no_class(tmp_path: Path) -> None:
    draw_tree(tmp_path / "set", {"train": 2, "val": 1, "test": 1})
    draw_image(tmp_path / "odd" / "stray.png", (1, 2, 3), 0)
    (tmp_path / "docs").mkdir()
    assert counts(ImageDataModule(tmp_path)) == [6, 3, 3]


def test_test_folder_of_a_neighbouring_data_set_is_not_used(tmp_path: Path) -> None:
    draw_tree(tmp_path / "cards", {"train": 10})
    draw_tree(tmp_path / "sports", {"train": 10, "test": 5})
    data = CardsDataModule(tmp_path)
    assert counts(data) == [21, 6, 3]


def test_unknown_and_empty_classes_raise_data_error_and_missing_ones_are_noted(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"train": 3, "val": 1, "test": 1})
    (tmp_path / "test" / "green" / "000.png").unlink()
    data = ImageDataModule(tmp_path)
    assert counts(data) == [9, 3, 2]
    assert data.notes == [f"test has no images of green ({tmp_path / 'test'})"]
    draw_image(tmp_path / "val" / "violet" / "0.png", (1, 2, 3), 0)
    with pytest.raises(DataError, match=r"val: val has class 'violet', which train doesn't have"):
        ImageDataModule(tmp_path).setup()
    assert counts(ImageDataModule(tmp_path, classes=["red", "blue"])) == [6, 2, 2]
    (tmp_path / "train" / "yellow").mkdir()
    with pytest.raises(DataError, match=r"train: no images of class 'yellow'"):
        ImageDataModule(tmp_path).setup()


def test_data_with_one_class_raises_data_error(tmp_path: Path) -> None:
    draw_image(tmp_path / "train" / "red" / "0.png", (200, 0, 0), 0)
    with pytest.raises(DataError, match=r"1 class\(es\) \(red\)"):
        ImageDataModule(tmp_path).setup()


def test_flat_layout_takes_the_class_from_the_file_name(tmp_path: Path) -> None:
    for name, colour in COLOURS.items():
        for number in range(10):
            draw_image(tmp_path / f"{name}_{number}.png", colour, number)
    assert counts(data_of(composed("dataset=flat", f"data_dir='{tmp_path}'"))) == [21, 6, 3]
    wrong = composed("dataset=flat", f"data_dir='{tmp_path}'", r"dataset.splits.train.pattern='(?P<label>[a-z]+)-'")
    with pytest.raises(DataError, match=r"blue_0\.png: the name doesn't fit the pattern .* \(30 of 30 files don't\)"):
        data_of(wrong)
    for pattern, message in (("[", "no regular expression"), ("[a-z]+", r"needs a group \(\?P<label>")):
        with pytest.raises(ConfigError, match=message):
            ImageDataModule(tmp_path, splits={"train": {"kind": "flat", "names": ["."], "pattern": pattern}}).setup()


@pytest.mark.parametrize("numbering", [" ({})", "({})", "_{}", "-{:03}", " {}", "{}", "_{} (2)", "-1 ({})"])
def test_flat_layout_takes_any_numbering_off_the_class(tmp_path: Path, numbering: str) -> None:
    for name in ("cat", "dog", "big cat"):
        for number in range(1, 11):
            (tmp_path / f"{name}{numbering.format(number)}.jpg").touch()
    data = data_of(composed("dataset=flat", f"data_dir='{tmp_path}'"))
    assert data.classes == ("big cat", "cat", "dog") and sum(counts(data)) == 30


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (5, 3)])
def test_pixel_csv_layout_sorts_numeric_labels_and_reads_the_pixels(tmp_path: Path, side: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, side * side * channels))
    rows = "\n".join(f"{number % 12},{','.join(map(str, row))}" for number, row in enumerate(pixels))
    (tmp_path / "data.csv").write_text(rows)
    data = data_of(composed("dataset=pixel_csv", f"data_dir='{tmp_path}'"))
    assert sum(counts(data)) == 40
    assert data.classes == tuple(str(number) for number in range(12))  # 10 comes after 9, not after 1
    train = data.samples["train"]
    row = int(train.items[0].rpartition(":")[2]) - 1
    assert train.pixels is not None
    assert np.array_equal(train.pixels[0], pixels[row].reshape(side, side, channels))


def test_list_layout_reads_path_and_label_and_names_the_line_of_an_error(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"images": 10})
    lines = [f"images/{name}/{number:03}.png,{name}" for name in COLOURS for number in range(10)]
    (tmp_path / "labels.csv").write_text(
        "\n".join(["label,path", *(",".join(line.split(",")[::-1]) for line in lines)])
    )
    assert counts(data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))) == [21, 6, 3]
    (tmp_path / "labels.csv").write_text("\n".join(lines))  # without a header
    assert counts(data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))) == [21, 6, 3]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "images/none.png,red"]))
    with pytest.raises(DataError, match=r"labels\.csv, line 31: there is no file .*none\.png"):
        data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "images"]))
    with pytest.raises(DataError, match=r"labels\.csv, line 31: 'images'; expected path,label"):
        data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Path,Label", "{path},{label}"),
        ("LABEL,PATH", "{label},{path}"),
        ("id,Label, path ", "7,{label}, {path} "),
        ("Path,path,label", "-,{path},{label}"),
    ],
)
def test_list_layout_finds_its_columns_whatever_their_case(tmp_path: Path, header: str, row: str, mark: str) -> None:
    draw_tree(tmp_path, {"images": 10})
    files = [(f"images/{label}/{number:03}.png", label) for label in COLOURS for number in range(10)]
    lines = [header, *(row.format(path=path, label=label) for path, label in files)]
    (tmp_path / "labels.csv").write_text(mark + "\n".join(lines), encoding="utf-8")
    data = data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))
    assert counts(data) == [21, 6, 3] and data.classes == tuple(COLOURS)


@pytest.mark.parametrize("header", ["file,class", "path,class", "filename", "path;label", f"{'x' * 5000},label"])
def test_list_without_its_columns_is_refused_by_what_its_first_line_lacks(tmp_path: Path, header: str) -> None:
    draw_tree(tmp_path, {"images": 1})
    (tmp_path / "labels.csv").write_text(f"{header}\nimages/red/000.png,red\n")
    with pytest.raises(DataError) as caught:
        data_of(composed("dataset=list", f"data_dir='{tmp_path}'"))
    assert str(caught.value) == (
        f"{tmp_path / 'labels.csv'}, line 1: {header[:60]!r} names no file and has no columns path,label; correct the row, "
        "or name the columns by dataset.splits.train.path_column and label_column"
    )


def test_missing_folder_raises_data_error_with_the_ways_to_get_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        CardsDataModule(tmp_path / "nowhere").setup()
    message = str(raised.value)
    for part in ("train", str(tmp_path / "nowhere"), "doesn't exist"):
        assert part in message
    for advice in ("gpiosenka/cards-image-datasetclassification", "imgclf download dataset=cards", "demo"):
        assert advice in message
    assert "\n" not in message


def test_unknown_kind_or_option_of_a_layout_raises_config_error(tmp_path: Path) -> None:
    draw_tree(tmp_path, {"train": 1})
    with pytest.raises(ConfigError, match=r"kind='zip': expected one of folders, flat, pixels, list"):
        ImageDataModule(tmp_path, splits={"train": {"kind": "zip"}}).setup()
    with pytest.raises(
        ConfigError, match=r"splits\.train\.nomes: unknown key; did you mean dataset\.splits\.train\.names"
    ):
        ImageDataModule(tmp_path, splits={"train": {"kind": "folders", "nomes": ["train"]}}).setup()


def test_data_is_searched_in_imgclf_data_and_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_tree(tmp_path / "mine" / "folders", {"train": 3, "val": 1, "test": 1})
    monkeypatch.setenv("IMGCLF_DATA", str(tmp_path / "mine"))
    assert counts(data_of(composed("dataset=folders"))) == [9, 3, 3]
    monkeypatch.delenv("IMGCLF_DATA")
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    draw_tree(tmp_path / "cache" / "data" / "folders", {"train": 4, "val": 1, "test": 1})
    assert counts(data_of(composed("dataset=folders"))) == [12, 3, 3]
