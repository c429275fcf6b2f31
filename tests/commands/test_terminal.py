"""What a terminal of 80 columns shows while a network is trained: recorded in a pseudo-terminal."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.fabricate import COLOURS, TINY, draw_image

from imgclf.report.summary import print_metrics
from imgclf.report.tables import per_class_table

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal needs a POSIX system", allow_module_level=True)

from support.terminal import Recording, record

BAR = "━"
LONG = "a class with a name that is much longer than any column of a table"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images of three classes, one of them with a long name."""
    folder = tmp_path_factory.mktemp("terminal")
    for split, count in {"train": 40, "valid": 12, "test": 5}.items():
        for name, colour in zip((LONG, "green", "red"), COLOURS.values(), strict=True):
            for number in range(count):
                draw_image(folder / "data" / split / name / f"{number}.png", colour, number)
    return folder


@pytest.fixture(scope="module")
def recorded(work: Path) -> Recording:
    """A run of two epochs on features that are computed once, of images that are prepared once."""
    words = [text for text in TINY if not text.startswith("report")]
    words += ["data_dir=data", "model.freeze=all", "engine=eager", "report=true", "hydra.run.dir=my runs/one"]
    return record([sys.executable, "-m", "imgclf.train", *words], work, {"IMGCLF_CACHE": str(work / "cache")})


@pytest.mark.exhaustive
def test_no_line_of_a_run_is_wider_than_the_terminal_but_its_paths(recorded: Recording) -> None:
    assert recorded.code == 0, recorded.screen.text()
    assert [line for line in recorded.screen.wrapped if "/" not in line] == []
    assert all(len(line.split()) <= 3 for line in recorded.screen.wrapped), "a path on a line of its own"


def test_one_progress_line_is_shown_at_a_time_and_none_stays(recorded: Recording) -> None:
    bars = [[line for line in frame if BAR in line and " of " in line] for frame in recorded.frames]
    assert max(map(len, bars)) == 1
    assert not [line for line in recorded.screen.text() if BAR in line and " of " in line]
    shown = list(dict.fromkeys(re.sub(r": .*", "", lines[0]) for lines in bars if lines))
    assert shown == [
        "computing features, once",
        "epoch 1 of 2, batch",
        "epoch 1 of 2, validation batch",
        "epoch 2 of 2, batch",
        "epoch 2 of 2, validation batch",
    ]
    assert any("computing features, once: 0 of 120" in line for lines in bars for line in lines)


def test_a_run_ends_in_its_model_its_report_and_a_command_that_predicts(recorded: Recording, work: Path) -> None:
    lines = recorded.screen.text()
    start = next(index for index, line in enumerate(lines) if line.startswith("model  "))
    text = "".join(lines[start:])  # a wrapped line is one line
    model, report, predict = re.fullmatch(r"model    (.*)report   (.*)predict  (.*)", text).groups()  # type: ignore[union-attr]
    assert (work / shlex.split(model)[0]).is_file()
    assert report == (work / "my runs" / "one" / "report.html").as_uri()
    shutil.copy(work / "data" / "test" / "red" / "0.png", work / "image.jpg")
    command = [sys.executable, "-m", *shlex.split(predict)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0 and "image.jpg" in done.stdout, done.stderr


def test_the_heading_of_the_table_names_split_and_classes_without_a_colon(recorded: Recording) -> None:
    assert "test, by class" in recorded.screen.text()
    assert any(line.startswith("│ a class with a name") and "…" in line for line in recorded.screen.text())


def test_epochs_are_a_table_whose_rows_count_from_1(recorded: Recording) -> None:
    lines = recorded.screen.text()
    heading = next(index for index, line in enumerate(lines) if line.split()[:2] == ["train", "loss"])
    first, second = (line for line in lines[heading:] if line.startswith("epoch"))
    assert first.startswith("epoch   1/2") and first.endswith("best") and second.startswith("epoch   2/2")


def test_tables_of_100_classes_and_of_many_images_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    matrix = np.full((100, 100), 10_000)
    Console(file=stream, width=80).print(per_class_table([f"{number} {LONG}" for number in range(100)], matrix))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 108 and {len(line) for line in lines} == {80}, "one line for each class"
    values = {"correct": 999_999, "count": 1_000_000, "accuracy": 1.0, "top5": 1.0, "macro_f1": 1.0, "loss": 123.4567}
    calibrated = {"temperature": 10.0, "calibrated_loss": 10.0, "ece": 1.0, "calibrated_ece": 1.0}
    print_metrics({"train": values, "val": values | calibrated, "test": values})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and max(map(len, printed)) <= 80
    assert printed[3].split() == ["test", "999,999", "of", "1,000,000", "100.00%", "100.00%", "1.0000", "123.4567"]


@pytest.mark.exhaustive
def test_a_sweep_shows_the_running_trial_in_one_line_and_a_line_for_each(work: Path) -> None:
    words = [*TINY, "trainer.max_epochs=1", "data_dir=data", "hydra.sweep.dir=sweep", "seed=0,1"]
    command = [sys.executable, "-m", "imgclf.train", "-m", *words]
    recorded = record(command, work, {"IMGCLF_CACHE": str(work / "cache")})
    assert recorded.code == 0, recorded.screen.text()
    bars = [[line for line in frame if BAR in line and " of " in line] for frame in recorded.frames]
    assert max(map(len, bars)) == 1
    shown = list(dict.fromkeys(re.sub(r": .*", "", lines[0]) for lines in bars if lines))
    assert shown == ["trial 1 of 2, epochs", "trial 2 of 2, epochs"]
    assert [line for line in recorded.screen.wrapped if "/" not in line] == []
    first, second = (line for line in recorded.screen.text() if line.startswith("["))
    assert first.startswith("[1/2] seed=0: val_accuracy ") and second.startswith("[2/2] seed=1: val_accuracy ")
