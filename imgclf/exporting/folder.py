"""Folders that answer where imgclf isn't installed: a script with its model and model card, or a web page."""

import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from imgclf.console import print_text, shell_path
from imgclf.errors import ConfigError, DataError
from imgclf.exporting.card import Confusion, model_card
from imgclf.exporting.onnx_file import export_onnx, facts_of
from imgclf.exporting.run import images_of_run, sample_images
from imgclf.exporting.static_page import PageModel, write_page
from imgclf.files.run_folder import find_checkpoint
from imgclf.models.image_model import ImageModel, load_image_model
from imgclf.report.tables import read_confusion_csv

__all__ = ["export_folder", "export_page"]

REQUIREMENTS = "numpy>=1.24\nonnxruntime>=1.20\npillow>=10.1\n"
_FILES = {
    "model.onnx": "the classifier; class names and preprocessing are in its metadata.",
    "predict.py": "classifies images; one file to read, copy or import.",
    "requirements.txt": "what predict.py needs.",
}
_PAGE = "a web page on which the model runs in the browser; `python -m http.server -d page` shows it."


def export_folder(checkpoint: str, folder: Path, half: bool, with_samples: bool = False) -> Path:
    """Write a checkpoint as a folder of its own, and return it; it names no path of this machine.

    `with_samples`: its page shows an image of each class. Without the page's runtime it has no page, and a line says why.
    Raises `ConfigError` for a folder that holds anything, and the errors of `export_onnx`; nothing is left behind then.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder {shell_path(folder)}: it isn't empty; pass a new folder, or delete that one first")
    file = find_checkpoint(checkpoint)
    model = load_image_model(file)
    temporary = folder.parent / f".imgclf-{folder.name}-{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    try:
        images, source = images_of_run(model)
        exported = export_onnx(model, temporary / "model.onnx", images, half, public=True)
        facts, described = facts_of(model, public=True), dict(_FILES)
        samples = sample_images(model) if with_samples else {}
        try:
            write_page(temporary / "page", [PageModel(_name_of(model), exported.path, facts, samples)])
            described["page/"] = _PAGE
        except DataError as error:
            print_text(f"page: left out ({error})")
        script = files("imgclf.exporting").joinpath("standalone.py").read_text(encoding="utf-8")
        card = model_card(facts, described, _confusion_of(file))
        for name, text in (("predict.py", script), ("requirements.txt", REQUIREMENTS), ("README.md", card)):
            (temporary / name).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print_text(
        f"exported: {shell_path(folder)}; the same classes for {source}, probabilities differ by at most "
        f"{exported.difference:.0e}"
    )
    return folder


def export_page(checkpoint: str, folder: Path, half: bool, with_samples: bool = False) -> Path:
    """Write a checkpoint as a web page on which the model runs in the browser, and return its folder.

    `with_samples`: the page shows an image of each class. Raises the errors of `export_onnx` and `write_page`.
    """
    folder = folder.expanduser().absolute()
    model = load_image_model(find_checkpoint(checkpoint))
    with tempfile.TemporaryDirectory() as place:
        images, source = images_of_run(model)
        exported = export_onnx(model, Path(place) / "model.onnx", images, half, public=True)
        samples = sample_images(model) if with_samples else {}
        write_page(folder, [PageModel(_name_of(model), exported.path, facts_of(model, public=True), samples)])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print_text(
        f"exported: {shell_path(folder)}, {size / 2**20:.0f} MB for any web host; the same classes for {source}\n"
        f"show it here: python -m http.server --bind 127.0.0.1 --directory {shell_path(folder)}"
    )
    return folder


def _name_of(model: ImageModel) -> str:
    return model.metadata.data.name or "model"


def _confusion_of(checkpoint: Path) -> Confusion | None:
    """Return classes and counts of the run's test split, None where its folder has no such file."""
    path = checkpoint.parent.parent / "confusion_test.csv"
    try:
        return read_confusion_csv(path) if path.is_file() else None
    except DataError:
        return None
