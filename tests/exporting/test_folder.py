"""An exported folder answers as imgclf does, where nothing of imgclf is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import imgclf
from imgclf.export import main
from imgclf.exporting.card import model_card
from imgclf.exporting.standalone import Classifier
from imgclf.models.exported import METADATA_KEY

Capture = pytest.CaptureFixture[str]
# As an environment that holds onnxruntime, Pillow and NumPy alone: any other package can't be imported.
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "imgclf", "cv2", "yaml", "onnx", "scipy", "rich", "matplotlib"):
            raise ImportError(f"{name} isn't installed")
sys.meta_path.insert(0, Refuse())
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's classifier as a folder."""
    path = tmp_path_factory.mktemp("exported") / "colours"
    assert main([str(tiny_run), "--folder", str(path)]) == 0
    return path


def test_folder_runs_without_imgclf(folder: Path, colours: Path, tmp_path: Path) -> None:
    image, bad = colours / "test" / "red" / "000.png", tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    words = [sys.executable, "-c", ALONE, str(folder / "predict.py"), str(image), str(bad), str(tmp_path / "none.png")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 1 and done.stdout.startswith("red ") and done.stdout.count("\n") == 1, done.stderr
    assert done.stderr.count("\n") == 2 and "Traceback" not in done.stderr
    assert (folder / "requirements.txt").read_text().count("\n") == 3


def test_its_answers_are_imgclfs(folder: Path, tiny_run: Path, colours: Path) -> None:
    images = sorted((colours / "test").rglob("*.png"))
    actual = Classifier(folder / "model.onnx").probabilities(images)
    np.testing.assert_allclose(actual, imgclf.load(tiny_run).predict_proba(images), atol=1e-5)


def modes() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    turned = rgb.copy()
    turned.info["exif"] = exif.tobytes()
    return {
        "rgb.png": rgb,
        "turned.jpg": turned,
        "grey.png": rgb.convert("L"),
        "palette.png": rgb.quantize(16),
        "alpha.png": Image.fromarray(rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)),
        "grey_alpha.png": rgb.convert("LA"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "sixteen.png": Image.fromarray(rng.integers(0, 65536, (20, 60), dtype=np.uint16)),
        "one_bit.png": rgb.convert("1"),
    }


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_it_sees_the_pixels_that_imgclf_sees(folder: Path, tmp_path: Path, resize: str) -> None:
    from imgclf.images import read_image
    from imgclf.preprocess import Preprocess

    classifier = Classifier(folder / "model.onnx")
    for channels in (1, 3):
        preprocess = Preprocess(size=24, resize=resize, mean=(0.4,) * channels, std=(0.2,) * channels)
        classifier.preprocess = preprocess.to_dict()
        for name, image in modes().items():
            path = tmp_path / name
            image.save(path, **({"exif": image.info["exif"]} if "exif" in image.info else {}))
            difference = classifier.pixels(path).astype(int) - read_image(path, preprocess)
            assert np.abs(difference).max() <= 1, name


def test_nothing_in_it_names_this_machine(folder: Path, tiny_run: Path, colours: Path) -> None:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for private in (tiny_run, colours, Path.home(), Path(imgclf.__file__).parent):
            assert str(private).encode() not in data or len(private.parts) < 3, path.name
    facts = json.loads(
        {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}[METADATA_KEY]
    )
    assert facts["metadata"].keys() == {"data", "metrics", "temperature"}


def test_the_card_says_how_accurate_it_is(folder: Path, tiny_run: Path) -> None:
    card = (folder / "README.md").read_text()
    metrics = json.loads((tiny_run / "metrics.json").read_text())["test"]
    assert f"| test | {int(metrics['correct'])} of {int(metrics['count'])} | {metrics['accuracy']:.1%} | " in card
    assert "blue, green, red" in card and "state it here" in card and "pip install -r requirements.txt" in card


def test_the_card_of_a_model_that_was_never_measured() -> None:
    facts = {
        "classes": [f"class {number}" for number in range(70)],
        "preprocess": {"size": 32},
        "backbone": "small_cnn",
        "version": "0.1.0",
        "licence": "CC0-1.0",
        "metadata": {"data": {"name": "", "counts": {}}, "metrics": {}, "temperature": 1.0},
    }
    matrix = np.zeros((70, 70), dtype=np.int64)
    matrix[3, 5] = 2
    card = model_card(facts, {"model.onnx": "the classifier."}, (facts["classes"], matrix))
    assert "holds no measurement" in card and "class 59 and 10 more" in card and "licence is CC0-1.0" in card
    assert "| class 3 | class 5 | 2 |" in card


def test_a_folder_that_holds_anything_is_refused(tiny_run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert main([str(tiny_run), "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "it isn't empty" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(SystemExit):
        main([str(tiny_run), "--folder", "a", "--out", "b.onnx"])
