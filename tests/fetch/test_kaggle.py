"""Data sets from a server on 127.0.0.1 that stands for Kaggle, and from a stand-in for kagglehub."""

import base64
import io
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.http_site import BODY, fail, names

from imgclf.fetch import destination, download_dataset
from imgclf.fetch.archive import ArchiveError

HANDLE = "sanikamal/rock-paper-scissors-dataset"
KAGGLE_PATH = f"/api/v1/datasets/download/{HANDLE}"


def archive(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in members:
            file.writestr(name, BODY[:5000])
    return buffer.getvalue()


def test_data_set_is_downloaded_unpacked_and_recognised(
    serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = serve(body=archive("train/rock/1.png", "test/paper/2.png"), cut_after=3000)
    folder = download_dataset("rps", HANDLE, base_url=site.url)
    assert folder == destination("rps") == tmp_path / "cache" / "data" / "rps"
    assert (folder / "train/rock/1.png").read_bytes() == BODY[:5000]
    assert site.seen[0][0] == KAGGLE_PATH and len(site.seen) == 4 and "authorization" not in site.seen[0][1]
    assert names(folder.parent) == ["rps"]
    assert download_dataset("rps", HANDLE, base_url=site.url) == folder and len(site.seen) == 4
    assert "already downloaded" in capsys.readouterr().err


def test_credentials_go_to_kaggle_only(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = serve(body=archive("a.png"))
    site = serve(redirects={KAGGLE_PATH: f"{storage.url}/signed?key=1"})
    monkeypatch.setenv("IMGCLF_KAGGLE_URL", site.url + "/")
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "token").write_text("from-a-file\n")
    basic = "Basic " + base64.b64encode(b"me:key").decode()

    def sent(name: str) -> str:
        download_dataset(name, HANDLE)
        return site.seen[-1][1].get("authorization", "")

    assert sent("none") == ""
    (tmp_path / "kaggle/kaggle.json").write_text('{"username": "me", "key": "key"}')
    assert sent("file") == basic
    monkeypatch.setenv("KAGGLE_USERNAME", "me2")
    monkeypatch.setenv("KAGGLE_KEY", "key2")
    assert sent("variables") == "Basic " + base64.b64encode(b"me2:key2").decode()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x" * 999)
    assert sent("token") == "Bearer " + "x" * 999
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(tmp_path / "token"))
    assert sent("token-file") == "Bearer from-a-file"
    assert all("authorization" not in seen[1] for seen in storage.seen) and len(storage.seen) == 5


@pytest.mark.parametrize("text", ["{", "[]", '{"username": "me"}', "\xff"])
def test_broken_kaggle_json_is_one_line_without_its_content(text: str, tmp_path: Path) -> None:
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/kaggle.json").write_bytes(text.encode("latin-1"))
    message = fail(lambda: download_dataset("rps", HANDLE, base_url="http://127.0.0.1:9"), "kaggle.json", "settings")
    assert "me" not in message.replace("kaggle.com", "").replace(str(tmp_path), "").split()


@pytest.mark.parametrize("status", [401, 403])
def test_missing_credentials_name_the_next_steps(status: int, serve: Any, tmp_path: Path) -> None:
    site = serve(status=[status])
    message = fail(lambda: download_dataset("rps", HANDLE, base_url=site.url))
    for part in ("kaggle.com/settings", "~/.kaggle/kaggle.json", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        assert part in message
    assert f"https://www.kaggle.com/datasets/{HANDLE}" in message and "data_dir=" in message and "terms" in message
    assert names(tmp_path / "cache/data") == []


def test_unknown_data_set_and_bad_names_are_one_line(serve: Any) -> None:
    site = serve(status=[404])
    fail(lambda: download_dataset("rps", HANDLE, base_url=site.url), "404 Not Found", "by hand", HANDLE)
    for name, handle in (("rps", "no-owner"), ("rps", "../x"), ("rps", "a/b/c"), ("../x", "a/b"), ("", "a/b")):
        fail(lambda name=name, handle=handle: download_dataset(name, handle, base_url=site.url), "handle")


@pytest.mark.parametrize("body", [archive("../evil.png"), archive("a.png")[:-30], b"<html>log in</html>"])
def test_bad_archive_is_deleted_and_leaves_no_folder(body: bytes, serve: Any, tmp_path: Path) -> None:
    site = serve(body=body)
    with pytest.raises(ArchiveError):
        download_dataset("rps", HANDLE, base_url=site.url)
    assert names(tmp_path / "cache/data") == []
    site.body, site.etag = archive("a.png"), '"v2"'
    assert names(download_dataset("rps", HANDLE, base_url=site.url)) == ["a.png"]


def kagglehub(download_function: Callable[[str], str]) -> types.ModuleType:
    module = types.ModuleType("kagglehub")
    module.dataset_download = download_function  # type: ignore[attr-defined]
    return module


def test_kagglehub_is_tried_if_the_address_fails(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "hub/versions/1"
    (tree / "train").mkdir(parents=True)
    (tree / "train/a.png").write_bytes(b"a")
    handles: list[str] = []
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub(lambda handle: handles.append(handle) or str(tree)))
    folder = download_dataset("rps", HANDLE, base_url=serve(status=[410]).url)
    assert (folder / "train/a.png").read_bytes() == b"a" and (tree / "train/a.png").exists() and handles == [HANDLE]
    assert "410 Gone; trying kagglehub" in capsys.readouterr().err
    (tree / "link").symlink_to("/etc")
    fail(lambda: download_dataset("other", HANDLE, base_url=serve(status=[410]).url), "'link' is a link")
    assert names(folder.parent) == ["rps"]


def test_errors_of_kagglehub_are_one_line(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnauthenticatedError(Exception):
        pass

    class HTTPError(Exception):
        response = types.SimpleNamespace(status_code=403)

    errors = {
        UnauthenticatedError("User is\nnot authenticated"): "KAGGLE_USERNAME",
        HTTPError("403 Client Error.\n\nYou don't have permission"): "KAGGLE_USERNAME",
        OSError(28, "No space left on device"): "kagglehub: [Errno 28] No space left",
    }
    for error, expected in errors.items():

        def raise_it(handle: str, error: Exception = error) -> str:
            raise error

        monkeypatch.setitem(sys.modules, "kagglehub", kagglehub(raise_it))
        fail(lambda: download_dataset("rps", HANDLE, base_url=serve(status=[500] * 4).url), expected, "by hand")
