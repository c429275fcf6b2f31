"""A folder that answers where imgclf isn't installed: the model, a script of one file, its requirements and a model card."""

import os
import shutil
from importlib.resources import files
from pathlib import Path

from imgclf.console import print_text, shell_path
from imgclf.errors import ConfigError, DataError
from imgclf.exporting.card import Confusion, model_card
from imgclf.exporting.onnx_file import export_onnx, facts_of
from imgclf.exporting.run import images_of_run
from imgclf.files.run_folder import find_checkpoint
from imgclf.models.image_model import load_image_model
from imgclf.report.tables import read_confusion_csv

__all__ = ["export_folder"]

REQUIREMENTS = "numpy>=1.24\nonnxruntime>=1.20\npillow>=10.1\n"
_FILES = {
    "model.onnx": "the classifier; class names and preprocessing are in its metadata.",
    "predict.py": "classifies images; one file to read, copy or import.",
    "requirements.txt": "what predict.py needs.",
}


def export_folder(checkpoint: str, folder: Path, half: bool) -> Path:
    """Write a checkpoint as a folder of its own, and return it; it names no path of this machine.

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
        script = files("imgclf.exporting").joinpath("standalone.py").read_text(encoding="utf-8")
        card = model_card(facts_of(model, public=True), _FILES, _confusion_of(file))
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


def _confusion_of(checkpoint: Path) -> Confusion | None:
    """Return classes and counts of the run's test split, None where its folder has no such file."""
    path = checkpoint.parent.parent / "confusion_test.csv"
    try:
        return read_confusion_csv(path) if path.is_file() else None
    except DataError:
        return None
