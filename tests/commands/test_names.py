"""Names that are no text, that a terminal obeys, or that are long: printed, written, read back and made into file names."""

import ast
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.fabricate import ROOT
from support.odd_names import NAMES
from support.run_files import read_json

import imgclf
from imgclf.console import print_line, print_lines_to_copy, print_message, print_table, print_text, shell_quoted
from imgclf.data.manifest import read_exclusion
from imgclf.errors import DataError, ImageError
from imgclf.fetch import fetch_image
from imgclf.files import write_atomically
from imgclf.files.model_file import read_file
from imgclf.files.run_folder import RunLock, create_run_folder
from imgclf.names import as_json, escaped, file_name, printable, unescaped
from imgclf.report.tables import original_text

if sys.platform == "win32":
    pytest.skip("Windows takes only names that are text", allow_module_level=True)

OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "C.UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
    "cp1252": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_escaped_names_are_safe_distinct_and_give_the_name_back(encoding: str) -> None:
    written = [escaped(name, encoding) for name in NAMES]
    assert len(NAMES) >= 55 and len(set(written)) == len(NAMES)
    for name, text in zip(NAMES, written, strict=True):
        assert unescaped(text) == name and text.encode(encoding) and not OBEYED.search(text)
        assert printable(text) == text and not OBEYED.search(printable(name)) and "\n" not in printable(name)
    generator = np.random.default_rng(0)
    letters = list("\\xu0aAfF1\udce9\n\u202e中é😀\x7fU")
    for _ in range(5000):
        name = "".join(generator.choice(letters, generator.integers(0, 10)))
        assert unescaped(escaped(name, encoding)) == name


def test_names_stay_as_they_are_where_nothing_needs_an_escape() -> None:
    assert escaped(r"C:\data\red 1.jpg") == r"C:\data\red 1.jpg" and escaped("Größe") == "Größe"
    assert printable("caf\udce9 \x1b[31m \u202e") == r"caf\xe9 \x1b[31m \u202e"
    assert escaped(r"caf\xe9") == r"caf\\xe9" and escaped("Größe", "ascii") == r"Gr\u00f6\u00dfe"


def test_json_yaml_and_checkpoints_hold_every_name_exactly(tmp_path: Path) -> None:
    for ascii_only in (False, True):
        text = as_json(NAMES, ascii_only, indent=1)
        assert json.loads(text) == NAMES and not OBEYED.search(text) and text.encode()
    with RunLock(tmp_path / "run") as lock:
        create_run_folder(tmp_path / "run", {"classes": NAMES}, NAMES, lock, resuming=False)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")) == {"classes": NAMES}
    assert yaml.safe_load((tmp_path / "run" / "overrides.yaml").read_text(encoding="utf-8")) == NAMES
    torch.save({"classes": NAMES}, tmp_path / "names.ckpt")
    assert read_file(tmp_path / "names.ckpt") == {"classes": NAMES}


@pytest.mark.parametrize("most", [80, 200])
def test_file_names_fit_are_safe_and_distinct_where_they_have_to_be(most: int, tmp_path: Path) -> None:
    names = [file_name(name, most, distinct=True) for name in [*NAMES, ".", "..", "", "a/b", "a\\b", "a_b"]]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) <= most and not OBEYED.search(name) and not re.search(r'[/\\<>:"|?*\n]', name)
        (tmp_path / name).mkdir()
    assert file_name("it's a [red] Größe.jpg") == "it's a [red] Größe.jpg"
    assert file_name("x" * 300 + ".jpg", most).endswith("x.jpg")


def test_files_with_the_longest_names_are_written_whole(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write_atomically(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_everything_that_the_console_prints_is_safe(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="imgclf_names") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    for name in NAMES:
        for show in (print_line, print_message, print_text):
            show(name)
        print_line(name, error=True)
        print_lines_to_copy({"label": name})
        print_table([name], [[name]])
        print_message(str(ImageError(f"{name}: bad")))
    for stream in streams:
        stream.flush()
        assert not OBEYED.search(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    assert streams[1].buffer.getvalue().count(b"\n") == 3 * len(NAMES)  # type: ignore[attr-defined]


def test_nothing_is_printed_past_the_console() -> None:
    package, own = Path(imgclf.__file__).parent, ("console.py", "__main__.py", "resume.py", "writers.py")
    for path in sorted(package.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not printed or path.name in own, f"{path}:{printed}: use a function of imgclf.console"


def test_a_shell_reads_every_name_as_it_was_quoted() -> None:
    command = " ".join(map(shell_quoted, NAMES))
    assert not OBEYED.search(command)
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    assert [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]] == NAMES


@pytest.mark.trust("status lines of a server with terminal codes", "a code that reaches the terminal")
def test_a_servers_status_line_is_escaped(record_property: Callable[[str, object], None]) -> None:
    lines = [
        b"\x1b]0;owned\x07 200 OK",
        b"\x9b31m",
        b"HTTP/1.1 \x1b[31m\r\n",
        b"HTTP/1.1 200 \x1b[2J\r\nA\x1b[31m\r\n\r\n",
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for line in lines:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(line + b"\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        for _ in lines:
            try:
                fetch_image(f"http://127.0.0.1:{server.getsockname()[1]}/a.png", allow_private=True, timeout_seconds=5)
            except DataError as error:
                assert not OBEYED.search(str(error)) and "\n" not in str(error)
        thread.join()


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders and files that are called like `NAMES`."""
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        colour = np.random.default_rng(number).integers(0, 255, 3).astype(np.uint8)
        for split, count in {"train": 2, "val": 1, "test": 1}.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = (
                    np.random.default_rng([number, image, len(split)]).integers(0, 60, (16, 16, 3)).astype(np.uint8)
                )
                Image.fromarray(pixels + colour // 2).save(folder / f"{name}{image}.png")
    return root


def read_names(path: Path, encoding: str = "utf-8") -> list[list[bytes]]:
    """Return the cells of a CSV file with their names as they were, as the file system holds them."""
    with path.open(encoding=encoding, newline="") as file:
        return [[os.fsencode(original_text(cell)) for cell in row] for row in csv.reader(file)]


@pytest.mark.trust(
    "odd names of classes and files x locales x commands", "a traceback, a code that a terminal obeys, or another name"
)
@pytest.mark.parametrize(
    "locale", [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("cp1252", "C", "C.UTF-8")]
)
def test_commands_take_odd_names_in_any_locale(
    locale: str, odd_data: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", 9 * len(NAMES))
    environment = {**os.environ, **LOCALES[locale], "PYTHONPATH": str(ROOT / "tests")}
    session = [sys.executable, str(ROOT / "tests" / "support" / "name_session.py"), str(odd_data), str(tmp_path)]
    done = subprocess.run(session, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    encoding = {"C": "ascii", "C.UTF-8": "utf-8", "cp1252": "cp1252"}[locale]
    for path in (*tmp_path.glob("*.out"), *tmp_path.glob("*.err")):
        text = path.read_bytes().decode(encoding)
        assert not OBEYED.search(text), path.name
        assert "Traceback" not in text and "could not be read" not in text, path.name
    files = sorted(os.fsencode(path) for path in (odd_data / "test").rglob("*.png"))
    names = {os.fsencode(name) for name in NAMES}
    header, *rows = read_names(tmp_path / "csv.out", encoding)
    assert header[:2] == [b"file", b"predicted"] and sorted(row[0] for row in rows) == files
    answered = sorted(row[0] for row in read_names(tmp_path / "stdin.out", encoding)[1:])
    assert answered == [file for file in files if b"\n" not in file]
    records = [json.loads(line) for line in (tmp_path / "json.out").read_text(encoding).splitlines()]
    assert sorted(os.fsencode(record["file"]) for record in records) == files
    assert {os.fsencode(record["true"]) for record in records} == names
    assert (tmp_path / "table.out").read_text(encoding).count("\n") == len(NAMES)
    _, *tested = read_names(tmp_path / "run" / "predictions_test.csv")
    assert sorted(row[0] for row in tested) == files and {row[1] for row in tested} == names
    for page in (tmp_path / "run" / "report.html", tmp_path / "check" / "check.html"):
        assert not OBEYED.search(page.read_text(encoding="utf-8")), page.name
    copies = [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    assert len(copies) == len(NAMES) and len(list((tmp_path / "maps").iterdir())) == 2
    assert {os.fsencode(name) for name in read_json(tmp_path / "check" / "check.json")["classes"]} == names
    run = imgclf.open_run(tmp_path / "run")
    worst = run.top_losses(len(NAMES))
    assert {os.fsencode(name) for name in run.classifier.classes} == {os.fsencode(row.actual) for row in worst} == names
    assert sorted(os.fsencode(row.path) for row in worst) == files


def test_files_that_a_check_excludes_are_found_by_their_names_again(tmp_path: Path) -> None:
    report = {"format": "imgclf check 2", "name": "custom", "classes": NAMES}
    entries = [{"split": "train", "path": f"train/{name}", "why": "unreadable"} for name in NAMES]
    (tmp_path / "check.json").write_text(as_json({**report, "exclude": entries}), encoding="utf-8")
    exclusion = read_exclusion(str(tmp_path / "check.json"))
    assert set(exclusion.entries) == {("train", f"train/{name}") for name in NAMES} and exclusion.classes == tuple(
        NAMES
    )
    assert read_exclusion(exclusion.listed()).entries == exclusion.entries
