"""The browser's preprocessing against imgclf's: the same pixels of the same files, and the same probabilities."""

import base64
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import _start, needs_browser
from support.page_site import LivePage, colour_model, runtime_or_skip, static_host

from imgclf.demo.cards import card_face
from imgclf.errors import ImageError
from imgclf.exporting.static_page import PageModel, write_page
from imgclf.images import read_image
from imgclf.preprocess import Preprocess

pytestmark = needs_browser

_PIXELS = """
const blob = await (await fetch("images/" + %s)).blob();
let text = "";
try {
  const pixels = await engine.pixels(%d, blob);
  for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
} catch (error) { return "error: " + error.message; }
return btoa(text);
"""
PREPROCESSINGS = [
    *(
        Preprocess(size=96, interpolation=name, resize=resize, mean=(0.485, 0.456, 0.406))
        for name, resize in [
            ("bicubic", "squash"),
            ("bilinear", "crop"),
            ("lanczos", "letterbox"),
            ("nearest", "squash"),
        ]
    ),
    Preprocess(size=48, mean=(0.4,), std=(0.2,), interpolation="bicubic", resize="crop", bits=12),
]


def _card(name: str = "ace of clubs", width: int = 150, height: int = 210) -> Image.Image:
    """Return a drawn card with noise, so that every pixel counts."""
    card = Image.fromarray(np.asarray(card_face(name))).convert("RGBA").resize((width, height))
    white = Image.new("RGBA", card.size, (90, 140, 80, 255))
    pixels = np.asarray(Image.alpha_composite(white, card).convert("RGB")).astype(int)
    noise = np.random.default_rng(len(name) + width).integers(-30, 30, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _with_alpha(mode: str = "RGBA") -> Image.Image:
    card = _card()
    ramp = np.linspace(0, 255, card.width * card.height).reshape(card.height, card.width).astype(np.uint8)
    card.putalpha(Image.fromarray(ramp))
    return card.convert(mode)


def _oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return _saved(_card(), kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))


def _images() -> dict[str, bytes]:
    card = _card()
    grey16 = np.random.default_rng(5).integers(0, 65536, (70, 90)).astype(np.uint16)
    twelve = Image.fromarray((grey16 >> 4).astype(np.uint16))
    palette = card.quantize(40)
    images = {
        "plain.jpg": _saved(card, "JPEG", quality=90),
        "odd_size_progressive.jpg": _saved(_card("joker", 151, 97), "JPEG", quality=80, progressive=True),
        "grey.jpg": _saved(card.convert("L"), "JPEG"),
        "plain.png": _saved(card, "PNG"),
        "alpha.png": _saved(_with_alpha(), "PNG"),
        "grey_alpha.png": _saved(_with_alpha("LA"), "PNG"),
        "grey16.png": _saved(Image.fromarray(grey16), "PNG"),
        "twelve_bits.png": _saved(twelve, "PNG"),
        "palette_transparent.png": _saved(palette, "PNG", transparency=3),
        "one_colour_transparent.png": _saved(card, "PNG", transparency=card.getpixel((20, 20))),
        "lossless.webp": _saved(card, "WEBP", lossless=True),
        "plain.gif": _saved(card, "GIF"),
        "plain.bmp": _saved(card, "BMP"),
        "long.png": _saved(_card("two of hearts", 1200, 9), "PNG"),
        "tall.png": _saved(_card("king of clubs", 120, 400), "PNG"),
        "tiny.png": _saved(_card("two of hearts", 5, 7), "PNG"),
    }
    for number in range(2, 9):
        images[f"turned{number}.jpg"] = _oriented("JPEG", number)
    return images | {"turned6.png": _oriented("PNG", 6), "turned8.webp": _oriented("WEBP", 8)}


@pytest.fixture(scope="module")
def pixels_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes, int], Any]]:
    """Function that returns a file's pixels as the browser makes them, uint8 [S, S, C], or the text of its error."""
    runtime_or_skip()
    folder = tmp_path_factory.mktemp("pixels")
    models = []
    for number, preprocess in enumerate(PREPROCESSINGS):
        facts = colour_model(folder / f"{number}.onnx", preprocess, ["blue", "green", "red"])
        models.append(PageModel(str(number), folder / f"{number}.onnx", facts))
    page = write_page(folder / "page", models)
    (page / "images").mkdir()
    with static_host(page) as address:
        tab = LivePage(_start().open(), address)
        tab.run(
            "const { WasmEngine } = await import('./static/engine_wasm.js'); globalThis.engine = new WasmEngine();"
            "globalThis.opened = false; engine.open().then(() => { opened = true; });"
        )
        tab.tab.wait_for("opened")

        def pixels(data: bytes, number: int) -> Any:
            (page / "images" / "one").write_bytes(data)
            text = tab.run(_PIXELS % (json.dumps(f"one?{random.random()}"), number))
            if text.startswith("error: "):
                return text
            side, channels = PREPROCESSINGS[number].size, PREPROCESSINGS[number].channels
            return np.frombuffer(base64.b64decode(text), np.uint8).reshape(side, side, channels)

        yield pixels
        tab.tab.close()


@pytest.mark.parametrize("name", _images())
def test_browser_makes_the_same_pixels(name: str, pixels_of: Callable[[bytes, int], Any]) -> None:
    data = _images()[name]
    for number, preprocess in enumerate(PREPROCESSINGS):
        expected = read_image(data, preprocess)
        found = pixels_of(data, number)
        if name == "tall.png" and not _shrinks_height_first():
            assert (
                np.abs(found.astype(int) - expected).max() <= 8
            )  # an older Pillow rounds between the passes elsewhere
            continue
        np.testing.assert_array_equal(found, expected, err_msg=f"{name} {preprocess}")


def _shrinks_height_first() -> bool:
    """Return whether this Pillow takes the passes of a tall image in the order that the page follows."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 20, 3)).astype(np.uint8))
    return noise.resize((10, 10)).tobytes() == noise.resize((20, 10)).resize((10, 10)).tobytes()


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_16_bits(kind: str, interlaced: bool, pixels_of: Callable[[bytes, int], Any]) -> None:
    data = _png16(kind, interlaced)
    np.testing.assert_array_equal(pixels_of(data, 0), read_image(data, PREPROCESSINGS[0]))


def _png16(kind: str, interlaced: bool) -> bytes:
    """Return a PNG of 16 bits, written by hand: Pillow writes none in colour, and none that is interlaced."""
    import struct
    import zlib

    colour, samples = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}[kind]
    values = np.random.default_rng(7).integers(0, 65536, (21, 19, samples)).astype(">u2")
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x, y, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        rows += b"".join(b"\0" + row.tobytes() for row in values[y::down, x::across])

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 19, 21, 16, colour, 0, 0, int(interlaced))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_saved(_card(), "JPEG")[:-400], "is damaged or cut off"),
        (_saved(_card(), "PNG")[:-400], "is damaged or cut off"),
        (_saved(_with_alpha(), "PNG")[:4000], "is damaged or cut off"),
        (_saved(_card(), "TIFF"), "is a TIFF file that this browser can't read; save it as JPEG or PNG"),
        (b"%PDF-1.7 of something", "is not an image; choose a JPEG, PNG, WebP or GIF file"),
    ],
)
def test_browser_refuses_what_is_no_whole_image(data: bytes, said: str, pixels_of: Callable[[bytes, int], Any]) -> None:
    assert pixels_of(data, 0) == f"error: {said}"
    if not data.startswith(b"II"):
        with pytest.raises(ImageError):
            read_image(data, PREPROCESSINGS[0])


def _real_images(shared: Path) -> Sequence[Path]:
    """Return 92 images of the data sets, and 8 odd ones that both sides read."""
    drawn = random.Random(0)
    counts = {"cards": 32, "sports": 32, "rock_paper_scissors": 10, "rock_paper_scissors_photos": 10, "asl_alphabet": 8}
    images = []
    for name, count in counts.items():
        files = sorted(path for path in (shared / "data" / name).rglob("*") if path.suffix in (".jpg", ".png"))
        images += drawn.sample(files, count)
    odd = "animated.gif cmyk.jpg exif_orientation_6.jpg gray16_trns.png gray_L.jpg palette_trns.png plain.webp png_named.jpg"
    return [*images, *(shared / "data" / "odd" / name for name in odd.split())]


@pytest.mark.exhaustive
def test_real_images_have_the_same_classes_and_probabilities(shared: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    runtime_or_skip()
    preprocess, classes = imagenet_model(shared, tmp_path / "m.onnx")
    facts = {"classes": classes, "preprocess": preprocess.to_dict(), "backbone": "mobilenetv2_100", "version": "0.1.0"}
    page = write_page(tmp_path / "page", [PageModel("imagenet", tmp_path / "m.onnx", facts)])
    images = _real_images(shared)
    (page / "images").mkdir()
    for number, path in enumerate(images):
        (page / "images" / str(number)).write_bytes(path.read_bytes())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    most_pixel, most_probability, most_of_identical, same, identical = 0, 0.0, 0.0, 0, 0
    with static_host(page) as address:
        tab = LivePage(_start().open(), address)
        tab.run(
            "const { WasmEngine } = await import('./static/engine_wasm.js'); globalThis.engine = new WasmEngine();"
            "globalThis.opened = false; engine.open().then(() => { opened = true; });"
        )
        tab.tab.wait_for("opened", 60)
        for number, path in enumerate(images):
            expected = read_image(path, preprocess)
            pixels = np.frombuffer(base64.b64decode(tab.run(_PIXELS % (json.dumps(str(number)), 0))), np.uint8)
            difference = np.abs(pixels.reshape(expected.shape).astype(int) - expected)
            script = (
                "const blob = await (await fetch('images/%d')).blob(); return engine.predict(0, blob, { top: 1000 })"
            )
            top = tab.run(script % number)["top"]
            found = {entry["class"]: entry["probability"] for entry in top}
            (row,) = session.run(None, {"images": expected[None]})[0]
            most_pixel, identical = max(most_pixel, int(difference.max())), identical + (not difference.any())
            apart = max(abs(found[name] - value) for name, value in zip(classes, row, strict=True))
            assert difference.any() or apart < 1e-4, path
            most_probability = max(most_probability, apart)
            most_of_identical = max(most_of_identical, 0.0 if difference.any() else apart)
            same += top[0]["class"] == classes[int(row.argmax())]
        tab.tab.close()
    print(
        f"{len(images)} images: {identical} with identical pixels, at most {most_pixel} apart; "
        f"probabilities at most {most_probability:.2e} apart ({most_of_identical:.2e} there); {same} classes the same"
    )
    assert same == len(images) and identical >= len(images) - 1 and most_pixel <= 2 and most_probability < 0.02


def imagenet_model(shared: Path, path: Path) -> tuple[Preprocess, list[str]]:
    """Export MobileNetV2 with its ImageNet weights as contract 1 says; return its preprocessing and classes."""
    import torch

    from imgclf.inference.torch_runner import load_imagenet

    weights = shared / "weights" / "mobilenetv2_100_tfslim_in1k.safetensors"
    predictor = load_imagenet("mobilenetv2_100", str(weights), device="cpu", engine="eager")
    model = predictor.model

    class Whole(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return model.network(model.normalize(images.permute(0, 3, 1, 2))).softmax(1)

    size = model.preprocess.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("B")
    program = torch.onnx.export(
        Whole().eval(),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return model.preprocess, list(predictor.classes)
