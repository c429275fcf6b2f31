"""JPEGs too large to decode whole: libjpeg scales them while it decodes, by a rule that depends on the file alone."""

import io
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.decode_memory import measured
from support.image_files import SCENE, assert_close, assert_refused, encoded, exif, scene

from imgclf.images import decode, describe, fit, formats
from imgclf.preprocess import Preprocess


def tall_jpeg(width: int, height: int, progressive: bool = False) -> bytes:
    """A JPEG with 4:2:0 colours of one row of blocks over and over: the rows between restart markers are independent.

    A progressive one has the header of that size, and the rest of a small image.
    """
    smooth = Image.fromarray(scene(2, 64)).resize((width if not progressive else 64, 16), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=90, restart_marker_rows=1, progressive=progressive)
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    start = data.index(b"\xff\xda")
    start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    head = bytearray(data[:start])
    head[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    if progressive:
        return bytes(head) + data[start:]
    count, row = -(-height // 16), data[start:-2]
    return bytes(head) + b"".join(row + bytes([0xFF, 0xD0 + i % 8]) for i in range(count))[:-2] + b"\xff\xd9"


@cache
def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with noise, none of them clipped."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-10, 11, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take every JPEG for one that is too large to decode whole, but not at half its size."""
    monkeypatch.setattr(formats, "_jpeg_bytes_per_pixel", lambda image, whole, divisor: 1e9 if divisor == 1 else 0)
    return monkeypatch


@pytest.mark.trust("JPEGs of 50 and 200 megapixels decoded", "a refusal, or more than 300 MB")
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_jpegs_of_50_and_200_megapixels_are_decoded_within_300_megabytes(tmp_path: Path) -> None:
    sizes = {"phone.jpg": (8192, 6144, 2), "camera.jpg": (16320, 12240, 4)}
    for name, (width, height, _) in sizes.items():
        (tmp_path / name).write_bytes(tall_jpeg(width, height))
    for name, (megabytes, outcome) in measured([tmp_path / name for name in sizes]).items():
        width, height, divisor = sizes[name]
        assert outcome == f"({height // divisor}, {width // divisor}, 3)" and 50 < megabytes < 300, (name, megabytes)


@pytest.mark.trust("scaled JPEGs against whole ones, 36 times smaller", "a pixel off by more than 1 of 255")
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["420", "444", "progressive"])
def test_scaling_changes_what_a_network_sees_by_at_most_one_level(
    resize: str, options: dict[str, object], halved: pytest.MonkeyPatch
) -> None:
    # 8064 x 6048 pixels are to 224 what 2304 x 1728 are to 64.
    data, preprocess = encoded(photo(2304, 1728), "JPEG", quality=90, **options), Preprocess(size=64, resize=resize)
    scaled = decode(data)
    halved.undo()
    whole = decode(data)
    assert whole.shape == (1728, 2304, 3) and scaled.shape == (864, 1152, 3)
    assert_close(fit(scaled, preprocess), fit(whole, preprocess), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_jpegs_are_upright_and_converted_as_whole_ones(
    mode: str, orientation: int, halved: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(333, 221).convert(mode), "JPEG", quality=95, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (333 // 2, 221 // 2))
        assert image.size == (167, 111)
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert_close(decode(data), expected, 0)
    info = describe(data)
    assert (info["height"], info["width"]) == expected.shape[:2]
    assert "too large to decode whole: read at 1/2 of its size" in info["notes"]


def test_a_scaled_mpo_is_its_first_image(halved: pytest.MonkeyPatch) -> None:
    data = encoded(photo(320, 200), "MPO", save_all=True, append_images=[Image.new("RGB", (90, 60), "red")])
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (160, 100))
        expected = np.asarray(image)
    assert_close(decode(data), expected, 0)
    assert describe(data)["frames"] == 2


@pytest.mark.parametrize(("megapixels", "divisor"), [(42, 1), (44, 2), (48, 2), (170, 2), (172, 4), (268, 4)])
def test_the_divisor_is_the_least_that_fits(megapixels: int, divisor: int) -> None:
    side = int((megapixels * 1e6) ** 0.5)
    with Image.open(io.BytesIO(encoded(Image.fromarray(SCENE), "JPEG"))) as image:
        image._size = (side, side)  # its header alone counts
        assert formats.check_cost(image, encoded(Image.fromarray(SCENE), "JPEG")) == divisor


def test_jpegs_that_no_scaling_makes_small_enough_are_refused() -> None:
    advice = "at most 300 MB are spent, shrink it, or save it as a baseline JPEG"
    assert_refused(tall_jpeg(16000, 12000, progressive=True), f"16000 x 12000 pixels, which take 588 MB .*: {advice}$")
    lossless = bytearray(tall_jpeg(9000, 9000))
    lossless[lossless.index(b"\xff\xc0") + 1] = 0xC3  # libjpeg can't scale it
    assert_refused(bytes(lossless), "9000 x 9000 pixels, which take .* shrink it$")
    assert_refused(tall_jpeg(20000, 16, False)[:-2].replace(b"\0\x10\x4e\x20", b"\x4e\x20\x4e\x20"), "shrink it$")
