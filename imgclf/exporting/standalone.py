"""Classify images with the model beside this file: python predict.py image.jpg ...

It needs onnxruntime, Pillow and NumPy, and nothing else; `pip install -r requirements.txt` brings them. In Python:

    from predict import Classifier
    classifier = Classifier("model.onnx")
    print(classifier.predict("image.jpg"))  # [("ace of spades", 0.98), ...]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["Classifier", "main"]

WHITE = 255  # behind transparent pixels, as in training
RESAMPLING = {name.lower(): value for name, value in Image.Resampling.__members__.items()}


class Classifier:
    """The classifier in a file of `imgclf export`."""

    def __init__(self, path: str | Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        facts = json.loads(self.session.get_modelmeta().custom_metadata_map["imgclf"])
        self.classes, self.preprocess = facts["classes"], facts["preprocess"]

    def predict(self, image: str | Path | Image.Image, top: int = 5) -> list[tuple[str, float]]:
        """Return the `top` most probable classes of an image file, or of an image of Pillow: [(class, probability), ...]."""
        (probabilities,) = self.probabilities([image])
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.classes[index], float(probabilities[index])) for index in best]

    def probabilities(self, images: Sequence[str | Path | Image.Image]) -> np.ndarray[Any, Any]:
        """Return the probabilities float32 [N, K] of images, in the order of `classes`."""
        pixels = np.stack([self.pixels(image) for image in images])  # uint8 [N, S, S, C]
        return self.session.run(["probabilities"], {"images": pixels})[0]

    def pixels(self, image: str | Path | Image.Image) -> np.ndarray[Any, Any]:
        """Return an image as the network takes it: uint8 [S, S, C]."""
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        image = upright_rgb(image)
        image = image.convert("L") if len(self.preprocess["mean"]) == 1 else image
        image = fitted(image, self.preprocess)
        return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame of an image, turned as its EXIF says, in RGB before white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16-bit grey, where 65535 is white
        values = np.asarray(image, dtype=np.float64) * (255 / 65535)
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def fitted(image: Image.Image, preprocess: dict[str, Any]) -> Image.Image:
    """Return the image as a square of `preprocess["size"]` pixels, resized as in training."""
    size, resample = preprocess["size"], RESAMPLING[preprocess["interpolation"]]
    width, height = image.size
    if preprocess["resize"] == "squash":
        return image if image.size == (size, size) else image.resize((size, size), resample)
    if preprocess["resize"] == "letterbox":
        scale = size / max(width, height)
        inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
        fill = tuple(min(255, max(0, round(mean * 255))) for mean in preprocess["mean"])
        canvas = Image.new(image.mode, (size, size), fill if len(fill) == 3 else fill[0])
        canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return canvas
    short = math.floor(size / preprocess["crop_pct"])  # the shorter side, before the centre is cut out
    scaled = (int(short * width / min(width, height)), int(short * height / min(width, height)))
    left, top = (round((side - size) / 2) for side in scaled)
    return image.resize(scaled, resample).crop((left, top, left + size, top + size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the most probable classes of each image; returns 1 if some can't be read."""
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", default=Path(__file__).with_name("model.onnx"), metavar="FILE")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to print (default: 3)")
    options = parser.parse_args(arguments)
    classifier, failed = Classifier(options.model), 0
    for image in options.images:
        try:
            best = classifier.predict(image, options.top)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            failed += 1
            sys.stderr.write(f"{image}: can't be read as an image ({error})\n")
            continue
        cells = "   ".join(f"{name} {probability:.1%}" for name, probability in best)
        sys.stdout.write(f"{cells}   {image}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
