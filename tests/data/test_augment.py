"""Augmentation: its determinism, geometry and errors."""

import numpy as np
import pytest

from imgclf.data.augment import Augment
from imgclf.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
EVERYTHING = Augment(15, 0.1, 10, 0.2, True, True, 0.3, 0.3, 0.3)


def test_augmentation_depends_on_seed_epoch_and_index_only() -> None:
    first = EVERYTHING(PIXELS, seed=1, epoch=2, index=3)
    assert np.array_equal(first, EVERYTHING(PIXELS, seed=1, epoch=2, index=3))
    for other in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert not np.array_equal(first, EVERYTHING(PIXELS, *other))
    assert first.shape == PIXELS.shape
    assert first.dtype == np.uint8


def test_default_augmentation_changes_nothing_and_grey_images_keep_their_shape() -> None:
    assert np.array_equal(Augment()(PIXELS, 0, 0, 0), PIXELS)
    grey = PIXELS[:, :, :1]
    assert EVERYTHING(grey, 0, 0, 0).shape == (32, 32, 1)


def test_flips_are_exact_and_happen_half_of_the_time() -> None:
    flipped = [Augment(horizontal_flip=True)(PIXELS, 0, 0, index) for index in range(200)]
    mirrored = sum(np.array_equal(image, PIXELS[:, ::-1]) for image in flipped)
    assert mirrored + sum(np.array_equal(image, PIXELS) for image in flipped) == 200
    assert 70 < mirrored < 130
    upside_down = [Augment(vertical_flip=True)(PIXELS, 0, 0, index) for index in range(20)]
    assert any(np.array_equal(image, PIXELS[::-1]) for image in upside_down)


def test_shift_moves_a_point_by_at_most_its_fraction() -> None:
    point = np.zeros((41, 41, 1), dtype=np.uint8)
    point[20, 20] = 255
    offsets = []
    for index in range(200):
        moved = Augment(shift=0.2, fill="black")(point, 0, 0, index)[:, :, 0].astype(float)
        rows, columns = np.indices(moved.shape)
        offsets.append([(moved * axis).sum() / moved.sum() - 20 for axis in (rows, columns)])
    reach = np.abs(offsets).max(axis=0)
    assert ((reach > 7) & (reach < 8.5)).all()  # 0.2 * 41 = 8.2
    assert np.abs(np.mean(offsets, axis=0)).max() < 1


def test_rotation_turns_about_the_centre_by_at_most_its_angle() -> None:
    line = np.zeros((101, 101, 1), dtype=np.uint8)
    line[50, 50:, 0] = 255
    angles = []
    for index in range(200):
        turned = Augment(rotation_degrees=30, fill="black")(line, 0, 0, index)[:, :, 0].astype(float)
        rows, columns = np.indices(turned.shape) - 50
        angles.append(np.degrees(np.arctan2((turned * rows).sum(), (turned * columns).sum())))
    assert 28 < np.abs(angles).max() <= 30.5
    assert abs(np.mean(angles)) < 4


def test_zoom_scales_by_at_most_its_factor() -> None:
    square = np.zeros((101, 101, 1), dtype=np.uint8)
    square[30:71, 30:71] = 255
    areas = [(Augment(zoom=0.2)(square, 0, 0, index) > 127).sum() / 41**2 for index in range(200)]
    assert 0.69 < min(areas) < 0.8  # input coordinates times 1.2: 1 / 1.44
    assert 1.35 < max(areas) < 1.57


def test_brightness_changes_the_mean_by_at_most_its_fraction() -> None:
    means = [Augment(brightness=0.5)(np.full((8, 8, 3), 100, np.uint8), 0, 0, index).mean() for index in range(200)]
    assert 50 <= min(means) < 60
    assert 140 < max(means) <= 150
    grey = Augment(saturation=1.0)(PIXELS, 0, 0, 1)
    assert grey.min() >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotate": 10}, "augment.rotate: unknown key"),
        ({"zoom": 1.5}, r"dataset\.augment\.zoom=1\.5"),
        ({"shift": -1}, r"dataset\.augment\.shift=-1"),
        ({"fill": "pink"}, "expected one of nearest, reflect, black"),
    ],
)
def test_unknown_or_impossible_setting_raises_config_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment.from_dict(values)
