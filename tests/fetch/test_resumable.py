"""Downloads from a server on 127.0.0.1 that cuts connections, sends wrong lengths and changes its files."""

import base64
import hashlib
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.http_site import BODY, fail, names

from imgclf.fetch import resumable
from imgclf.fetch.resumable import download_url


@pytest.mark.trust("downloads cut off", "a file that isn't whole, or a download that starts over")
@pytest.mark.parametrize("cut", [len(BODY) * k // 20 for k in range(20)])
def test_download_cut_at_20_points_is_absent_and_then_resumed(cut: int, serve: Any, tmp_path: Path) -> None:
    site, path = serve(cut_after=cut), tmp_path / "set" / "data.zip"
    fail(lambda: download_url(f"{site.url}/data.zip", path, attempts=1), f"{site.url}/data.zip", "ended after")
    assert names(path.parent) == (["data.zip.part", "data.zip.part.json"] if cut else [])
    site.cut_after = None
    reports: list[tuple[int, int]] = []
    download_url(f"{site.url}/data.zip", path, progress=lambda done, total: reports.append((done, total)))
    assert path.read_bytes() == BODY and names(path.parent) == ["data.zip"]
    assert site.seen[1][1].get("range") == (f"bytes={cut}-" if cut else None)
    assert reports[-1] == (len(BODY), len(BODY)) and reports[0][0] > cut


def test_one_call_resumes_until_the_file_is_whole(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=60_000)
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [seen[1].get("range") for seen in site.seen] == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_attempts_are_bounded_and_the_part_is_kept(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=10_000)
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "attempt 4 of 4", "40000 bytes are kept")
    assert len(site.seen) == 4 and (tmp_path / "a.part").read_bytes() == BODY[:40_000]


@pytest.mark.parametrize(
    "change", ["no ranges", "new etag", "new etag, If-Range ignored", "shorter", "no etag", "weak"]
)
def test_server_that_can_not_resume_sends_the_whole_file_again(change: str, serve: Any, tmp_path: Path) -> None:
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


def test_part_of_another_address_is_not_continued(serve: Any, tmp_path: Path) -> None:
    site = serve(cut_after=50_000)
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "x", attempts=1))
    site.cut_after = None
    download_url(f"{site.url}/b", tmp_path / "x")
    assert "range" not in site.seen[1][1] and (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize("extra", [1, 100_000, -1])
def test_wrong_content_length_makes_no_file(extra: int, serve: Any, tmp_path: Path) -> None:
    md5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()  # without it, one byte less would go unnoticed
    site = serve(extra_length=extra, headers={"X-Goog-Hash": f"md5={md5}"} if extra < 0 else {})
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "md5 is" if extra < 0 else "attempt 4 of 4")
    assert not (tmp_path / "a").exists()


def test_undeclared_length_is_taken_in_chunks_only(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve(length="chunked")
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    site.cut_after = 1000
    fail(lambda: download_url(f"{site.url}/b", tmp_path / "b", attempts=1), "IncompleteRead")
    site.cut_after = None
    monkeypatch.setattr(resumable, "_MAX_BYTES", 1000)
    fail(lambda: download_url(f"{site.url}/c", tmp_path / "c"), "more than 1000 bytes")
    site.length = "undeclared"
    fail(lambda: download_url(f"{site.url}/d", tmp_path / "d"), "doesn't send the length")
    assert [name for name in names(tmp_path) if "." not in name] == ["a"]


def test_wrong_checksum_deletes_the_part_and_an_existing_file_is_kept(serve: Any, tmp_path: Path) -> None:
    site = serve()
    site.headers = {"X-Goog-Hash": "crc32c=AAAAAA==, md5=" + base64.b64encode(bytes(16)).decode()}
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "md5 is", "deleted")
    assert names(tmp_path) == []
    site.headers = {"X-Goog-Hash": "md5=" + base64.b64encode(hashlib.md5(BODY).digest()).decode()}
    download_url(f"{site.url}/a", tmp_path / "a")
    site.seen.clear()
    assert download_url(f"{site.url}/a", tmp_path / "a") == tmp_path / "a" and not site.seen
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusal_is_one_line_and_not_repeated(status: int, serve: Any, tmp_path: Path) -> None:
    site = serve(status=[status] * 9)
    fail(
        lambda: download_url(f"{site.url}/a?key=secret", tmp_path / "a"), f"{site.url}/a: the server returned {status}"
    )
    assert len(site.seen) == 1 and names(tmp_path) == []


def test_request_to_a_busy_server_is_repeated(serve: Any, tmp_path: Path) -> None:
    site = serve(status=[503, 429, 500])
    download_url(f"{site.url}/a", tmp_path / "a")
    assert len(site.seen) == 4 and (tmp_path / "a").read_bytes() == BODY


def test_redirects_are_at_most_five_and_to_http_only(serve: Any, tmp_path: Path) -> None:
    other = serve()
    site = serve(redirects={f"/{k}": f"/{k - 1}" for k in range(1, 8)} | {"/out": f"{other.url}/a"})
    key = {"Authorization": "Bearer secret"}
    download_url(f"{site.url}/5", tmp_path / "a", headers=key)
    assert all(seen[1]["authorization"] == "Bearer secret" for seen in site.seen) and len(site.seen) == 6
    fail(lambda: download_url(f"{site.url}/6", tmp_path / "b"), f"{site.url}/6: redirects more than 5 times")
    download_url(f"{site.url}/out", tmp_path / "c", headers=key)
    assert "authorization" not in other.seen[0][1]  # another host doesn't get the key
    for bad in ("file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "gopher://127.0.0.1/"):
        site.redirects["/bad"] = bad
        message = f"{site.url}/bad: redirects to an address that is refused"
        fail(lambda: download_url(f"{site.url}/bad", tmp_path / "d"), message)
    assert names(tmp_path) == ["a", "c"]


BAD_URLS = ["file:///etc/passwd", "ftp://h/a", "http:///a", "http://[::1/a", "http://h/ä", "http://h:99999/", "x", ""]


@pytest.mark.parametrize("url", BAD_URLS)
def test_only_http_addresses_are_accepted(url: str, tmp_path: Path) -> None:
    fail(lambda: download_url(url, tmp_path / "a"), "expected an address")


def test_silence_a_drip_and_a_closed_port_end_the_download(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(pause_seconds=0.6)

    def get(url: str) -> Path:
        return download_url(url, tmp_path / "a", timeout_seconds=0.2, attempts=1)

    fail(lambda: get(f"{site.url}/a"), "timed out", "10 bytes are kept")
    monkeypatch.setattr(resumable, "_MIN_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(resumable, "_CHUNK_BYTES", 10)
    site.pause_seconds = 0
    fail(lambda: download_url(f"{site.url}/a", tmp_path / "b", timeout_seconds=0.01, attempts=1), "bytes in 0.01 sec")
    fail(lambda: get("http://127.0.0.1:9/a?key=secret"), "http://127.0.0.1:9/a: ", "refused")
    assert "secret" not in fail(lambda: get("http://user:secret@127.0.0.1:9/a"), "without user")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_full_disk_is_one_line_and_the_download_resumes_when_there_is_room(serve: Any, tmp_path: Path) -> None:
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
from imgclf.fetch import resumable
resumable._CHUNK_BYTES = 1000
def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
resumable.download_url(sys.argv[1], sys.argv[2], progress=die)
"""


def test_killed_download_is_resumed(serve: Any, tmp_path: Path) -> None:
    site = serve()
    command = [sys.executable, "-c", KILLED, f"{site.url}/a", str(tmp_path / "a")]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == ["a.part", "a.part.json"]
    download_url(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and "range" in site.seen[1][1] and names(tmp_path) == ["a"]


def test_second_process_is_refused_while_the_first_downloads(serve: Any, tmp_path: Path) -> None:
    site, second = serve(), []

    def also(done: int, total: int) -> None:
        if not second:
            second.append(fail(lambda: download_url(f"{site.url}/a", tmp_path / "a"), "another process"))

    download_url(f"{site.url}/a", tmp_path / "a", progress=also)
    assert second and (tmp_path / "a").read_bytes() == BODY
