"""Colours, orientation and fitting: every mode becomes the expected RGB, and the square equals timm's and Pillow's."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import HEIGHT, SCENE, WIDTH, assert_close, encoded, exif, modes

from imgclf.images import as_pixels, decode, fit, read_image
from imgclf.images.pixels import BACKGROUND
from imgclf.preprocess import Preprocess


@pytest.mark.parametrize("mode", modes())
def test_every_mode_becomes_the_expected_rgb(mode: str) -> None:
    data, expected = modes()[mode]
    most = {"YCbCr tiff": 3, "RGBA webp": 2}.get(mode, 1)
    assert_close(decode(data), expected, most)
    if "white" not in mode:
        assert_close(as_pixels(Image.open(io.BytesIO(data))), expected, most)


def test_small_gif_frame_is_surrounded_by_the_background() -> None:
    data = bytearray(encoded(Image.fromarray(SCENE).quantize(16), "GIF"))
    data[6:10] = struct.pack("<HH", WIDTH + 5, HEIGHT + 3)
    pixels = decode(bytes(data))
    assert (pixels[HEIGHT:] == BACKGROUND).all() and (pixels[:, WIDTH:] == BACKGROUND).all()
    assert_close(np.ascontiguousarray(pixels[:HEIGHT, :WIDTH]), SCENE, 2)


def test_each_orientation_moves_the_first_pixel_to_its_corner() -> None:
    corner = np.zeros((4, 6, 3), np.uint8)
    corner[0, 0] = 255  # EXIF: where the first pixel of the file belongs in the upright image
    places = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (5, 3), 8: (5, 0)}
    for orientation, place in places.items():
        pixels = decode(encoded(Image.fromarray(corner), "PNG", exif=exif(orientation)))
        assert tuple(np.argwhere(pixels.any(2))[0]) == place


@pytest.mark.parametrize(
    "damaged", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_leaves_the_pixels_unchanged(damaged: bytes) -> None:
    assert_close(decode(encoded(Image.fromarray(SCENE), "PNG", exif=damaged)), SCENE, 0)


@pytest.mark.parametrize("shape", [(300, 300), (50, 80), (91, 60), (256, 256), (400, 257), (40, 1000)])
@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (64, 0.9), (40, 1.0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_equals_timms_evaluation_transform(
    shape: tuple[int, int], size: int, crop_pct: float, interpolation: str
) -> None:
    from timm.data import create_transform

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    transform = create_transform(
        (3, size, size), is_training=False, crop_pct=crop_pct, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    expected = (transform(Image.fromarray(pixels)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    preprocess = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation, resize="crop")
    assert_close(fit(pixels, preprocess), np.ascontiguousarray(expected), 1)


def test_squash_and_letterbox_equal_pillows_resize() -> None:
    squash = Preprocess(size=20)
    expected = np.asarray(Image.fromarray(SCENE).resize((20, 20), Image.Resampling.BICUBIC))
    assert_close(fit(SCENE, squash), expected, 0)
    letterbox = Preprocess(size=18, resize="letterbox", mean=(0.1, 0.5, 0.9))
    pixels = fit(SCENE, letterbox)  # 24 x 36 -> 12 x 18, three rows above and below
    inner = np.asarray(Image.fromarray(SCENE).resize((18, 12), Image.Resampling.BICUBIC))
    assert_close(np.ascontiguousarray(pixels[3:15]), inner, 0)
    assert (np.delete(pixels, range(3, 15), axis=0) == [26, 128, 230]).all()  # round(mean * 255), halves to even


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("shape", [(24, 36, 3), (24, 36, 1), (24, 36), (1, 9000, 3), (9000, 1, 3), (1, 1, 3), (20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_returns_the_same_shape_for_every_image(resize: str, shape: tuple[int, ...], channels: int) -> None:
    preprocess = Preprocess(size=20, resize=resize).with_channels(channels)
    pixels = np.full(shape, 77, np.uint8)
    fitted = fit(pixels, preprocess)
    assert fitted.shape == (20, 20, channels) and fitted.dtype == np.uint8
    if resize != "letterbox" or shape[0] == shape[1]:
        assert (fitted == 77).all()


def test_fit_returns_fitting_pixels_without_a_copy_and_converts_to_grey(tmp_path: Path) -> None:
    preprocess = Preprocess(size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.shares_memory(fit(pixels, preprocess), pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    np.testing.assert_array_equal(fit(pixels, preprocess.with_channels(1)), grey)
    (tmp_path / "image.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", preprocess), pixels)
