"""The static page: a folder that any web host serves, in which the model runs in the visitor's browser."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import imgclf.page
from imgclf.errors import ConfigError
from imgclf.exporting.web_runtime import VERSION, licence_files, runtime_files
from imgclf.files import write_atomically
from imgclf.images import decode
from imgclf.names import as_json, printable

__all__ = ["MAX_BYTES", "PAGE_FILES", "PageModel", "model_entry", "write_page"]

MAX_BYTES = 32 * 2**20  # of an image that the page reads
SAMPLE_SIDE = 512  # pixels of the longer side of a sample image
# The files of `imgclf/page/` besides index.html, which serve as `static/<name>`.
SCRIPTS = (
    "app",
    "camera",
    "decode",
    "engine_http",
    "engine_wasm",
    "gallery",
    "messages",
    "png",
    "preprocess",
    "results",
)
PAGE_FILES = ("style.css", *(f"{name}.js" for name in SCRIPTS), "worker.js")
_POLICY = "worker-src 'self' blob:"
# A link that a visitor gives is loaded by the browser, from wherever it leads.
_LINKS = f"{_POLICY}; connect-src 'self' https: http:"
_SHOWN_METRICS = ("accuracy", "macro_f1", "loss", "count")


@dataclass(frozen=True)
class PageModel:
    """A model of the page: its exported file, the JSON of that file's `imgclf` property, and an image of each class.

    `samples`: class -> an image file, or its bytes. They are published as JPEG of at most 512 pixels, without EXIF.
    """

    name: str
    file: Path
    facts: Mapping[str, Any]
    samples: Mapping[str, str | os.PathLike[str] | bytes] = field(default_factory=dict)


def write_page(
    folder: str | os.PathLike[str],
    models: Sequence[PageModel],
    *,
    runtime: str | os.PathLike[str] | None = None,
    threshold: float = 0.0,
) -> Path:
    """Write the page, the models and ONNX Runtime into `folder`, and return it; a page that is there is replaced.

    `runtime`: see `imgclf.exporting.web_runtime.runtime_files`; `threshold`: the probability from 0 to 1 below which the
    page begins with "unsure". index.html is written last. Raises `ConfigError` for a folder that holds anything else,
    `DataError` without the runtime, `ImageError` for a sample that can't be read.
    """
    folder = Path(folder)
    if not models:
        raise ConfigError("a page needs at least one model")
    _check_free(folder)
    written = {f"runtime/{name}": data for name, data in {**runtime_files(runtime), **licence_files()}.items()}
    entries = []
    for index, model in enumerate(models):
        file = "model.onnx" if index == 0 else f"model-{index + 1}.onnx"
        samples = {name: f"samples/{index}-{number}.jpg" for number, name in enumerate(model.samples)}
        written |= {samples[name]: _sample(image, name) for name, image in model.samples.items()}
        written[file] = Path(model.file).read_bytes()
        entries.append({**model_entry(model.name, model.facts, samples), "file": file})
    first = models[0].facts.get("version")
    about = {"version": first, "threshold": threshold, "max_bytes": MAX_BYTES, "runtime": VERSION, "models": entries}
    written["model.json"] = as_json(about, indent=1, allow_nan=False).encode()
    source = files(imgclf.page)
    written |= {f"static/{name}": source.joinpath(name).read_bytes() for name in PAGE_FILES}
    written["index.html"] = _static_index(source.joinpath("index.html").read_text(encoding="utf-8")).encode()
    if (folder / "samples").is_dir():
        shutil.rmtree(folder / "samples")  # of a former page: images that no longer belong to it
    for name, data in written.items():
        write_atomically(folder / name, data)
    return folder


def model_entry(name: str, facts: Mapping[str, Any], samples: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts about a model that the page shows, as `GET /metadata` lists them, and its preprocessing."""
    metadata = facts.get("metadata", {})
    metrics = {
        split: {key: numbers[key] for key in _SHOWN_METRICS if _is_finite(numbers.get(key))}
        for split, numbers in metadata.get("metrics", {}).items()
    }
    return {
        "name": printable(name),
        "network": facts.get("backbone"),
        "size": facts["preprocess"]["size"],
        "classes": [printable(each) for each in facts["classes"]],
        "data": metadata.get("data", {}).get("name"),
        "metrics": metrics,
        "licence": facts.get("licence"),
        "saliency": False,
        "samples": {printable(each): path for each, path in samples.items()},
        "preprocess": facts["preprocess"],
    }


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; expected a folder for the page")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").is_file():
        raise ConfigError(f"{folder}: holds other files; expected a new or empty folder, or that of a former page")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _sample(image: str | os.PathLike[str] | bytes, name: str) -> bytes:
    """Return an image as JPEG bytes; encoded again, so that a photo's place and camera aren't published."""
    pixels = decode(image, f"sample of {name}" if isinstance(image, bytes) else None)
    height, width = pixels.shape[:2]
    scale = min(1.0, SAMPLE_SIDE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return data.tobytes()


def _static_index(page: str) -> str:
    """Return index.html for the engine in the browser."""
    page = page.replace('data-engine="http"', 'data-engine="wasm"', 1)
    return page.replace(_POLICY, _LINKS, 1)
