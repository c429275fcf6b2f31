"""What `imgclf export` does: load the checkpoint, take some images of its data, write and print."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgclf.config import DatasetConfig
from imgclf.console import print_text, shell_path
from imgclf.data.datasets import build_data
from imgclf.data.pixel_cache import read_pixels
from imgclf.errors import DataError
from imgclf.exporting.onnx_file import Exported, export_onnx
from imgclf.files.run_folder import find_checkpoint
from imgclf.models.exported import SUFFIX
from imgclf.models.image_model import ImageModel, load_image_model

__all__ = ["CHECKED", "export_checkpoint", "export_model", "images_of_run"]

CHECKED = 16  # images that checkpoint and exported file must answer alike


def export_checkpoint(checkpoint: str, out: Path | None, half: bool) -> Exported:
    """Export a checkpoint to `out`, by default beside it, and print what was written; see `export_onnx` for the errors."""
    file = find_checkpoint(checkpoint)
    return export_model(load_image_model(file), out or file.with_suffix(SUFFIX), half)


def export_model(model: ImageModel, out: Path, half: bool = False) -> Exported:
    """Export a model to `out`, checked on images of its run's data, and print what was written."""
    images, source = images_of_run(model)
    exported = export_onnx(model, out.expanduser(), images, half)
    print_text(
        f"exported: {shell_path(exported.path)}, {exported.size / 2**20:.1f} MB; the same classes for {source}, probabilities "
        f"differ by at most {exported.difference:.0e}"
    )
    return exported


def images_of_run(model: ImageModel) -> tuple[NDArray[np.uint8], str]:
    """Return some images uint8 [N, S, S, C] of the run's validation data, spread over it, and what they are in words.

    Where the data aren't there any more, they are noise.
    """
    side, channels = model.preprocess.size, model.preprocess.channels
    config, facts = model.metadata.config, model.metadata.data
    if config and facts.root:
        try:
            data = build_data(DatasetConfig.from_dict(config["dataset"]), facts.root, int(config["seed"]))
            samples = next(data.samples[split] for split in ("val", "test", "train") if len(data.samples[split]))
            indices = np.unique(np.linspace(0, len(samples) - 1, CHECKED).astype(np.int64))
            return read_pixels(samples, model.preprocess, indices), f"{len(indices)} of the run's images"
        except (DataError, StopIteration):
            pass
    noise = np.random.default_rng(0).integers(0, 256, (CHECKED, side, side, channels), dtype=np.uint8)
    return noise, f"{CHECKED} images of noise (the run's own data aren't here)"
