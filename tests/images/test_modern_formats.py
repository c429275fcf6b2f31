"""AVIF, JPEG 2000 and HEIC: read as all other formats, within bounded memory, whatever their headers state."""

import importlib.util
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from support.decode_memory import measured
from support.image_files import ALPHA, GREY, SCENE, WIDTH, assert_close, assert_refused, blended, encoded, exif, grey3

from imgclf.errors import ImageError
from imgclf.images import codestreams, decode, describe, formats, suffixes

HEIF = importlib.util.find_spec("pillow_heif") is not None
KINDS = [
    pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")),
    pytest.param(
        "JPEG2000", marks=pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow has no JPEG 2000")
    ),
    pytest.param("HEIF", marks=pytest.mark.skipif(not HEIF, reason="needs pillow-heif, imgclf's extra heic")),
]
# Grey levels that the codec may change at high quality, and its options.
LOSSY = {"AVIF": 12, "JPEG2000": 0, "HEIF": 12}
OPTIONS = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {},
    "HEIF": {"quality": 100, "chroma": 444},
}


def made(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the image as a file of the format."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    return encoded(image, kind, **{**OPTIONS[kind], **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_scene_is_decoded(kind: str, mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.dstack([SCENE, ALPHA])) if mode == "RGBA" else Image.fromarray(SCENE).convert(mode)
    expected = {"RGB": SCENE, "L": grey3(GREY), "RGBA": blended(SCENE, ALPHA)}[mode]
    data = made(image, kind)
    (tmp_path / "named.jpg").write_bytes(data)  # the content counts, not the name
    assert_close(decode(tmp_path / "named.jpg"), expected, LOSSY[kind] or 1)
    info = describe(data)
    assert (info["format"], info["width"], info["frames"]) == (kind, WIDTH, 1)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_by_pillow(kind: str, orientation: int) -> None:
    data = made(Image.fromarray(SCENE), kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert_close(decode(data), expected, 0)
    info = describe(data)
    assert (info["height"], info["width"]) == expected.shape[:2]


def test_jpeg_2000_of_16_bits_and_raw_codestreams_are_decoded() -> None:
    ramp = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    assert_close(decode(made(Image.fromarray(ramp), "JPEG2000")), grey3(np.rint(ramp / 257).astype(np.uint8)), 0)
    assert_close(decode(made(Image.fromarray(SCENE), "JPEG2000", no_jp2=True)), SCENE, 0)
    tiled = made(Image.fromarray(SCENE), "JPEG2000", tile_size=(16, 16), codeblock_size=(8, 8))
    assert_close(decode(tiled), SCENE, 0)


@pytest.mark.trust("cut and mutated AVIF, JPEG 2000 and HEIC files decoded", "an exception other than the file's line")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_decode_or_raise_image_error(kind: str, record_property: Callable[[str, object], None]) -> None:
    data = made(Image.fromarray(SCENE), kind)
    rng = np.random.default_rng(0)
    files = [data[:length] for length in range(1, len(data), max(1, len(data) // 60))]
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)).tolist():
            changed[place] = int(rng.choice([0, 1, 127, 255, changed[place] ^ 16]))
        files.append(bytes(changed))
    refused = 0
    for file in files:
        try:
            decode(file, "some.jpg")
        except ImageError as error:
            assert str(error).startswith("some.jpg: ") and "\n" not in str(error)
            refused += 1
    record_property("tried", len(files))
    assert refused > 60
    assert_refused(data[: len(data) * 3 // 4], "")


def jpeg_2000(side: int, tile: int, block: int = 4, precincts: bytes = b"") -> bytes:
    """The header of a JPEG 2000, and no pixels; `block`: log2 of the side of a block, minus 2."""
    size = struct.pack(">HH8IH", 41, 0, side, side, 0, 0, tile, tile, 0, 0, 1) + bytes([7, 1, 1])
    style = struct.pack(">BBHB", bool(precincts), 0, 1, 0) + bytes([len(precincts[1:]), block, block, 0, 1]) + precincts
    quality = struct.pack(">BB", 0x40, 8) + b"\x48" * 3 * len(precincts[1:])
    parts = [b"\xff\x4f\xff\x51", size, b"\xff\x52", struct.pack(">H", len(style) + 2), style]
    parts += [b"\xff\x5c", struct.pack(">H", len(quality) + 2), quality]
    part = struct.pack(">HIBB", 0, 0, 0, 1)
    return b"".join([*parts, b"\xff\x90\0\x0a", part, b"\xff\x93", b"\x80" * 64, b"\xff\xd9"])


BOMBS = {
    "size": jpeg_2000(60_000, 60_000),
    "one tile": jpeg_2000(8_000, 8_000),
    "tiles": jpeg_2000(4_000, 20),
    "precincts": jpeg_2000(3_000, 3_000, precincts=b"\x00"),
    "blocks": jpeg_2000(5_000, 5_000, block=0),
}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.trust("JPEG 2000 headers of large structures", "more than 300 MB, or pixels")
def test_headers_that_ask_for_too_much_are_refused(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    for name, (megabytes, outcome) in measured([tmp_path / name for name in BOMBS]).items():
        assert outcome.startswith("bomb: "), (name, outcome)
        assert "at most 300 MB are spent" in outcome or name == "size", (name, outcome)
        assert megabytes < 60, (name, megabytes)


@pytest.mark.trust("AVIF and HEIC files that hold a larger image than they state", "memory for the larger one")
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
def test_an_image_larger_than_stated_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {"speed": 10} if kind == "AVIF" else {}
    data = bytearray(made(Image.new("RGB", (1000, 1000), (9, 90, 200)), kind, **options))
    assert decode(bytes(data)).shape == (1000, 1000, 3)
    place = data.index(b"ispe")
    data[place + 8 : place + 16] = struct.pack(">II", 64, 64)
    if kind == "AVIF":  # libavif would decode it, and scale it down
        monkeypatch.setattr(formats, "MAX_MEMORY", 4_000_000)
        assert_refused(bytes(data), "is 64 x 64 pixels, which take 9 MB to decode as AVIF RGB: at most 4 MB are spent")
    else:
        assert_refused(bytes(data), "can't be decoded .*exceeds the maximum image size")


LARGEST = {  # in megapixels; a third of them is made
    "AVIF RGB": ("AVIF", "RGB", 22, {"speed": 10, "quality": 50}),
    "AVIF 4:4:4": ("AVIF", "RGB", 16, {"speed": 10, "quality": 50, "subsampling": "4:4:4"}),
    "AVIF RGBA": ("AVIF", "RGBA", 14, {"speed": 10, "quality": 50}),
    "J2K RGB": ("JPEG2000", "RGB", 14, {}),
    "J2K RGBA": ("JPEG2000", "RGBA", 11, {}),
    "J2K L": ("JPEG2000", "L", 43, {}),
    "J2K 16 bits": ("JPEG2000", "I;16", 33, {}),
}


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_largest_images_take_at_most_300_megabytes(tmp_path: Path) -> None:
    sides = {name: int((size / 3 * 1e6) ** 0.5) for name, (_, _, size, _) in LARGEST.items()}
    for name, (kind, mode, _, options) in LARGEST.items():
        Image.new(mode, (sides[name], sides[name])).save(tmp_path / name, kind, **options)
    for name, (megabytes, outcome) in measured([tmp_path / name for name in LARGEST]).items():
        assert outcome == f"({sides[name]}, {sides[name]}, 3)"
        assert 30 < megabytes <= 300 / 3 + 8, (name, megabytes)


@pytest.mark.parametrize(("name", "label"), [("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000"), ("HEIF", "HEIC")])
def test_a_format_without_its_decoder_is_named_with_the_remedy(
    name: str, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(suffixes.MISSING, name, label)
    starts = {"AVIF": b"\0\0\0\x18ftypavif\0\0\0\0mif1", "HEIF": b"\0\0\0\x18ftypmif1\0\0\0\0heic"}
    data = starts.get(name) or jpeg_2000(8, 8)
    assert_refused(data, f"some.jpg: is {label}: {suffixes.REMEDIES[label][:20]}")


def test_heic_needs_the_extra_and_says_so(tmp_path: Path) -> None:
    """In a process that can't import pillow-heif, whether it is installed here or not."""
    (tmp_path / "pillow_heif.py").touch()
    code = """
import sys, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pillow_heif" else found(name, *rest)
from imgclf.images import IMAGE_SUFFIXES, decode, unused_reason
from imgclf.errors import ImageError
print(".heic" in IMAGE_SUFFIXES, unused_reason("a.HEIC"))
try:
    decode(b"\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1", "a.heic")
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    hint = 'needs the extra heic; install it with `pip install -e ".[heic]"` in the checkout of imgclf'
    assert done.stdout.splitlines() == [f"False HEIC: {hint}", f"a.heic: is HEIC: {hint}"]


def test_locations_without_end_are_refused_at_once() -> None:
    box = struct.pack(">IHH", 0x01000000, 0x0000, 65535) + b"\0\1\0\0\0\0\xff\xff" * 65535
    with pytest.raises(ImageError, match="states too many parts"):
        list(codestreams._extents(box))
    assert formats.sniff(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf") == "AVIF"
