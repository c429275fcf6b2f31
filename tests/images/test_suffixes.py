"""Suffixes of image files: what is read, and what is said of all other files."""

from pathlib import Path

import pytest
from PIL import Image, features
from support.image_files import SCENE, assert_close, encoded

from imgclf.data.folders import list_images
from imgclf.images import IMAGE_SUFFIXES, SUFFIXES, decode, unused_reason
from imgclf.images.suffixes import REMEDIES


def test_every_suffix_of_pillows_for_a_format_that_is_read_is_known() -> None:
    Image.init()
    for suffix, name in Image.EXTENSION.items():
        if name in SUFFIXES and suffix not in (".dib", ".tga"):
            assert suffix in SUFFIXES[name], (suffix, name)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_file_of_every_suffix_is_found_and_decoded(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"Photo 1{suffix.upper()}").write_bytes(encoded(Image.fromarray(SCENE), "PNG"))
    (found,) = list_images(tmp_path)
    assert_close(decode(found), SCENE, 0)
    assert unused_reason(found.name) == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.jxl", "JPEG XL: convert it to PNG or JPEG"),
        ("a.b.pdf", "PDF: export its pages as images"),
        ("logo.svg", "SVG: export it as PNG"),
        ("P1.NEF", "camera raw: export it as JPEG or 16-bit TIFF"),
        ("scan.dcm", "DICOM: export it as 16-bit PNG"),
        ("clip.mp4", "video: extract its frames as images"),
        ("photos.zip", "archive: unpack it"),
        ("notes.txt", "no suffix of an image file"),
        ("README", "no suffix of an image file"),
        (".jpg", "no suffix of an image file"),
        ("jpg", "no suffix of an image file"),
    ],
)
def test_other_files_are_named_as_what_they_are(name: str, reason: str) -> None:
    assert unused_reason(name) == reason


def test_the_suffixes_are_those_of_the_decoders_that_are_there() -> None:
    for name, there in (("AVIF", features.check("avif")), ("JPEG2000", features.check("jpg_2000"))):
        assert (set(SUFFIXES[name]) <= IMAGE_SUFFIXES) == bool(there)
    assert {".jfif", ".jpg", ".png", ".webp", ".gif", ".bmp", ".tif"} <= IMAGE_SUFFIXES
    assert all(not set(REMEDIES[label]) & set("\n") for label in REMEDIES)
