"""Downloads from a server on 127.0.0.1 that cuts, lies, changes its mind and asks for credentials."""

import base64
import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from imgclf.errors import DataError
from imgclf.fetch import http as fetch
from imgclf.fetch import http_client
from imgclf.fetch import http_part as fetch_part
from imgclf.fetch.archive import ArchiveError
from imgclf.fetch.http import download_url
from imgclf.fetch.kaggle import destination, download_dataset

BODY = bytes(os.urandom(200_000))
HANDLE = "sanikamal/rock-paper-scissors-dataset"
KAGGLE_PATH = f"/api/v1/datasets/download/{HANDLE}"


@dataclass
class Site:
    """What the server does; `seen` is what it was asked."""

    body: bytes = BODY
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: int | None = None  # bytes of the body until the connection breaks
    extra_length: int = 0  # how much the Content-Length lies
    headers: dict[str, str] = field(default_factory=dict)
    status: list[int] = field(default_factory=list)  # the next answers, instead of the file
    redirects: dict[str, str] = field(default_factory=dict)
    if_range_ignored: bool = False
    length: str = "told"  # or "chunked", or "untold"
    pause_seconds: float = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.path in site.redirects:
            return self.answer(302, {"Location": site.redirects[self.path], "Content-Length": "0"})
        if site.status:
            return self.answer(site.status.pop(0), {"Content-Length": "0"})
        start = 0
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if asked and site.ranges and (site.if_range_ignored or condition == site.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(site.body) > 0:
            return self.answer(416, {"Content-Range": f"bytes */{len(site.body)}", "Content-Length": "0"})
        data = site.body[start:]
        headers = dict(site.headers) | ({"ETag": site.etag} if site.etag else {})
        if site.length == "told":
            headers["Content-Length"] = str(len(data) + site.extra_length)
        elif site.length == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
        self.answer(206 if start else 200, headers)
        sent = data if site.cut_after is None else data[: site.cut_after]
        if site.pause_seconds:
            self.wfile.write(sent[:10])
            threading.Event().wait(site.pause_seconds)
        else:
            self.wfile.write(sent)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.protocol_version, self.close_connection = "HTTP/1.1", True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    servers = []

    def start(**properties: Any) -> Site:
        site = Site(**properties)
        handler = type("OneSite", (Handler,), {"site": site})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        servers.append(server)
        return site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no waiting, no credentials, a cache of its own, and kagglehub not installed."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "IMGCLF_KAGGLE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_BACKOFF_SECONDS", 0.001)
    monkeypatch.setitem(sys.modules, "kagglehub", None)


def fail(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.trust("downloads cut off", "a file that isn't whole, or a download begun anew")
@pytest.mark.parametrize("cut", [len(BODY) * k // 20 for k in range(20)])
def test_a_download_cut_at_20_points_is_absent_and_then_resumed(cut: int, serve: Any, tmp_path: Path) -> None:
    site, path = serve(cut_after=cut), tmp_path / "set" / "data.zip"
    fail(lambda: download_url(f"{site.url}/data.zip", path, attempts=1), f"{site.url}/data.zip", "ended after")
    assert names(path.parent) == (["data.zip.part", "data.zip.part.json"] if cut else [])
    site.cut_after = None
    told: list[tuple[int, int]] = []
    download_url(f"{site.url}/data.zip", path, progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == BODY and names(path.parent) == ["data.zip"]
    assert site.seen[1][1].get("range") == (f"bytes={cut}-" if cut else None)
    assert told[-1] == (len(BODY), len(BODY)) and told[0][0] > cut


def test_one_call_resumes_by_itself(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=60_000)
    download_url(f"{site.url}/a", tmp_path / "a", sha256=hashlib.sha256(BODY).hexdigest().upper(), size=len(BODY))
    assert (tmp_path / "a").read_bytes() == BODY
    assert [seen[1].get("range") for seen in site.seen] == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_attempts_are_bounded_and_the_part_is_kept(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=10_000)
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "attempt 4 of 4", "40000 bytes are kept")
    assert len(site.seen) == 4 and (tmp_path / "a.part").read_bytes() == BODY[:40_000]


@pytest.mark.parametrize(
    "change", ["no ranges", "new etag", "new etag, If-Range ignored", "shorter", "no etag", "weak"]
)
def test_a_server_that_can_not_resume_is_asked_for_everything(change: str, serve: Any, tmp_path: Path) -> None:
    etag = {"no etag": None, "weak": 'W/"v1"'}.get(change, '"v1"')
    site, path = serve(cut_after=150_000, etag=etag), tmp_path / "a"
    fail(lambda: download_url(f"{site.url}/a", path, attempts=1))
    site.cut_after, site.ranges = None, change != "no ranges"
    if change.startswith(("new", "shorter")):
        site.body, site.etag = BODY[::-1], '"v2"'
        site.if_range_ignored = "ignored" in change or change == "shorter"
    if change == "shorter":
        site.body = b"short"
    download_url(f"{site.url}/a", path)
    assert path.read_bytes() == site.body and names(tmp_path) == ["a"]


def test_another_address_does_not_continue_the_part(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=50_000)
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "x", attempts=1))
    site.cut_after = None
    download_url(f"{site.url}/b", tmp_path / "x")
    assert "range" not in site.seen[1][1] and (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize("lie", [1, 100_000, -1])
def test_a_lying_content_length_never_makes_a_file(lie: int, serve: Any, tmp_path: Path) -> None:
    site = serve(extra_length=lie)
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a", size=len(BODY) if lie < 0 else None))
    assert not (tmp_path / "a").exists()


def test_lengths_that_are_not_told(serve: Any, tmp_path: Path) -> None:
    site = serve(length="chunked")
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    site.cut_after = 1000
    fail(lambda: download_url(f"{site.url}/b", tmp_path / "b", attempts=1), "IncompleteRead")
    site.length, site.cut_after = "untold", None
    fail(lambda: download_url(f"{site.url}/c", tmp_path / "c"), "doesn't tell the length")
    download_url(f"{site.url}/d", tmp_path / "d", size=len(BODY))
    fail(lambda: download_url(f"{site.url}/e", tmp_path / "e", size=1000), "more than 1000 bytes")
    assert [name for name in names(tmp_path) if "." not in name] == ["a", "d"]


def test_a_wrong_checksum_deletes_the_part(serve: Any, tmp_path: Path) -> None:
    site = serve()
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a", sha256="0" * 64), "sha256 is", "deleted")
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a", size=7), "has 200000 bytes, expected 7")
    site.headers = {"X-Goog-Hash": "crc32c=AAAAAA==, md5=" + base64.b64encode(bytes(16)).decode()}
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "md5 is", "deleted")
    assert names(tmp_path) == []
    site.headers = {"X-Goog-Hash": "md5=" + base64.b64encode(hashlib.md5(BODY).digest()).decode()}
    download_url(f"{site.url}/a", tmp_path / "a")
    site.seen.clear()
    assert download_url(f"{site.url}/a", tmp_path / "a", size=len(BODY)) == tmp_path / "a" and not site.seen
    (tmp_path / "a").write_bytes(b"old")
    download_url(f"{site.url}/a", tmp_path / "a", size=len(BODY))
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_one_line_and_not_asked_twice(status: int, serve: Any, tmp_path: Path) -> None:
    site = serve(status=[status] * 9)
    fail(lambda: download_url(f"{site.url}/a?key=secret", tmp_path / "a"), f"{site.url}/a: the server answers {status}")
    assert len(site.seen) == 1 and names(tmp_path) == []


def test_a_busy_server_is_asked_again(serve: Any, tmp_path: Path) -> None:
    site = serve(status=[503, 429, 500])
    download_url(f"{site.url}/a", tmp_path / "a")
    assert len(site.seen) == 4 and (tmp_path / "a").read_bytes() == BODY


def test_redirects_are_few_and_to_http_alone(serve: Any, tmp_path: Path) -> None:
    other = serve()
    site = serve(redirects={f"/{k}": f"/{k - 1}" for k in range(1, 8)} | {"/out": f"{other.url}/a"})
    key = {"Authorization": "Bearer secret"}
    download_url(f"{site.url}/5", tmp_path / "a", headers=key)
    assert all(seen[1]["authorization"] == "Bearer secret" for seen in site.seen) and len(site.seen) == 6
    fail(lambda: download_url(f"{site.url}/6", tmp_path / "b"), f"{site.url}/6", "302")
    download_url(f"{site.url}/out", tmp_path / "c", headers=key)
    assert "authorization" not in other.seen[0][1]  # another host doesn't get the key
    for bad in ("file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "gopher://127.0.0.1/"):
        site.redirects["/bad"] = bad
        fail(lambda: download_url(f"{site.url}/bad", tmp_path / "d"), f"{site.url}/bad", "302")
    assert names(tmp_path) == ["a", "c"]
    secure = Request("https://kaggle.example/a")
    with pytest.raises(HTTPError, match="refused") as caught:
        http_client._Redirect().redirect_request(
            secure, io.BytesIO(), 302, "", caught_headers(), "http://kaggle.example/a"
        )
    caught.value.close()


def caught_headers() -> Any:
    from email.message import Message

    return Message()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/a", "http:///a", "http://[::1/a", "http://h/ä", "x", ""]
)
def test_only_http_addresses_are_taken(url: str, tmp_path: Path) -> None:
    fail(lambda: download_url(url, tmp_path / "a"), "expected an address")


def test_silence_a_drip_and_a_closed_port_end(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve(pause_seconds=0.6)
    get = lambda url: download_url(url, tmp_path / "a", timeout_seconds=0.2, attempts=1)  # noqa: E731
    fail(lambda: get(f"{site.url}/a"), "timed out", "10 bytes are kept")
    monkeypatch.setattr(fetch_part, "_SLOWEST_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(fetch_part, "_CHUNK_BYTES", 10)
    site.pause_seconds = 0
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "b", timeout_seconds=0.01, attempts=1), "bytes in 0.01 sec")
    fail(lambda: get("http://127.0.0.1:9/a?key=secret"), "http://127.0.0.1:9/a: ", "refused")
    assert "secret" not in fail(lambda: get("http://user:secret@127.0.0.1:9/a"), "without user")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_full_disk_is_one_line_and_resumed_when_there_is_room(serve: Any, tmp_path: Path) -> None:
    site, limit = serve(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # a write beyond it fails as on a full disk
    try:
        fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "can't be written", "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "a").exists() and len(site.seen) == 1
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and site.seen[1][1]["range"] == "bytes=50000-"


KILLED = """
import os, signal, sys
from imgclf.fetch import http as fetch
from imgclf.fetch import http_part as fetch_part
fetch_part._CHUNK_BYTES = 1000
def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
fetch.download_url(sys.argv[1], sys.argv[2], progress=die)
"""


def test_a_killed_download_is_resumed(serve: Any, tmp_path: Path) -> None:
    site = serve()
    command = [sys.executable, "-c", KILLED, f"{site.url}/a", str(tmp_path / "a")]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == ["a.part", "a.part.json"]
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and "range" in site.seen[1][1] and names(tmp_path) == ["a"]


def test_two_processes_do_not_write_one_part(serve: Any, tmp_path: Path) -> None:
    site, second = serve(), []

    def also(done: int, total: int) -> None:
        if not second:
            second.append(fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "another process"))

    download_url(f"{site.url}/a", tmp_path / "a", progress=also)
    assert second and (tmp_path / "a").read_bytes() == BODY


def archive(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in members:
            file.writestr(name, BODY[:5000])
    return buffer.getvalue()


def test_a_data_set_is_downloaded_unpacked_and_recognised(
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


def test_credentials_go_to_kaggle_alone(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_broken_kaggle_json_is_one_line_without_its_content(text: str, tmp_path: Path) -> None:
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle/kaggle.json").write_bytes(text.encode("latin-1"))
    message = fail(lambda: download_dataset("rps", HANDLE, base_url="http://127.0.0.1:9"), "kaggle.json", "settings")
    assert "me" not in message.replace("kaggle.com", "").replace(str(tmp_path), "").split()


@pytest.mark.parametrize("status", [401, 403])
def test_missing_credentials_say_what_to_do(status: int, serve: Any, tmp_path: Path) -> None:
    site = serve(status=[status])
    message = fail(lambda: download_dataset("rps", HANDLE, base_url=site.url))
    for part in ("kaggle.com/settings", "~/.kaggle/kaggle.json", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        assert part in message
    assert f"https://www.kaggle.com/datasets/{HANDLE}" in message and "data_dir=" in message and "terms" in message
    assert names(tmp_path / "cache/data") == []


def test_no_such_data_set_and_bad_names_are_one_line(serve: Any) -> None:
    site = serve(status=[404])
    fail(lambda: download_dataset("rps", HANDLE, base_url=site.url), "404 Not SplitFiles", "by hand", HANDLE)
    for name, handle in (("rps", "no-owner"), ("rps", "../x"), ("rps", "a/b/c"), ("../x", "a/b"), ("", "a/b")):
        fail(lambda name=name, handle=handle: download_dataset(name, handle, base_url=site.url), "handle")


@pytest.mark.parametrize("body", [archive("../evil.png"), archive("a.png")[:-30], b"<html>log in</html>"])
def test_a_bad_archive_is_deleted_and_leaves_no_folder(body: bytes, serve: Any, tmp_path: Path) -> None:
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


def test_kagglehub_is_asked_where_the_address_fails(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "hub/versions/1"
    (tree / "train").mkdir(parents=True)
    (tree / "train/a.png").write_bytes(b"a")
    handles: list[str] = []
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub(lambda handle: handles.append(handle) or str(tree)))
    folder = download_dataset("rps", HANDLE, base_url=serve(status=[410]).url)
    assert (folder / "train/a.png").read_bytes() == b"a" and (tree / "train/a.png").exists() and handles == [HANDLE]
    assert "410 Gone; asking kagglehub" in capsys.readouterr().err
    (tree / "link").symlink_to("/etc")
    fail(lambda: download_dataset("other", HANDLE, base_url=serve(status=[410]).url), "'link' is a symbolic link")
    assert names(folder.parent) == ["rps"]


def test_kagglehub_s_errors_are_one_line(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
