"""Inputs of a prediction: what is one image and what are several, and how they are named and sampled."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgclf.errors import ImageError
from imgclf.inference.inputs import RemoteImage, each_input, is_single, list_inputs, sample_inputs

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "single"),
    [
        ("one.png", True),
        (Path("one.png"), True),
        ("https://example.org/", True),
        (b"bytes of a file", True),
        (PIXELS, True),
        (PIXELS[:, :, 0], True),
        (torch.zeros(3, 4, 4), True),
        (Image.fromarray(PIXELS), True),
        (PIXELS[None], False),
        (torch.zeros(1, 3, 4, 4), False),
        (["one.png"], False),
        ((path for path in ("one.png",)), False),
        (Path(__file__).parent, False),
    ],
)
def test_is_single_tells_one_image_from_several(images: object, single: bool) -> None:
    assert is_single(images) is single


def test_images_in_memory_are_numbered_and_paths_keep_their_names() -> None:
    assert [image.name for image in each_input(PIXELS)] == ["image 0"]
    names = [image.name for image in each_input([PIXELS, "a.png", PIXELS])]
    assert names == ["image 0", "a.png", "image 2"]
    (remote,) = each_input("http://example.org/a.png")
    assert isinstance(remote.source, RemoteImage) and remote.name == "http://example.org/a.png"


def test_folder_yields_the_images_in_it_and_below_it_with_their_true_classes(colours: Path) -> None:
    images = list_inputs([str(colours)], classes=["red", "green"])
    assert len(images) == 63
    for image in images:
        folder = Path(image.name).parent.name
        assert image.true_class == (folder if folder in ("red", "green") else None)


def test_folder_without_images_yields_an_image_error_with_its_name(tmp_path: Path) -> None:
    (image,) = list_inputs([str(tmp_path)])
    assert isinstance(image.source, ImageError) and str(image.source).startswith(
        f"{tmp_path}: no images in this folder"
    )


@pytest.mark.trust(
    "folders with links in circles, litter and locked or odd files, listed for predict", "a hang, or a lost image"
)
def test_folder_with_links_in_circles_and_odd_files_lists_each_image_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("2.png", "10.jfif", "b/1.JPG", "a/1.heic", "b/c/x.jxl", "b/movie.mp4", "b/list.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name in (".thumbs/1.png", "@eaDir/2.png/SMALL.jpg", "__MACOSX/._2.png", "b/.3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.png").touch()
    links = {
        "a/up": "..",
        "b/c/self": ".",
        "b/again": "c",
        "z": "../outside",
        "loop.png": "loop.png",
        "gone.png": "nowhere",
    }
    for place, target in links.items():
        (root / place).symlink_to(target)
    names = [str(Path(image.name).relative_to(root)) for image in list_inputs([str(root)])]
    top = ["2.png", "10.jfif", "gone.png", "loop.png"]
    assert names == [*top, "a/1.heic", "b/1.JPG", "b/c/x.jxl", "z/far.png"]


def test_a_folder_that_cannot_be_opened_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "locked/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    first, second = list_inputs([str(tmp_path)])
    assert first.name == str(tmp_path / "a" / "1.png")
    assert (
        str(second.source) == f"{tmp_path / 'locked'}: the folder can't be opened (Permission denied); make it readable"
    )


def test_sample_keeps_the_order_and_has_all_images_if_there_are_fewer(colours: Path) -> None:
    images = list_inputs([str(colours)])
    assert sample_inputs(images, 1000, 0) == images
    sample = sample_inputs(images, 6, 0)
    assert len(sample) == 6 and sample == sorted(sample, key=images.index)
