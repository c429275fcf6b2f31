"""Data sets for `imgclf check`, and its results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.fabricate import composed, structured

from imgclf.quality import check_data

CLASSES = ("<b>x", "cat", "dog")


def save(pixels: np.ndarray, path: Path, **options: Any) -> Path:
    """Write the pixels as an image file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def tree(root: Path, train: int = 12) -> Path:
    """Distinct images of three classes: 12 in train, 2 in valid and 2 in test of each."""
    for split, count in (("train", train), ("valid", 2), ("test", 2)):
        for target, name in enumerate(CLASSES):
            for number in range(count):
                seed = 1000 * ord(split[1]) + 100 * target + number
                save(structured(seed, 40), root / split / name / f"{number:02}.png")
    return root


def check(root: Path, folder: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code of a check of `root`, and the check.json in `folder`."""
    settings = composed("dataset=folders", f"data_dir='{root}'", "workers=0", *overrides, config="check")
    code = check_data(settings, folder)
    return code, json.loads((folder / "check.json").read_text(encoding="utf-8"))


def paths(report: dict[str, Any], kind: str) -> list[list[str]]:
    """Return the paths in each group of one kind."""
    some = [finding for finding in (*report["findings"], *report["near"]) if finding["kind"] == kind]
    return [[image["path"] for image in group["images"]] for finding in some for group in finding["groups"]]
