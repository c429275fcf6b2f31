"""Figures of a data set: a batch as the network sees it, and a row of samples for each class."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.fabricate import COLOURS

import imgclf
from imgclf.config import AugmentConfig
from imgclf.data.datamodule import ImageDataModule
from imgclf.figures.grid import class_rows_figure
from imgclf.preprocess import Preprocess


def test_show_batch_shows_the_first_augmented_images_of_the_epoch_with_their_classes(colours: Path) -> None:
    settings = {"preprocess": Preprocess(size=16), "batch_size": 8, "seed": 2}
    data = ImageDataModule(colours, augment=AugmentConfig(rotation_degrees=90, brightness=0.5), **settings)
    figure = imgclf.show_batch(data, n=5)
    loader = data.train_dataloader()
    loader.set_epoch(0)
    batch = next(iter(loader))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(shown, batch.images[:5].permute(0, 2, 3, 1).numpy())
    assert [text.get_text() for text in figure.texts] == [data.classes[target] for target in batch.targets[:5].tolist()]
    plain = imgclf.show_batch(ImageDataModule(colours, **settings), n=5)
    assert not np.array_equal(shown[0], plain.axes[0].images[0].get_array()), "the augmentation is shown"


def test_show_classes_has_a_row_of_unchanged_images_for_each_class(colours: Path) -> None:
    data = ImageDataModule(colours, augment=AugmentConfig(rotation_degrees=90), preprocess=Preprocess(size=16))
    figure = data.show_classes(4)
    assert [text.get_text() for text in figure.texts] == list(COLOURS)
    assert len(figure.axes) == 12
    samples = data.samples["train"]
    for row, name in enumerate(COLOURS):
        files = [item for item in samples.items if f"/{name}/" in item]
        images = data.loader("train").images(
            0, np.array([samples.items.index(files[0]), samples.items.index(files[-1])])
        )
        np.testing.assert_array_equal(figure.axes[4 * row].images[0].get_array(), images[0])
        np.testing.assert_array_equal(figure.axes[4 * row + 3].images[0].get_array(), images[1])


def test_class_with_few_images_shows_each_once(colours: Path) -> None:
    data = ImageDataModule(colours, preprocess=Preprocess(size=16))
    assert len(imgclf.show_classes(data, 100).axes) == 36


@pytest.mark.parametrize("function", [imgclf.show_batch, imgclf.show_classes])
def test_no_image_to_show_is_a_config_error(colours: Path, function: object) -> None:
    with pytest.raises(imgclf.ConfigError, match="n=0: expected"):
        function(ImageDataModule(colours), 0)  # type: ignore[operator]


@pytest.mark.parametrize("num_classes", [3, 53, pytest.param(100, marks=pytest.mark.exhaustive)])
def test_rows_of_classes_lie_inside_the_figure_and_apart(num_classes: int) -> None:
    image = np.zeros((8, 8, 1), np.uint8)
    names = [f"{'wheelchair basketball' if k % 7 == 0 else 'x'} {k}" for k in range(num_classes)]
    figure = class_rows_figure([(name, [image] * 6) for name in names])
    width, height = figure.get_size_inches()
    assert width < 20 and height < 26
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    for box, axes in zip(boxes, figure.axes[::6], strict=True):
        assert box.x1 <= axes.bbox.x0 and axes.bbox.y0 < (box.y0 + box.y1) / 2 < axes.bbox.y1
    edges = [axes.bbox for axes in figure.axes]
    assert all(edge.x0 >= 0 and edge.x1 <= figure.bbox.x1 and edge.y0 >= 0 for edge in edges)
    assert not any(box.overlaps(edge) for box in boxes for edge in edges)


def test_unreadable_image_is_replaced_in_the_rows_of_classes_and_named_by_show_batch(
    colours: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(colours, tmp_path / "data")
    bad = sorted((copy / "train" / "red").iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:200])
    data = ImageDataModule(copy, preprocess=Preprocess(size=16))
    assert len(data.show_classes(4).axes) == 12
    with pytest.raises(imgclf.ImageError, match=rf"{bad.name}: .*; `imgclf check` lists all such files") as raised:
        imgclf.show_batch(data, 100)
    assert "\n" not in str(raised.value)
    for path in (copy / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(imgclf.DataError, match="no image that was tried can be read; `imgclf check`"):
        data.show_classes(4)


@pytest.mark.exhaustive
def test_show_classes_needs_no_name_of_imgclf_but_the_data_module(colours: Path) -> None:
    code = (
        "import sys; from imgclf import ImageDataModule; "
        f"ImageDataModule({str(colours)!r}).show_classes(1); sys.exit('imgclf.inference' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
