"""Files that no split uses: each of them is counted with its reason, and what lies in folders is found despite odd links."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.fabricate import composed

from imgclf.data.datamodule import ImageDataModule
from imgclf.data.folders import walk
from imgclf.errors import DataError
from imgclf.training.build import data_of


def touch(root: Path, *names: str) -> Path:
    """Create empty files; reading a layout opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def classes_in(root: Path, *folders: str, count: int = 10) -> Path:
    return touch(root, *(f"{folder}/{number}.png" for folder in folders for number in range(count)))


def read(root: Path, *overrides: str, dataset: str = "folders") -> ImageDataModule:
    data = data_of(composed(f"dataset={dataset}", f"data_dir='{root}'", *overrides))
    data.setup()
    return data


def nothing(root: Path) -> None:
    """Add no file."""


def links(root: Path) -> None:
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "cat" / "self.png").symlink_to("self.png")
    (root / "cat" / "up").symlink_to("..")
    (root / "again").symlink_to(".")


ONE_DEEP = "classes are read one level deep"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (nothing, ""),
    "other formats": (
        lambda root: touch(root, "cat/a.jxl", "dog/B.JXL", "cat/c.pdf", "cat/d.svg"),
        "not used: 2 JPEG XL files (convert it to PNG or JPEG), 1 PDF file (export its pages as images), "
        "1 SVG file (export it as PNG)",
    ),
    "no images": (
        lambda root: touch(root, "README", "cat/notes.txt", "a.csv"),
        "not used: 3 other files (.csv, .txt, without a suffix)",
    ),
    "nested folders": (
        lambda root: touch(root, "cat/old/1.png", "cat/old/2.png", "dog/a/b/3.png"),
        f"not used: 3 images in folders inside a class folder (cat/old, dog/a/b; {ONE_DEEP})",
    ),
    "a class or a split": (
        lambda root: touch(root, "test/1.png", "val/1.png"),
        "not used: 2 images in a folder without class folders (test, val; rename it if it is a class)",
    ),
    "two of one split": (
        lambda root: classes_in(root, "val/cat", "val/dog", "valid/cat", "valid/dog", "validation/cat", count=3),
        "not used: 9 images of a second val split (val/cat, val/dog, validation/cat; valid is taken)",
    ),
    "images in no folder": (
        lambda root: touch(root, "0.png", "1.jpeg"),
        "not used: 2 images beside the class folders (.)",
    ),
    "litter": (
        lambda root: touch(
            root,
            "Thumbs.db",
            "cat/Thumbs.db",
            "cat/.DS_Store",
            "dog/._1.png",
            "desktop.ini",
            "__MACOSX/cat/1.png",
            "@eaDir/1.png",
            "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
            ".git/HEAD",
        ),
        "ignored: 1 .DS_Store, 1 ._*, 2 @eaDir, 2 Thumbs.db, 1 __MACOSX, 1 desktop.ini, 1 hidden",
    ),
    "links": (
        links,
        "not used: 4 links that lead nowhere, or in a circle (again, cat/gone.png, cat/self.png and 1 more)",
    ),
}


@pytest.mark.trust("kinds of files in a data folder that no split uses", "a file that no line counts")
@pytest.mark.parametrize("case", CASES)
def test_unused_files_are_counted_in_one_line_with_their_reasons(tmp_path: Path, case: str) -> None:
    add, line = CASES[case]
    root = classes_in(tmp_path / "data", "cat", "dog", "emu")
    add(root)
    data = read(root)
    assert data.unused.line == line and data.notes.count(line) == bool(line)
    assert data.classes == ("cat", "dog", "emu")
    assert len(data.samples["train"]) == {"two of one split": 27}.get(case, 21)


def test_images_of_other_classes_second_tables_and_images_that_no_list_names_are_counted(tmp_path: Path) -> None:
    root = classes_in(tmp_path, "cat", "dog", "emu")
    line = "not used: 10 images of classes that dataset.classes doesn't name"
    assert read(root, "dataset.classes=[cat,dog]").unused.line == line
    lines = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(10)]
    for name in ("train.csv", "labels.csv"):
        (root / name).write_text("\n".join(lines))
    unlisted = "10 images that no list names (emu)"
    second = "1 file of a second train split (labels.csv; train.csv is taken)"
    assert read(root, dataset="list").unused.line == f"not used: {second}, {unlisted}"


def test_train_split_images_beside_its_class_folders_are_counted(tmp_path: Path) -> None:
    root = touch(
        classes_in(tmp_path, "train/cat", "train/dog"), "train/stray.png", "train/cat/a.jfif", "train/cat/A.JPE"
    )
    touch(root, "0.png", "docs/logo/a.png", "docs/b.png")
    data = read(root)
    beside, elsewhere = "1 image beside the class folders (train)", "2 images in other folders (docs, docs/logo)"
    assert data.unused.line == f"not used: {beside}, {elsewhere}, 1 image right in the data folder (.)"
    assert {Path(item).name for samples in data.samples.values() for item in samples.items} >= {"a.jfif", "A.JPE"}


@pytest.mark.trust("random trees of files read as a data set", "a file that is neither used nor counted")
@pytest.mark.parametrize("seed", range(12))
def test_every_file_is_used_or_counted(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    below = "train/" * (seed % 2)
    root = classes_in(tmp_path / "data", f"{below}cat", f"{below}dog", f"{below}odd", "test/cat")
    folders = [
        ".",
        "valid",
        "val",
        "test",
        f"{below}odd/deep",
        *(f"{below}{name}" for name in ("cat", "cat/deep", "dog/.x", "@eaDir")),
    ]
    names = ["a.png", "b.JPG", "c.txt", "d", "e.jxl", "Thumbs.db", ".DS_Store", "f.jfif", "g.tar.gz", "é ü.png"]
    for _ in range(60):
        touch(root, f"{rng.choice(folders)}/{rng.choice(names)}")
    data = read(root)
    used = {item for samples in data.samples.values() for item in samples.items}
    counted = {str(root / path) for paths in data.unused.files.values() for path in paths}
    everything = {str(path) for path in root.rglob("*") if path.is_file()}
    ignored = {
        path
        for path in everything
        if any(part.startswith(".") or part in ("Thumbs.db", "@eaDir") for part in Path(path).relative_to(root).parts)
    }
    assert not used & counted and not counted & ignored
    assert used | counted | ignored == everything
    assert sum(data.unused.litter.values()) >= (1 if ignored else 0)


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["train", "plane", "car"], ("car", "plane", "train")),
        (["training", "plane", "car", "bus"], ("bus", "car", "plane", "training")),
        (["train", "plane"], ("plane", "train")),
        (["train/train", "train/plane", "val/train", "val/plane"], ("plane", "train")),
        (["train", "plane", "car", "test/train", "test/plane", "test/car"], ("car", "plane", "train")),
    ],
)
def test_a_class_may_be_called_train(tmp_path: Path, folders: list[str], classes: tuple[str, ...]) -> None:
    data = read(classes_in(tmp_path / "vehicles", *folders))
    assert data.classes == classes and data.unused.line == ""
    assert sum(map(len, data.samples.values())) == 10 * len(folders)


def test_nested_classes_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    root = classes_in(tmp_path / "data", "train/birds/crow", "train/birds/kiwi", "train/fish/cod", "train/fish/eel")
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == (
        f"{root}/train/birds, {root}/train/fish: each holds class folders of its own, and classes are read one level deep; "
        f"if they are groups of classes, move the class folders up into {root}/train, if they are data sets, pass one as "
        "data_dir"
    )


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([], ""),
        (["old/1.png", "new/1.png"], " (its images are in new, old below it: classes are read one level deep)"),
        (["1.jxl", "2.jxl"], " (only 2 JPEG XL files (convert it to PNG or JPEG))"),
        (["1.txt"], " (only 1 other file (1.txt))"),
    ],
)
def test_a_class_without_images_is_an_error_that_says_what_is_there(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    root = touch(classes_in(tmp_path, "cat", "dog"), *(f"emu/{name}" for name in names))
    (root / "emu").mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == (
        f"{root}: no images of class 'emu'{hint}; add some, remove the empty folder, or name the classes to use in "
        "dataset.classes"
    )


@pytest.mark.trust("links that lead in circles, in data folders", "a hang, a second copy, or an end of the search")
def test_links_in_circles_and_second_ways_to_a_folder_change_nothing(tmp_path: Path) -> None:
    root = classes_in(tmp_path / "set", "data/train/cat", "data/train/dog")
    for place, target in {
        "self": ".",
        "data/up": "..",
        "data/train/all": "../..",
        "data/train/cat/round": "..",
        "more": "data",
        "data/train/cat/loop.png": "loop.png",
    }.items():
        (root / place).symlink_to(target)
    data = read(root)
    assert data.classes == ("cat", "dog") and sum(map(len, data.samples.values())) == 20
    assert data.unused.line.startswith("not used: 5 links that lead nowhere, or in a circle (")
    paths = [folder.path for folder in walk(root)]
    assert paths == [str(root / name) for name in ("", "data", "data/train", "data/train/cat", "data/train/dog")]


def test_a_split_made_of_links_has_its_images(tmp_path: Path) -> None:
    root = classes_in(tmp_path / "data", "pool/cat", "pool/dog")
    (root / "train").mkdir()
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(f"../pool/{name}")
    data = read(root)
    assert data.classes == ("cat", "dog") and sum(map(len, data.samples.values())) == 20
    assert data.unused.line == ""


def test_a_walk_ends_at_its_limit(tmp_path: Path) -> None:
    root = classes_in(tmp_path, "a", "b", "c")
    assert [Path(folder.path).name for folder in walk(root, 15)] == [root.name, "a", "b"]
