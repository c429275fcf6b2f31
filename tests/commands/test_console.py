"""What commands print: lines to copy, and help in 80 columns."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from imgclf import cache, compare, console, export, predict, resume, sweep
from imgclf.config import RunConfig
from imgclf.console import lines_of_model, print_lines_to_copy, replace_unprintable, shell_path


def test_lines_to_copy_are_relative_quoted_and_a_link_where_a_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "my run" / "50 %"
    (run / "checkpoints").mkdir(parents=True)
    (run / "report.html").touch()
    print_lines_to_copy(lines_of_model(run / "checkpoints" / "best.ckpt", run / "report.html"))
    assert capsys.readouterr().out.splitlines() == [
        "model    'my run/50 %/checkpoints/best.ckpt'",
        f"report   {tmp_path.as_uri()}/my%20run/50%20%25/report.html",
        "predict  imgclf predict 'my run/50 %' image.jpg",
    ]


def test_lines_to_copy_name_a_folder_elsewhere_and_no_report_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert lines_of_model(tmp_path / "best.ckpt", tmp_path / "report.html") == {
        "model": f"{tmp_path}/best.ckpt",
        "predict": f"imgclf predict {tmp_path}/best.ckpt image.jpg",
    }
    assert lines_of_model(Path("-runs/best.ckpt"), Path("r"))["predict"].split()[2] == "./-runs/best.ckpt"


def test_line_to_predict_names_the_checkpoint_that_was_evaluated(tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert lines_of_model(last, tmp_path / "r")["predict"] == f"imgclf predict {last} image.jpg"
    best = lines_of_model(last.with_name("best.ckpt"), tmp_path / "r")
    assert best["predict"] == f"imgclf predict {tmp_path / 'run'} image.jpg"


def test_paths_to_copy_are_quoted_for_the_shell_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("it's mine").absolute()
    monkeypatch.setattr(console, "os", type("nt", (), {"name": "nt"}))
    assert shell_path(path) == subprocess.list2cmdline(["it's mine"]) == '"it\'s mine"'


def test_names_that_are_no_text_are_escaped_where_the_stream_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict"))
    replace_unprintable()
    for stream in (sys.stdout, sys.stderr):
        print("caf\udce9.jpg é", file=stream, flush=True)
        assert stream.buffer.getvalue().decode() == "caf\\xe9.jpg é\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["predict", "export", "resume", "compare", "sweep", "cache"])
def test_help_fits_80_columns_and_has_three_examples(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    if name == "resume":
        resume._print_help()
    else:
        with pytest.raises(SystemExit):
            {"predict": predict, "export": export, "compare": compare, "sweep": sweep, "cache": cache}[name].main(
                ["--help"]
            )
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith(f"  imgclf {name}") for line in text.splitlines()) == 3
    if name == "resume":
        known = dict(RunConfig.walk())
        for key in RunConfig.keys_with("on_resume"):
            line = next(line for line in text.splitlines() if line.startswith(f"  {key} "))
            assert known[key].metadata["help"].startswith(line.split(maxsplit=1)[1])
