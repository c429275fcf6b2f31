"""The command `imgclf predict`, run in this process."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.fabricate import COLOURS, TINY, composed

import imgclf
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.inference.inputs import InputImage, read_lines
from imgclf.inference.prediction import Prediction
from imgclf.inference.predictor import Predictor
from imgclf.inference.writers import TableWriter
from imgclf.models import ImageModel
from imgclf.names import unescaped
from imgclf.predict import main
from imgclf.training.run import train

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkpoint(tiny_run: Path) -> str:
    return str(tiny_run / "checkpoints" / "best.ckpt")


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e9", "0"])
def test_timeout_outside_its_range_is_refused(checkpoint: str, seconds: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([checkpoint, "a.png", f"--timeout={seconds}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --timeout: {seconds}: expected at least 0.1 and at most 86400" in error


LONG = "x" * 5000


@pytest.mark.trust("paths of 5,000 characters in place of every file and folder", "more than one line")
@pytest.mark.parametrize(
    "words",
    [
        ["MODEL", LONG],
        ["MODEL", "x/" * 2500],
        ["MODEL", f"{LONG}.csv"],
        [LONG, "IMAGE"],
        ["MODEL", "IMAGE", "--grid", LONG],
        ["MODEL", "IMAGE", "--save-to", LONG],
        ["MODEL", "IMAGE", "--explain", LONG],
        ["--imagenet", "mobilenetv3", "--weights", LONG, "IMAGE"],
    ],
    ids=lambda words: " ".join(word[:9] for word in words),
)
def test_a_path_of_5000_characters_is_one_line(
    words: list[str], checkpoint: str, colours: Path, capsys: Capture
) -> None:
    known = {"MODEL": checkpoint, "IMAGE": str(colours / "test" / "red" / "000.png")}
    assert main([known.get(word, word) for word in words]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("imgclf: ") and error.count("\n") == 1


def test_an_output_folder_of_5000_characters_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "imgclf",
        "train",
        "dataset=folders",
        f"data_dir={tmp_path}",
        f"hydra.run.dir={LONG}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr == f"imgclf: {LONG}: File name too long\n"
    assert list(tmp_path.iterdir()) == []


def test_table_has_the_top_classes_and_the_file_name(checkpoint: str, colours: Path, capsys: Capture) -> None:
    assert main([checkpoint, str(colours / "test" / "red" / "000.png"), "--top", "2"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("red ") and line.count("%") == 2 and line.rstrip().endswith("000.png")


def test_unreadable_images_are_listed_at_the_end_with_exit_code_1(
    checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad, missing = tmp_path / "bad.jpg", tmp_path / "none.png"
    bad.write_bytes(b"not an image")
    assert main([checkpoint, str(bad), str(missing), str(colours / "test"), "--csv"]) == 1
    out, err = capsys.readouterr()
    rows = csv_rows(out)
    assert len(rows) == 15 and set(rows[0]) == {"file", "predicted", *(f"p({name})" for name in COLOURS)}
    assert [line.split(":")[1].strip() for line in err.splitlines()[:2]] == [str(bad), str(missing)]
    assert "2 of 17 images could not be read" in err


def test_table_has_no_line_for_an_unreadable_image(checkpoint: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([checkpoint, str(tmp_path / "none.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "none.png" in err


def test_json_has_one_object_per_image_and_an_error_object_for_an_unreadable_one(
    checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = colours / "test" / "green" / "001.png"
    assert main([checkpoint, str(image), str(tmp_path / "none.png"), "--json", "--top", "5"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"file", "predicted", "probability", "top", "true"}
    assert first["file"] == str(image) and first["true"] == "green" and len(first["top"]) == 3
    assert sum(entry["probability"] for entry in first["top"]) == pytest.approx(1, abs=1e-4)
    assert first["predicted"] == first["top"][0]["class"] and first["probability"] == first["top"][0]["probability"]
    assert set(second) == {"file", "error"}


def test_dash_reads_the_paths_from_stdin(
    checkpoint: str, colours: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, (colours / "test" / "blue").iterdir()))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files) + "\n\n"))
    assert main([checkpoint, "-", "--csv"]) == 0
    assert [row["file"] for row in csv_rows(capsys.readouterr().out)] == files


@pytest.mark.parametrize("kind", [pytest.param("terminal", marks=pytest.mark.exhaustive), "pipe"])
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="POSIX terminals")
def test_dash_answers_each_line_before_the_next_one_comes(
    kind: str, checkpoint: str, colours: Path, tmp_path: Path
) -> None:
    red = tmp_path / "it's a red one.png"
    shutil.copy(colours / "test" / "red" / "000.png", red)
    ours, theirs = os.openpty() if kind == "terminal" else os.pipe()[::-1]
    words = [sys.executable, "-m", "imgclf.predict", checkpoint, "-", "--top", "1", *(["--csv"] * (kind == "pipe"))]
    pipes = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes, env={**os.environ, "PYTHONUNBUFFERED": ""}) as process:
        os.close(theirs)
        assert process.stdout and process.stderr
        if kind == "pipe":
            assert process.stdout.readline().startswith("file,predicted")
        else:
            hint = process.stderr.readline()
            assert hint == "imgclf: paste a path or a link, then Enter; Ctrl-D ends\n"
        for line in (red, f'"{red}" ', red.as_uri(), str(red).replace(" ", "\\ ").replace("'", "\\'")):
            os.write(ours, f"{line}\n".encode())
            answer = process.stdout.readline()
            assert "red" in answer and str(red) in answer
        os.write(ours, b"nothing.png\n\n")
        assert process.stderr.readline().startswith("imgclf: nothing.png: ")
        os.write(ours, f"{colours / 'test' / 'blue' / '001.png'}\n".encode())
        assert "blue" in process.stdout.readline()
        os.write(ours, b"\x04" if kind == "terminal" else b"last.png")
        if kind == "pipe":
            os.close(ours)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and rest == ""
    *last, summary = errors.splitlines()
    assert [line.partition(": can't")[0] for line in last] == ["imgclf: last.png"] * (kind == "pipe")
    assert summary == f"imgclf: {1 + len(last)} of {6 + len(last)} images could not be read"


def test_lines_that_are_there_are_taken_together(colours: Path) -> None:
    paths = [f"{number:05}.png" for number in range(3000)]
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        writer = threading.Thread(target=lambda: (os.write(writing, "\n".join(paths).encode()), os.close(writing)))
        writer.start()
        groups = list(read_lines(stream))
        writer.join()
    assert [path for group in groups for path in group] == paths and len(groups) < 20


def test_labelled_folders_end_with_the_number_of_correct_predictions(
    checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(colours / "test", tmp_path / "test")
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "holiday")
    shutil.copy(tmp_path / "test" / "holiday" / "000.png", tmp_path / "test" / "blue" / "red.png")  # labelled wrongly
    for kind in ("--csv", "--json"):
        assert main([checkpoint, str(tmp_path / "test"), kind]) == 0
        out, err = capsys.readouterr()
        assert err == "imgclf: 10 of 11 correct (5 whose folder is not a class are not judged)\n"
        assert len(out.splitlines()) == 16 + (kind == "--csv")
    assert main([checkpoint, str(tmp_path / "test" / "holiday")]) == 0
    assert capsys.readouterr().err == ""
    assert main([checkpoint, str(tmp_path / "test" / "blue"), "--threshold", "1"]) == 0
    assert capsys.readouterr().err == "imgclf: 0 of 6 correct, 6 unsure\n"


def test_lines_that_are_no_names_are_refused_one_by_one(
    checkpoint: str, colours: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = str(colours / "test" / "red" / "000.png")
    lines = ["x" * 300, "~nouser/x.jpg", f"data:image/png;base64,{'A' * 5000}", f"{'x' * 260}.csv", red]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main([checkpoint, "-", "--csv"]) == 1
    out, err = capsys.readouterr()
    assert [row["file"] for row in csv_rows(out)] == [red]
    *errors, summary = err.splitlines()
    assert [error.removeprefix("imgclf: ").startswith(line) for error, line in zip(errors, lines, strict=False)] == [
        True
    ] * 4 and summary == "imgclf: 4 of 5 images could not be read"
    assert main([checkpoint, "x" * 300]) == 1
    assert main(["x" * 300, red]) == 2 and main(["~nouser/m", red]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["", "--csv", "--json"])
def test_a_name_that_is_no_text_is_printed_on_a_strict_stdout(
    kind: str, checkpoint: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(colours / "test" / "red" / "000.png"), path)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "utf-8", errors="strict"))
    assert main([checkpoint, os.fsdecode(path), *filter(None, [kind])]) == 0
    written = buffer.getvalue()
    if kind == "--csv":
        (row,) = csv_rows(written.decode())
        assert row["file"] == f"{tmp_path}/caf\\xe9.png" and unescaped(row["file"]) == os.fsdecode(path)
    elif kind == "--json":
        assert json.loads(written)["file"] == os.fsdecode(path)
    else:
        assert rb"caf\xe9.png" in written


CARDS = ("queen of diamonds", "jack of diamonds", "ace of hearts", "joker")


@pytest.mark.parametrize(("columns", "threshold"), [(80, 0.0), (80, 0.5), (60, 0.0)])
@pytest.mark.parametrize("top", [1, 3, 9])
def test_table_fits_the_terminal_and_is_whole_elsewhere(
    top: int, columns: int, threshold: float, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "/home/someone/pictures/of/cards/queen of diamonds/001.jpg"
    chances = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    predictions = [Prediction(InputImage(name, name, true), chances, None, None, CARDS) for true in (None, *CARDS[:2])]
    for prediction in predictions:
        TableWriter(CARDS, top, threshold).write(prediction)
    whole = capsys.readouterr().out.splitlines()
    assert all(name in line and "queen of diamonds" in line for line in whole)
    assert whole[2].endswith("001.jpg   (is jack of diamonds)") and whole[0].count("%") == min(top, 4)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    writer = TableWriter(CARDS, top, threshold)
    for prediction in predictions:
        writer.write(prediction)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns, lines
    for line in lines:
        assert "001.jpg" in line and "50.0%" in line and "diamonds " in line and "…" in line
    assert lines[2].endswith("diamonds)") and "(is jac" in lines[2]
    if top == 3 and columns == 80 and not threshold:
        assert lines[0].count("%") == 3


def test_predictions_below_the_threshold_are_unsure(
    checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [checkpoint, str(colours / "test"), "--csv"]
    assert main(arguments) == 0
    highest = sorted(max(float(row[f"p({name})"]) for name in COLOURS) for row in csv_rows(capsys.readouterr().out))
    assert highest[7] < 1
    assert main([*arguments, "--threshold", str(highest[7]), "--save-to", str(tmp_path)]) == 0
    predicted = [row["predicted"] for row in csv_rows(capsys.readouterr().out)]
    assert predicted.count("unsure") == 7
    assert len(list((tmp_path / "unsure").iterdir())) == 7


def test_copies_sorted_by_class_overwrite_nothing(
    checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in colours.rglob("*.png")}
    for _ in range(2):
        assert main([checkpoint, str(colours / "test"), "--save-to", str(tmp_path / "sorted")]) == 0
    copies = list((tmp_path / "sorted").rglob("*.png"))
    assert len(copies) == 30 and {path.parent.name for path in copies} <= set(COLOURS)
    assert {path.read_bytes() for path in copies} == {before[path] for path in before if "test" in path.parts}
    assert {path: path.read_bytes() for path in colours.rglob("*.png")} == before
    summaries = capsys.readouterr().err.splitlines()
    assert all(line.endswith("sorted: 15 copies, sorted by class") for line in summaries[::2])
    assert all(line.endswith(" of 15 correct") for line in summaries[1::2]) and len(summaries) == 4


def test_grid_and_saliency_maps_are_written(checkpoint: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    grid, maps = tmp_path / "grid.png", tmp_path / "maps"
    assert main([checkpoint, str(colours / "test"), "--grid", str(grid), "--explain", str(maps), "--sample", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with Image.open(grid) as image:
        assert image.width > image.height / 2 and np.asarray(image.convert("L")).std() > 10
    names = sorted(path.name for path in maps.iterdir())
    pattern = re.compile(rf"({'|'.join(COLOURS)})_([01]\.\d\d)__00\d\.png(-\d)?\.png")
    assert len(names) == 4 and all(pattern.fullmatch(name) for name in names), names
    main([checkpoint, str(colours / "test" / "red" / "000.png"), "--explain", str(tmp_path / "one"), "--json"])
    known = json.loads(capsys.readouterr().out)
    (path,) = (tmp_path / "one").iterdir()
    assert path.name == f"{known['predicted']}_{known['probability']:.2f}__000.png.png"


def test_maps_of_files_of_one_name_and_of_very_long_names_are_kept_apart(
    checkpoint: str, colours: Path, tmp_path: Path
) -> None:
    images = [tmp_path / folder / f"{'é' * 110} #?{number}.png" for folder in "ab" for number in (1, 2)]
    for image in images:
        image.parent.mkdir(exist_ok=True)
        image.write_bytes((colours / "test" / "red" / "000.png").read_bytes())
    assert main([checkpoint, str(tmp_path), "--explain", str(tmp_path / "maps")]) == 0
    names = [path.name for path in (tmp_path / "maps").iterdir()]
    assert len(names) == 4 and all(len(name.encode()) <= 255 and re.fullmatch(r"[\w.#-]+", name) for name in names)


def test_sample_depends_on_the_seed_only(checkpoint: str, colours: Path, capsys: Capture) -> None:
    def names(*options: str) -> list[str]:
        assert main([checkpoint, str(colours), "--csv", *options]) == 0
        return [row["file"] for row in csv_rows(capsys.readouterr().out)]

    first, again, other = names("--sample", "6"), names("--sample", "6"), names("--sample", "6", "--seed", "1")
    assert first == again != other and len(set(first)) == 6 and set(first) <= set(names())


def write_pixel_csv(path: Path, count: int) -> None:
    """Write `count` grey images of 28 x 28 like sign-MNIST's: dark ones labelled 0 (A), bright ones 10 (K), in turn."""
    generator = np.random.default_rng(0)
    lines = [",".join(["label", *(f"pixel{number}" for number in range(1, 785))])]
    for row in range(count):
        pixels = np.clip(generator.normal(120 if row % 2 else 40, 8, 784), 0, 255).astype(int)
        lines.append(",".join(map(str, [10 if row % 2 else 0, *pixels])))
    path.write_text("\r\n".join([*lines, ""]), newline="")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The checkpoint of a run on CSV rows, and the folder of the CSV files."""
    folder = tmp_path_factory.mktemp("letters")
    write_pixel_csv(folder / "sign_mnist_train.csv", 48)
    write_pixel_csv(folder / "sign_mnist_test.csv", 20)
    tiny = [word for word in TINY if not word.startswith("dataset=")]
    settings = composed("dataset=sign_mnist", *tiny, f"data_dir='{folder}'", "trainer.max_epochs=3")
    train(settings, folder / "run", [])
    return str(folder / "run" / "checkpoints" / "best.ckpt"), folder


def test_csv_rows_are_predicted_with_their_letters_as_true_classes(
    letters: tuple[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    checkpoint, folder = letters
    rows = folder / "sign_mnist_test.csv"
    assert main([checkpoint, str(rows), "--json"]) == 0
    predictions = json_lines(capsys.readouterr().out)
    assert [prediction["true"] for prediction in predictions] == ["A", "K"] * 10
    assert [prediction["predicted"] for prediction in predictions] == ["A", "K"] * 10
    assert str(predictions[0]["file"]).endswith("sign_mnist_test.csv:2")
    grid = tmp_path / "grid.png"
    assert main([checkpoint, str(rows), "--sample", "10", "--grid", str(grid)]) == 0
    with Image.open(grid) as image:
        assert image.width > 300


def test_grey_file_and_csv_row_of_the_same_pixels_get_the_same_probability(
    letters: tuple[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    checkpoint, folder = letters
    table = np.loadtxt(folder / "sign_mnist_test.csv", delimiter=",", skiprows=1, dtype=np.uint8)
    Image.fromarray(table[1, 1:].reshape(28, 28)).save(tmp_path / "one.png")
    assert main([checkpoint, str(folder / "sign_mnist_test.csv"), str(tmp_path / "one.png"), "--json"]) == 0
    predictions = json_lines(capsys.readouterr().out)
    assert predictions[-1]["probability"] == pytest.approx(predictions[1]["probability"], abs=1e-5)


def test_broken_csv_is_an_unreadable_image(letters: tuple[str, Path], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "broken.csv").write_text("label,pixel1\n1,x\n")
    assert main([letters[0], str(tmp_path / "broken.csv")]) == 1
    assert "broken.csv" in capsys.readouterr().err


@pytest.fixture
def film(tmp_path: Path) -> str:
    """A video of one second each of red, green and blue."""
    path = str(tmp_path / "film.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for rgb in ((200, 40, 40), (40, 180, 60), (40, 60, 200)):
        for _ in range(10):
            video.write(np.full((32, 32, 3), rgb[::-1], np.uint8))
    video.release()
    return path


def test_webcam_predicts_one_frame_per_second_of_a_video(checkpoint: str, film: str, capsys: Capture) -> None:
    assert main([checkpoint, "--webcam", film]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["red", "green", "blue"]
    assert [line.split()[-1] for line in lines] == ["00:00", "00:01", "00:02"]
    assert main([checkpoint, "--webcam", film, "--csv"]) == 0
    assert [row["predicted"] for row in csv_rows(capsys.readouterr().out)] == ["red", "green", "blue"]


def test_webcam_that_does_not_exist_exits_with_2(checkpoint: str, tmp_path: Path, capsys: Capture) -> None:
    assert main([checkpoint, "--webcam", str(tmp_path / "none.avi")]) == 2
    assert capsys.readouterr().err.startswith("imgclf: --webcam")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv"], "no model is given: pass a run's folder"),
        (["{checkpoint}"], "no PATH is given"),
        (["a.JPG", "b.jpg"], "a.JPG: an image; the model comes first: imgclf predict latest a.JPG"),
        (["--imagenet", "mobilenetv2"], "no PATH is given"),
        (["{checkpoint}", "x.png", "--csv", "--json"], "not allowed with"),
        (["{checkpoint}", "x.png", "--top", "0"], "expected at least 1"),
        (["{checkpoint}", "x.png", "--device", "nonsense"], "device nonsense: no such device"),
        (["{checkpoint}", "x.png", "--device", "meta"], "device meta: not supported; expected auto, cpu, cuda"),
        (["{checkpoint}", "x.png", "--device", "xpu"], "device xpu: "),
        (["{checkpoint}", "x.png", "--device", "cuda:77"], "device cuda:77: "),
        (["{checkpoint}", "x.png", "--device", "cuda:x"], "device cuda:x: no such device"),
        (["{checkpoint}", "x.png", "--weights", "w.pth"], "--weights goes with --imagenet"),
        (["{checkpoint}", "x.png", "--tta"], "names no flip that keeps the class"),
        (["--imagenet", "nosuchnet", "x.png"], "timm has no network of that name"),
        (["--imagenet", "mobilenetv2", "--weights", "nowhere.pth", "x.png"], "no such file"),
        (["--imagenet", "mobilenetv2", "--tta", "x.png"], "--tta needs a checkpoint"),
    ],
)
def test_wrong_options_exit_with_2_and_a_message(
    arguments: list[str], message: str, checkpoint: str, capsys: Capture
) -> None:
    try:
        code = main([word.format(checkpoint=checkpoint) for word in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2 and message in capsys.readouterr().err


def test_imagenet_weights_name_what_sports_images_show(shared: Path, capsys: Capture) -> None:
    weights = shared / "weights" / "mobilenetv2_100_tfslim_in1k.safetensors"
    expected = {"archery": "bow", "baseball": "ballplayer", "basketball": "basketball"}
    folders = [str(shared / "data" / "sports" / "train" / name) for name in expected]
    assert main(["--imagenet", "mobilenetv2", "--weights", str(weights), *folders, "--json", "--top", "1"]) == 0
    predictions = json_lines(capsys.readouterr().out)
    assert all(("true" in one) == ("/archery/" not in str(one["file"])) for one in predictions), (
        "ImageNet lacks archery"
    )
    for folder, name in expected.items():
        predicted = [one["predicted"] for one in predictions if f"/{folder}/" in str(one["file"])]
        assert predicted.count(name) > len(predicted) / 2, f"{folder}: {predicted}"


@pytest.mark.parametrize("option", ["--save-to", "--grid"])
def test_image_that_vanishes_after_it_was_predicted_is_named_and_the_others_are_written(
    tiny_run: Path,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    images = shutil.copytree(colours / "test" / "red", tmp_path / "red")
    gone = images / "002.png"
    stream = Predictor.predict_each

    def vanishing(self: Predictor, *args: Any) -> Any:
        for number, prediction in enumerate(stream(self, *args)):
            if number == 2:
                gone.unlink()
            yield prediction

    monkeypatch.setattr(Predictor, "predict_each", vanishing)
    place = tmp_path / ("sorted" if option == "--save-to" else "grid.png")
    assert main([str(tiny_run), str(images), option, str(place)]) == 1
    out, err = capsys.readouterr()
    assert sum(".png" in line for line in out.splitlines()) == 5, "the answers for all images"
    assert err.count("002.png: ") == 1 and "No such file" in err and "Traceback" not in err
    if option == "--save-to":
        assert sorted(path.name for path in place.glob("*/*.png")) == ["000.png", "001.png", "003.png", "004.png"]
    else:
        assert f"{place}: 4 images" in err


def test_options_stand_between_and_after_paths(checkpoint: str, colours: Path, capsys: Capture) -> None:
    first, second = (str(colours / "test" / name / "000.png") for name in ("red", "blue"))
    outputs = []
    for words in (
        ["--csv", "--top", "2", checkpoint, first, second],
        [checkpoint, "--top", "2", first, "--csv", second],
        [checkpoint, "--csv", first, second, "--top=2"],
        ["--top", "2", "--csv", "--", checkpoint, first, second],
        [checkpoint, "--csv", first, "--top", "2", "--", second],
    ):
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1 and [row["file"] for row in csv_rows(outputs[0])] == [first, second]
    with pytest.raises(SystemExit):
        main([checkpoint, "--tpo", "2", first])
    message = "imgclf: --tpo: no such option; did you mean --top? (imgclf predict --help lists the options)\n"
    assert capsys.readouterr().err == message


@pytest.mark.trust(
    "networks whose outputs are NaN or infinite, in predict, evaluate and Python", "an answer, or exit code 0"
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_an_error_that_names_the_image(
    value: float, checkpoint: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    forward = ImageModel.forward

    def broken(self: ImageModel, images: torch.Tensor) -> torch.Tensor:
        logits = forward(self, images)
        is_red = images[:, 0].float().mean(dim=(1, 2)) > 120  # of the three colours
        logits[is_red, 0] = value
        return logits

    monkeypatch.setattr(ImageModel, "forward", broken)
    red, blue = (str(colours / "test" / name / "000.png") for name in ("red", "blue"))
    why = "the network's outputs aren't finite for this image"
    for option in ("--csv", "--json", "--threshold=0"):
        assert main([checkpoint, red, blue, option]) == 1
        out, err = capsys.readouterr()
        error, summary, *_ = err.splitlines()
        assert error.startswith(f"imgclf: {red}: {why}; use another checkpoint")
        assert summary == "imgclf: 1 of 2 images could not be classified"
        assert blue in out and (option == "--json" or red not in out)
    predictor = imgclf.load(checkpoint)
    for predict in (predictor.predict, predictor.predict_one, predictor.predict_proba):
        with pytest.raises(imgclf.ImageError, match=why):
            predict(red)
    answers = predictor.predict([blue, red], errors="return")
    assert answers[0] == "blue" and isinstance(answers[1], imgclf.ImageError)
    assert np.isnan(predictor.predict_proba([red], errors="return")).all()
    settings = composed(f"checkpoint='{checkpoint}'", "device=cpu", config="evaluate")
    with pytest.raises(imgclf.RunError, match=rf"/red/000\.png: {why} and 4 others; use another checkpoint"):
        evaluate_checkpoint(settings, tmp_path / "evaluation")
