"""What commands print: lines to copy."""

from pathlib import Path

import pytest

from imgclf.console import lines_of_model, print_lines_to_copy


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
