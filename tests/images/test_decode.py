"""Decoding: every form of one scene gives the same pixels, and every failure is one line that names the file."""

import ast
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.fabricate import SHARED
from support.image_files import (
    ALPHA,
    BLENDED,
    GREY,
    HEIGHT,
    SCENE,
    WIDTH,
    assert_close,
    assert_refused,
    blended,
    chunk,
    encoded,
    exif,
    grey3,
    lossless,
    modes,
    scene,
)

import imgclf
from imgclf.errors import ImageError
from imgclf.images import as_pixels, decode, describe
from imgclf.images.decode import MAX_BYTES

ODD = SHARED / "data" / "odd"


@pytest.mark.trust("lossless forms of one scene decoded", "a pixel off by more than 2 of 255")
@pytest.mark.parametrize("form", lossless())
def test_lossless_forms_equal_the_scene(form: str, tmp_path: Path) -> None:
    data = lossless()[form]
    (tmp_path / "named.jpg").write_bytes(data)  # the content counts, not the name
    assert_close(decode(tmp_path / "named.jpg"), SCENE, 2)
    assert_close(decode(data + b"garbage after a whole image"), SCENE, 2)


@pytest.mark.trust("JPEG forms decoded", "a pixel other than Pillow's")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_decodes_to_pillows_pixels(mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(SCENE).convert(mode), "JPEG", quality=95, **options)
    assert_close(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 0)


def test_mpo_decodes_to_its_first_image() -> None:
    data = encoded(Image.fromarray(SCENE), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    assert_close(decode(data), np.asarray(Image.open(io.BytesIO(data))), 0)
    assert describe(data)["frames"] == 2


def test_animation_decodes_to_its_first_frame() -> None:
    frames = [Image.fromarray(SCENE).quantize(16), Image.new("P", (WIDTH, HEIGHT))]
    for kind in ("GIF", "PNG", "WEBP"):
        images = [frame.convert("RGB") for frame in frames] if kind != "GIF" else frames
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(images[0], kind, save_all=True, append_images=images[1:], **options)
        assert_close(decode(data), SCENE, 2)
        info = describe(data)
        assert info["frames"] == 2 and any("first of 2" in note for note in info["notes"])


@pytest.mark.trust("formats x EXIF orientations 1-8 decoded", "an image with the wrong orientation")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_by_pillow(kind: str, orientation: int) -> None:
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(SCENE), kind, exif=exif(orientation), **options)
    with warnings.catch_warnings():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert_close(decode(data), expected, 0)
    assert_close(as_pixels(Image.open(io.BytesIO(data))), expected, 0)
    info = describe(data)
    size = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    assert (info["height"], info["width"]) == expected.shape[:2] == size


def raw_profile(data: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text chunk of a PNG: a blank line, the kind, the length, rows of 36 bytes."""
    digits = data.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return "\n".join(["", "exif", f"{len(data):8}", *lines, ""]).encode()


def text_chunk(kind: str, keyword: bytes, text: bytes) -> bytes:
    """A tEXt, zTXt or iTXt chunk; "packed" is a compressed iTXt."""
    if kind == "zTXt":
        return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text))
    if kind == "tEXt":
        return chunk(b"tEXt", keyword + b"\0" + text)
    flags, text = (b"\1\0", zlib.compress(text)) if kind == "packed" else (b"\0\0", text)
    return chunk(b"iTXt", keyword + b"\0" + flags + b"en\0" + keyword + b"\0" + text)


def with_chunks(data: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """The PNG with more chunks behind its header, or before its end."""
    place = len(data) - 12 if last else 33
    return data[:place] + b"".join(chunks) + data[place:]


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


@pytest.mark.trust("PNGs with the orientation in a text chunk decoded", "an image with the wrong orientation")
@pytest.mark.parametrize("last", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "packed"])
@pytest.mark.parametrize("source", ["exif", "xmp"])
def test_orientation_in_a_text_chunk_of_a_png_is_applied_as_by_pillow(source: str, kind: str, last: bool) -> None:
    for orientation in range(1, 9):
        keyword, text = b"XML:com.adobe.xmp", XMP.format(orientation).encode()
        if source == "exif":
            keyword, text = b"Raw profile type exif", raw_profile(exif(orientation))
        data = with_chunks(encoded(Image.fromarray(SCENE), "PNG"), text_chunk(kind, keyword, text), last=last)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert expected.shape[0] == (WIDTH if orientation > 4 else HEIGHT)
        assert_close(decode(data), expected, 0)
        assert (f"EXIF orientation {orientation} is applied" in describe(data)["notes"]) == (orientation > 1)


def test_the_exif_chunk_of_a_png_goes_before_its_text() -> None:
    profile = text_chunk("tEXt", b"Raw profile type exif", raw_profile(exif(3)))
    xmp = text_chunk("iTXt", b"XML:com.adobe.xmp", XMP.format(6).encode())
    plain, own = encoded(Image.fromarray(SCENE), "PNG"), encoded(Image.fromarray(SCENE), "PNG", exif=exif(2))
    for data, turned in (
        (with_chunks(own, profile, xmp), SCENE[:, ::-1]),
        (with_chunks(plain, xmp, profile), SCENE[::-1, ::-1]),
    ):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert (np.asarray(ImageOps.exif_transpose(image)) == turned).all()
        assert_close(decode(data), np.ascontiguousarray(turned), 0)


@pytest.mark.parametrize(
    "damaged",
    [
        text_chunk("tEXt", b"Raw profile type exif", b"\nexif\n 9\nno digits"),
        text_chunk("tEXt", b"Raw profile type exif", b""),
        text_chunk("zTXt", b"Raw profile type exif", raw_profile(exif(3)) + b"0" * 2**21),
        text_chunk("zTXt", b"Raw profile type exif", raw_profile(exif(3)))[:-9] + bytes(9),
        chunk(b"zTXt", b"Raw profile type exif\0\0no deflate"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en"),
    ],
)
def test_damaged_or_endless_text_of_a_png_leaves_the_pixels_unchanged(damaged: bytes) -> None:
    assert_close(decode(with_chunks(encoded(Image.fromarray(SCENE), "PNG"), damaged)), SCENE, 0)


def test_anything_but_a_regular_file_raises_image_error(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is a folder")
    assert_refused(tmp_path / "absent.jpg", "No such file")
    assert_refused("nul\0byte.jpg".replace("\0", ""), "No such file")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert_refused(tmp_path / "pipe.jpg", "pipe")  # would wait for a writer for ever
    assert_refused("/dev/zero", "device")
    with pytest.raises(ImageError, match=r"^a\\x0ab\.jpg: "):
        decode(b"", name="a\nb.jpg")
    with pytest.raises(ImageError, match=r"null byte"):
        decode("a\0b.jpg")
    with pytest.raises(ImageError, match="expected"):
        decode(123)  # type: ignore[arg-type]


def test_symbolic_link_to_an_image_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(Image.fromarray(SCENE), "PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert_close(decode(tmp_path / "link.png"), SCENE, 0)


def test_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.bmp").open("wb") as file:
        file.write(b"BM")
        file.truncate(MAX_BYTES + 1)
    assert_refused(tmp_path / "large.bmp", "at most 128 are read")


def test_as_pixels_converts_images_arrays_and_tensors() -> None:
    unit = SCENE / 255
    chw = torch.from_numpy(SCENE).permute(2, 0, 1)
    for image in (Image.fromarray(SCENE), SCENE, unit, unit.astype(np.float32), chw, chw / 255, (chw / 255).double()):
        assert_close(as_pixels(image), SCENE, 0)
    for image in (GREY, GREY[..., None], torch.from_numpy(GREY.copy()), torch.from_numpy(GREY.copy())[None] / 255):
        assert_close(as_pixels(image), grey3(GREY), 0)
    assert_close(as_pixels(np.dstack([SCENE, ALPHA])), BLENDED, 1)
    assert_close(as_pixels(SCENE[::2, ::-1]), SCENE[::2, ::-1], 0)


def premultiplied(mode: str) -> Image.Image:
    bands = "RGBA" if mode == "RGBa" else "LA"
    image = Image.fromarray(np.dstack([SCENE, ALPHA]))
    return image.convert(bands).convert(mode)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "RGBX", "HSV"])
def test_as_pixels_converts_rare_pillow_modes(mode: str) -> None:
    rgb = Image.fromarray(SCENE)
    if mode in ("RGBa", "La"):
        grey = SCENE if mode == "RGBa" else grey3(GREY)
        assert_close(as_pixels(premultiplied(mode)), blended(grey, ALPHA), 2)
    elif mode == "PA":
        image = rgb.quantize(16).convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
        assert_close(as_pixels(image), BLENDED, 2)
    else:
        assert_close(as_pixels(rgb.convert(mode)), SCENE, 6)


@pytest.mark.parametrize(
    "image",
    [
        None,
        "image.jpg",
        [[1, 2], [3, 4]],
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((2, 2, 3), np.int64),
        np.full((2, 2, 3), 1.5),
        np.full((2, 2, 3), -0.1),
        np.full((2, 2, 3), np.nan),
        np.array([["a"]]),
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.int32),
        torch.zeros(3, 4, 4, dtype=torch.bfloat16),
    ],
)
def test_as_pixels_refuses_other_types_shapes_and_values(image: object) -> None:
    with pytest.raises(ImageError) as caught:
        as_pixels(image)
    assert str(caught.value).startswith("image of type") and "\n" not in str(caught.value)


@pytest.mark.skipif(not ODD.is_dir(), reason="needs the real odd files, which are not part of the project")
def test_real_odd_files_decode_or_raise_image_error() -> None:
    good = {
        "animated.gif": 100,
        "cmyk.jpg": 100,
        "exif_orientation_6.jpg": 128,
        "gray16_trns.png": 64,
        "gray_L.jpg": 128,
    }
    good |= {"palette_trns.png": 64, "plain.webp": 128, "png_named.jpg": 128}
    for path in sorted(path for path in ODD.iterdir() if path.is_file()):
        if path.name in good:
            assert decode(path).shape == (good[path.name], good[path.name], 3)
        else:
            assert_refused(path, "")
    with Image.open(ODD / "gray16_trns.png") as image:
        values, key = np.asarray(image), image.info["transparency"]
    expected = np.where(values == key, 255, np.rint(values / 257)).astype(np.uint8)
    assert_close(decode(ODD / "gray16_trns.png"), grey3(expected), 0)


def mutants(count: int, seed: int) -> list[bytes]:
    """Files with flipped bits, cut ends, exchanged parts and edited headers; PNG checksums are corrected half the time."""
    small = Image.fromarray(scene(8, 12))
    forms = [data for data, _ in modes().values()] + list(lossless().values())
    forms += [encoded(small, "JPEG", exif=exif(6)), encoded(small, "JPEG", progressive=True)]
    forms += [encoded(small, "WEBP", exif=exif(3)), encoded(small, "MPO", save_all=True, append_images=[small])]
    forms += [encoded(small.quantize(8), "GIF", save_all=True, append_images=[small.rotate(180).quantize(8)])]
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        data = bytearray(forms[rng.integers(len(forms))])
        for _ in range(rng.integers(1, 4)):
            what, place = rng.integers(6), int(rng.integers(len(data)))
            if what == 0:
                data[place] ^= 1 << int(rng.integers(8))
            elif what == 1:
                del data[max(place, 1) :]
            elif what == 2:
                other = forms[rng.integers(len(forms))]
                data[place : place + int(rng.integers(64))] = other[place : place + int(rng.integers(64))]
            elif what == 3:
                data[min(place, 64) :][:4] = rng.bytes(4)
                data[min(place % 64, len(data) - 1)] = int(rng.choice([0, 1, 127, 128, 255]))
            elif what == 4:
                data[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"][rng.integers(3)]
            else:
                del data[place : place + int(rng.integers(1, 32))]
            data = data or bytearray(b"\0")
        files.append(with_valid_checksums(bytes(data)) if rng.integers(2) else bytes(data))
    return files


def with_valid_checksums(data: bytes) -> bytes:
    """A PNG with correct checksums, so that the damage passes them; other files unchanged."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    position, parts = 8, [data[:8]]
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if position + 12 + length > len(data):
            break
        parts.append(chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(parts) + data[position:]


def outcomes(files: list[bytes], call: Callable[..., object] = decode) -> dict[str, int]:
    counts = {"decoded": 0, "refused": 0}
    for data in files:
        try:
            result = call(data, "mutant")
        except ImageError as error:
            assert str(error).startswith("mutant: ") and "\n" not in str(error) and len(str(error)) < 400
            counts["refused"] += 1
        else:
            if call is decode:
                assert isinstance(result, np.ndarray) and result.dtype == np.uint8
                assert result.ndim == 3 and result.shape[2] == 3 and result.size
            counts["decoded"] += 1
    return counts


@pytest.mark.trust("mutated image files decoded", "an exception other than the one line that names the file")
def test_mutated_files_decode_or_raise_image_error(record_property: Callable[[str, object], None]) -> None:
    counts = outcomes(mutants(6000, seed=0))
    record_property("tried", sum(counts.values()))
    assert sum(counts.values()) == 6000 and min(counts.values()) > 600


def test_mutated_files_are_described_or_raise_image_error() -> None:
    assert sum(outcomes(mutants(500, seed=1), describe).values()) == 500


@pytest.mark.trust("mutated image files that decode described too", "a file that training reads and check refuses")
def test_what_decodes_is_described(record_property: Callable[[str, object], None]) -> None:
    readable = 0
    for data in mutants(3000, seed=2):
        try:
            decode(data)
        except ImageError:
            continue
        describe(data)
        readable += 1
    record_property("tried", readable)
    assert readable > 300


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_damaged_later_images_are_a_note(kind: str) -> None:
    first, later = Image.fromarray(SCENE).quantize(16), Image.fromarray(SCENE[::-1]).quantize(16)
    data = bytearray(encoded(first, kind, save_all=True, append_images=[later]))
    if kind == "TIFF":  # the offset of the second directory leads outside the file
        (start,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, start)
        struct.pack_into("<I", data, start + 2 + 12 * count, len(data) + 1000)
    else:
        del data[len(encoded(first, kind)) + 20 :]
    assert_close(decode(bytes(data)), SCENE, 2)
    info = describe(bytes(data))
    assert info["frames"] == 1 and "its later images are damaged: only the first is used" in info["notes"]


def test_damaged_tiffs_print_nothing() -> None:
    code = """
import sys
from imgclf.images import decode
from imgclf.errors import ImageError
try:
    decode(sys.stdin.buffer.read(), "some.tif")
except ImageError as error:
    print(error)
"""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "group4"):
        image = Image.fromarray(pixels).convert("1" if compression == "group4" else "RGB")
        data = bytearray(encoded(image, "TIFF", compression=compression))
        data[300:900] = bytes(value ^ 255 for value in data[300:900])
        done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", (compression, done.stderr)
        assert compression == "group4" or done.stdout.startswith(b"some.tif: can't be decoded")


def test_decoding_in_threads_keeps_the_warning_filters() -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    data = encoded(Image.fromarray(SCENE), "TIFF", compression="tiff_lzw", exif=exif(6))
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(decode, [data] * 200))) == 200
    assert list(warnings.filters) == before


def test_only_decode_opens_images() -> None:
    package = Path(imgclf.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "standalone.py":  # a program for those who haven't imgclf
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "open" and isinstance(node.value, ast.Name):
                assert node.value.id != "Image" or path.name == "decode.py", f"{path}:{node.lineno} opens an image"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("imread", "imdecode", "decode_image"), f"{path}:{node.lineno} reads an image"
