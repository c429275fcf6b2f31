"""Whole commands in fresh processes: help, exit codes, one line per mistake, and the wheel."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.fabricate import TINY
from support.run_files import read_json

from imgclf.__main__ import COMMANDS
from imgclf.errors import ConfigError, require_package

ROOT = Path(__file__).parents[2]


def run(command: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `imgclf <command> ...` in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "imgclf", command, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", [*COMMANDS, "--help"])
def test_help_prints_the_usage_and_writes_no_file(tmp_path: Path, command: str) -> None:
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_quietly_when_the_reader_has_seen_enough(command: str) -> None:
    words = [sys.executable, "-m", f"imgclf.{command}", "--help"]
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}  # as users have it: the pipe is met at the end
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # at once: whatever it prints meets a closed pipe
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.parametrize("command", ["predict", "cache"])
def test_help_spells_the_command_as_it_is_typed(tmp_path: Path, command: str) -> None:
    assert run(command, "--help", cwd=tmp_path).stdout.startswith(f"usage: imgclf {command} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "dataset=unknown"), "dataset=unknown: no such choice; expected one of asl_alphabet, cards"),
        (("train", "trainer.speed=3"), "trainer.speed: unknown key; --help lists all keys"),
        (("train", "optimizer.lr=fast="), "optimizer.lr"),
        (("train", "dataset=cards", "data_dir=/nowhere"), "/nowhere, which doesn't exist"),
        (("train", "data_dir=/nowhere"), "data_dir without dataset: pass dataset=folders"),
        (("evaluate", "latest", "--split", "test"), "--split: no such flag; write split=<value>"),
        (("evaluate",), "no model is given; expected one: a run's folder, a checkpoint file, or latest"),
        (("evaluate", "latest", "split=val", "other"), "latest and other came; expected one: a run's folder"),
        (("evaluate", "latest"), "latest: no run has finished here yet"),
        (("resume",), "no run is given; expected one: a run's folder"),
        (("resume", "nowhere"), "nowhere: no such file or folder; expected a run's folder"),
        (("evaluate", "checkpoint=/nowhere.ckpt"), "/nowhere.ckpt: no such file"),
        (("download",), "no dataset is given: pass dataset=<name>, one of asl_alphabet, cards"),
        (("download", "dataset=folders"), "no Kaggle handle is known"),
        (("predict", "/nowhere.ckpt", "x.jpg"), "/nowhere.ckpt: no such file"),
        (("cache", "clear", "pixels/nothing"), "holds no pixels/nothing"),
        (("trane",), "unknown command 'trane'; did you mean train?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistake_prints_one_line_and_exits_with_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_version_is_printed(tmp_path: Path) -> None:
    assert re.fullmatch(r"imgclf \d+\.\d+\.\d+\n", run("--version", cwd=tmp_path).stdout)


def test_help_into_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -m imgclf --help | true; {sys.executable} -m imgclf train --help | true"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_package_of_a_tracker_is_no_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="the package some_tracker isn't installed"):
        require_package("some_tracker", "wandb", "logger=some_tracker")


@pytest.mark.exhaustive
def test_refused_run_leaves_the_folders_that_were_there(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    folder = "mine/empty/new/run"
    done = run("train", *TINY, f"data_dir={colours}", "optimizer.name=adamwq", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mine", "empty"]


def test_refused_run_leaves_no_folder(colours: Path, tmp_path: Path) -> None:
    done = run("train", *TINY, f"data_dir={colours}", "optimizer.name=adamwq", cwd=tmp_path)
    assert done.stderr == "imgclf: optimizer.name=adamwq: timm has no such optimizer; did you mean adamw?\n"
    assert not list(tmp_path.iterdir())


def test_train_evaluate_and_predict_agree_in_fresh_processes(colours: Path, tmp_path: Path) -> None:
    trained = run("train", *TINY, f"data_dir={colours}", "trainer.max_epochs=1", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == "", "no warnings of Lightning and torch"
    assert sum(line.startswith("epoch") for line in trained.stdout.splitlines()) == 1
    (folder,) = (tmp_path / "outputs" / "folders" / "small_cnn").iterdir()
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    evaluated = run("evaluate", "latest", "split=test", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    results = [line for line in trained.stdout.splitlines() if line.startswith("test ")]
    assert results and results == [line for line in evaluated.stdout.splitlines() if line.startswith("test ")]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    predicted = run("predict", checkpoint, str(colours / "test"), str(bad), "--csv", cwd=tmp_path)
    assert predicted.returncode == 1
    first, second, third = predicted.stderr.splitlines()
    assert "bad.jpg" in first and "1 of 16 images could not be read" in second
    assert third == f"imgclf: {read_json(folder / 'metrics.json')['test']['correct']} of 15 correct"
    rows = list(csv.DictReader(io.StringIO(predicted.stdout)))
    with (folder / "predictions_test.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in expected]
    table = run("predict", checkpoint, str(colours / "test" / "red" / "000.png"), cwd=tmp_path)
    assert table.returncode == 0
    assert "000.png" in table.stdout and "%" in table.stdout


def test_wheel_holds_the_package_and_its_configs_and_trains_on_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="the wheel is built with the package `build`")
    source = tmp_path / "source"  # a copy: setuptools would take files that no longer exist from an old build/ folder
    for name in ("imgclf", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"imgclf/py.typed", "imgclf/conf/train.yaml", "imgclf/conf/dataset/cards.yaml"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "imgclf").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    # Outside the checkout, with only the wheel on the path.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    demo = ("dataset=sign_mnist", "data_dir=demo", "model=small_cnn", "image_size=28", "debug=limit", "trainer=cpu")
    done = run("train", *demo, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"), PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("predict  imgclf predict outputs/")
