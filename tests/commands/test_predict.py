"""The command line of predictions, in this process."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.fabricate import COLOURS, composed, draw_picture

import imgclf
from imgclf.inference.inputs import list_inputs, sample_inputs
from imgclf.predict import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkpoint(tiny_run: Path) -> str:
    return str(tiny_run / "checkpoints" / "best.ckpt")


def test_the_table(checkpoint: str, colours: Path, capsys: Capture) -> None:
    assert main([checkpoint, str(colours / "test" / "red" / "000.png"), "--top", "2"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("red ") and line.count("%") == 2 and line.rstrip().endswith("000.png")


def test_bad_files_are_named_in_the_end(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    assert main([checkpoint, str(bad), str(tmp_path / "none.png"), str(colours / "test"), "--csv"]) == 1
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 15 and set(rows[0]) == {"file", "predicted", *COLOURS}
    assert [line.split(":")[1].strip() for line in err.splitlines()[:2]] == [str(bad), str(tmp_path / "none.png")]
    assert "2 of 17 pictures couldn't be read" in err


def test_json_lines(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    picture = colours / "test" / "green" / "001.png"
    assert main([checkpoint, str(picture), str(tmp_path / "none.png"), "--json", "--top", "5"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["file"] == str(picture) and first["true"] == "green" and len(first["top"]) == 3
    assert sum(entry["probability"] for entry in first["top"]) == pytest.approx(1, abs=1e-4)
    assert first["predicted"] == first["top"][0]["class"] and set(second) == {"file", "error"}


def test_a_list_on_stdin(checkpoint: str, colours: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(map(str, (colours / "test" / "blue").iterdir()))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files) + "\n\n"))
    assert main([checkpoint, "-", "--csv"]) == 0
    assert [row["file"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == files


def test_unsure(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [checkpoint, str(colours / "test"), "--csv"]
    assert main(arguments) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    best = sorted(max(float(row[name]) for name in COLOURS) for row in rows)
    assert best[7] < 1
    assert main([*arguments, "--threshold", str(best[7]), "--save-to", str(tmp_path)]) == 0
    said = [row["predicted"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert said.count("unsure") == 7
    assert len(list((tmp_path / "unsure").iterdir())) == 7


def test_copies_by_class_overwrite_nothing(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in colours.rglob("*.png")}
    for _ in range(2):
        assert main([checkpoint, str(colours / "test"), "--save-to", str(tmp_path / "sorted")]) == 0
    copies = list((tmp_path / "sorted").rglob("*.png"))
    assert len(copies) == 30 and {path.parent.name for path in copies} <= set(COLOURS)
    assert {path.read_bytes() for path in copies} == {before[path] for path in before if "test" in path.parts}
    assert {path: path.read_bytes() for path in colours.rglob("*.png")} == before
    assert "30" not in capsys.readouterr().err.splitlines()[0]  # each says what it did: 15 copies


def test_a_grid_and_maps(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    grid, maps = tmp_path / "grid.png", tmp_path / "maps"
    assert main([checkpoint, str(colours / "test"), "--grid", str(grid), "--explain", str(maps), "--sample", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with Image.open(grid) as image:
        assert image.width > image.height / 2 and np.asarray(image.convert("L")).std() > 10
    assert len(list(maps.glob("*.png"))) == 4


def test_samples_are_a_function_of_the_seed(checkpoint: str, colours: Path, capsys: Capture) -> None:
    def names(*more: str) -> list[str]:
        assert main([checkpoint, str(colours), "--csv", *more]) == 0
        return [row["file"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]

    first, again, other = names("--sample", "6"), names("--sample", "6"), names("--sample", "6", "--seed", "1")
    assert first == again != other and len(set(first)) == 6 and set(first) <= set(names())
    assert len(sample_inputs(list_inputs([str(colours)]), 1000, 0)) == 63


def test_rows_of_a_csv(run_tiny: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    """Grey rows of numbers, whose labels stand for letters, as in sign-MNIST; and a grey file of that size."""
    from support.fabricate import TINY

    from imgclf.training.run import train

    generator = np.random.default_rng(0)
    for name, count in (("sign_mnist_train", 48), ("sign_mnist_test", 20)):
        rows = [[label, *np.clip(generator.normal(40 + 80 * which, 8, 784), 0, 255).astype(int)]
                for _ in range(count // 2) for which, label in enumerate((0, 10))]  # fmt: skip
        header = ",".join(["label", *(f"pixel{n}" for n in range(1, 785))])
        text = "\r\n".join([header, *(",".join(map(str, row)) for row in rows), ""])
        (tmp_path / f"{name}.csv").write_text(text, newline="")
    tiny = [word for word in TINY if not word.startswith("dataset=")]
    folder = tmp_path / "run"
    train(composed("dataset=sign_mnist", *tiny, f"data_dir='{tmp_path}'", "trainer.max_epochs=3"), folder, [])
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    capsys.readouterr()  # what training said
    assert main([checkpoint, str(tmp_path / "sign_mnist_test.csv"), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["true"] for answer in answers] == ["A", "K"] * 10
    assert [answer["predicted"] for answer in answers] == ["A", "K"] * 10
    assert answers[0]["file"].endswith("sign_mnist_test.csv:2")
    grey = np.loadtxt(tmp_path / "sign_mnist_test.csv", delimiter=",", skiprows=1, dtype=np.uint8)[1, 1:].reshape(
        28, 28
    )
    Image.fromarray(grey).save(tmp_path / "one.png")
    assert main([checkpoint, str(tmp_path / "one.png"), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["top"][0]["probability"] == pytest.approx(answers[1]["top"][0]["probability"], abs=1e-5)
    grid = tmp_path / "grid.png"
    assert main([checkpoint, str(tmp_path / "sign_mnist_test.csv"), "--sample", "10", "--grid", str(grid)]) == 0
    with Image.open(grid) as image:
        assert image.width > 300
    (tmp_path / "broken.csv").write_text("label,pixel1\n1,x\n")
    assert main([checkpoint, str(tmp_path / "broken.csv")]) == 1
    assert "broken.csv" in capsys.readouterr().err


def test_a_film_in_place_of_a_camera(checkpoint: str, tmp_path: Path, capsys: Capture) -> None:
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for colour in ((200, 40, 40), (40, 180, 60), (40, 60, 200)):  # a second each, in RGB
        for _ in range(10):
            writer.write(np.full((32, 32, 3), colour[::-1], np.uint8))
    writer.release()
    assert main([checkpoint, "--webcam", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["red", "green", "blue"]
    assert [line.split()[-1] for line in lines] == ["00:00", "00:01", "00:02"]
    assert main([checkpoint, "--webcam", str(tmp_path / "none.avi")]) == 2
    assert capsys.readouterr().err.startswith("imgclf: --webcam")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{checkpoint}"], "no PATH is given"),
        (["{checkpoint}", "x.png", "--csv", "--json"], "not allowed with"),
        (["{checkpoint}", "x.png", "--top", "0"], "expected at least 1"),
        (["{checkpoint}", "x.png", "--weights", "w.pth"], "--weights goes with --imagenet"),
        (["{checkpoint}", "x.png", "--tta"], "names no flip that keeps the class"),
        (["--imagenet", "nosuchnet", "x.png"], "timm has no network of that name"),
        (["--imagenet", "mobilenetv2", "--weights", "nowhere.pth", "x.png"], "there is no such file"),
        (["--imagenet", "mobilenetv2", "--tta", "x.png"], "--tta needs a checkpoint"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, checkpoint: str, capsys: Capture) -> None:
    try:
        code = main([word.format(checkpoint=checkpoint) for word in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2 and message in capsys.readouterr().err


def test_mirror_images(run_tiny: Callable[..., Path], tiny_run: Path, tmp_path: Path) -> None:
    folder = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal,vertical]")
    path = folder / "checkpoints" / "best.ckpt"
    draw_picture(tmp_path / "one.png", (120, 90, 60), 7)
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    views = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    single = imgclf.load(path).predict_proba([np.ascontiguousarray(view) for view in views])
    assert np.ptp(single[:, 0]) > 1e-4  # it does tell them apart
    mean = imgclf.load(path, tta=True).predict_proba([pixels])
    assert np.allclose(mean[0], single.mean(axis=0), atol=1e-6)
    with pytest.raises(imgclf.errors.ConfigError, match="names no flip that keeps the class"):
        imgclf.load(tiny_run / "checkpoints" / "best.ckpt", tta=True)


def test_the_classes_of_imagenet(shared: Path, capsys: Capture) -> None:
    weights = shared / "weights" / "mobilenetv2_100_tfslim_in1k.safetensors"
    pictures = [str(shared / "data" / "sports" / "train" / name) for name in ("archery", "baseball", "basketball")]
    assert main(["--imagenet", "mobilenetv2", "--weights", str(weights), *pictures, "--json", "--top", "1"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for folder, name in (("archery", "bow"), ("baseball", "ballplayer"), ("basketball", "basketball")):
        found = [answer for answer in answers if f"/{folder}/" in answer["file"]]
        share = np.mean([answer["predicted"] == name for answer in found])
        assert share > 0.5, f"{folder}: {share:.0%} {name}"


def test_evaluating_with_mirror_images(run_tiny: Callable[..., Path], colours: Path, tmp_path: Path) -> None:
    from imgclf.inference.evaluate_checkpoint import evaluate

    folder = run_tiny("trainer.max_epochs=1", "dataset.flips=[horizontal]")
    path = folder / "checkpoints" / "best.ckpt"
    settings = {**composed(f"checkpoint='{path}'", "tta=true", "report=false", config="evaluate"), "typed": []}
    evaluate(settings, tmp_path / "out")
    with (tmp_path / "out" / "predictions_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = np.array([[float(row[name]) for name in sorted(COLOURS)] for row in rows])
    assert np.allclose(found, imgclf.load(path, tta=True).predict_proba([row["file"] for row in rows]), atol=1e-6)
    assert not np.allclose(found, imgclf.load(path).predict_proba([row["file"] for row in rows]), atol=1e-6)
