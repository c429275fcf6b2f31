"""Whole commands in fresh processes: one line for a mistake, exit codes, the wheel."""

import csv
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.fabricate import TINY

ROOT = Path(__file__).parents[2]


def run(
    *arguments: str, cwd: Path, timeout_seconds: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m imgclf...` as a user would."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True,
                          timeout=timeout_seconds, env={**os.environ, **environment})  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["imgclf.train", "imgclf.evaluate", "imgclf.download", "imgclf.predict", "imgclf.compare", "imgclf.cli.main"],
)
def test_help(tmp_path: Path, command: str) -> None:
    answer = run(command, "--help", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imgclf.train", "dataset=unknown"), "Could not find 'dataset/unknown'"),
        (("imgclf.train", "trainer.speed=3"), "Could not override 'trainer.speed'"),
        (("imgclf.train", "optimizer.lr=fast="), "optimizer.lr"),
        (("imgclf.train", "data_dir=/nowhere"), "/nowhere, which doesn't exist"),
        (("imgclf.evaluate",), "checkpoint"),
        (("imgclf.evaluate", "checkpoint=/nowhere.ckpt"), "/nowhere.ckpt: no such file"),
        (("imgclf.download", "dataset=folders"), "no Kaggle handle is known"),
        (("imgclf.predict", "/nowhere.ckpt", "x.jpg"), "/nowhere.ckpt: no such file"),
        (("imgclf.cli.main", "trane"), "'trane' is no command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_and_a_non_zero_exit(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    answer = run(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert message in answer.stderr
    assert answer.stdout == ""


def test_train_evaluate_and_predict_from_the_shell(colours: Path, tmp_path: Path) -> None:
    answer = run("imgclf.cli.main", "train", *TINY, f"data_dir={colours}", "trainer.max_epochs=1", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""  # none of the noise that this stack is known for
    assert sum(line.startswith("epoch") for line in answer.stdout.splitlines()) == 1
    (folder,) = (tmp_path / "outputs" / "folders" / "small_cnn").iterdir()
    checkpoint = folder / "checkpoints" / "best.ckpt"
    evaluated = run("imgclf.evaluate", f"checkpoint={checkpoint}", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    wanted = [line for line in answer.stdout.splitlines() if line.startswith("test ")]
    assert wanted and wanted == [line for line in evaluated.stdout.splitlines() if line.startswith("test ")]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    predicted = run("imgclf.predict", str(checkpoint), str(colours / "test"), str(bad), "--csv", cwd=tmp_path)
    assert predicted.returncode == 1
    first, second = predicted.stderr.splitlines()
    assert "bad.jpg" in first and "1 of 16 pictures couldn't be read" in second
    rows = list(csv.DictReader(io.StringIO(predicted.stdout)))
    with (folder / "predictions_test.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in expected]
    table = run("imgclf.predict", str(checkpoint), str(colours / "test" / "red" / "000.png"), cwd=tmp_path)
    assert table.returncode == 0
    assert "000.png" in table.stdout and "%" in table.stdout


def test_the_wheel_carries_all_that_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="the wheel is built with the package `build`")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"imgclf/py.typed", "imgclf/conf/train.yaml", "imgclf/conf/dataset/cards.yaml"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "imgclf").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    # Installed outside the checkout, with nothing but the wheel on the path, it draws the demo and trains on it.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    answer = run("imgclf.train", "dataset=sign_mnist", "data_dir=demo", "model=small_cnn", "image_size=28", "debug=limit",
                 "trainer=cpu", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"), PYTHONSAFEPATH="1")  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "everything is in" in answer.stdout
