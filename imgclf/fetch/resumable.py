"""Download of one file that resumes after interruptions: the file is whole under its final name, or absent."""

import base64
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib import request
from urllib.error import URLError

from imgclf.errors import DataError, one_line
from imgclf.fetch.archive import Progress
from imgclf.fetch.http import FetchError, check_url, open_url, status_error
from imgclf.files.atomic import write_atomically

__all__ = ["download_url"]

_BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each later one
_CHUNK_BYTES = 1 << 18
_MAX_BYTES = 64 << 30  # of a file of undeclared length
_MIN_BYTES_PER_SECOND = 100  # a slower server counts as silent
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}


class _BrokenOffError(Exception):
    """An attempt failed that may succeed when repeated."""


def download_url(
    url: str,
    path: str | os.PathLike[str],
    *,
    headers: dict[str, str] | None = None,
    timeout_seconds: float = 30,
    attempts: int = 4,
    progress: Progress | None = None,
) -> Path:
    """Download an http(s) `url` to `path`, unless it exists, and return `path`.

    The bytes are collected in `path` + ".part", which is renamed once it is complete and on disk. A broken download
    resumes from there if the server still has the same file (by ETag or Last-Modified). `timeout_seconds` bounds each
    silence; `headers` go to the host of `url` only. Raises DataError in one line that names the url; FetchError if the
    server is the reason. A wrong checksum deletes the part.
    """
    path, shown = Path(path), check_url(url)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked_part(path, shown) as file:
            part = _Part(url, path, file)
            for attempt in range(1, attempts + 1):
                try:
                    part.download(headers or {}, timeout_seconds, progress)
                    break
                except _BrokenOffError as error:
                    if attempt == attempts:
                        kept = f"; {part.have} bytes are kept, run it again to resume" if part.have else ""
                        raise FetchError(f"{error} (attempt {attempt} of {attempts}){kept}") from error
                    time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            part.finish()
    except FetchError as error:
        raise FetchError(f"{shown}: {error}", error.status) from error
    except OSError as error:
        raise DataError(f"{shown}: can't be written to {path}: {error.strerror}; make room and run it again") from error
    return path


@dataclass(frozen=True)
class _RemoteFile:
    """Facts about the file on the server, kept in a JSON file next to the part."""

    url: str = ""
    validator: str = ""  # strong ETag, or Last-Modified
    total: int | None = None  # bytes; None: unknown before the end of the body
    md5: str | None = None  # hexadecimal


class _Part:
    """The file `path` + ".part", and the facts about the whole file."""

    def __init__(self, url: str, path: Path, file: IO[bytes]) -> None:
        self.url, self.path, self.file = url, path, file
        self.notes = path.with_name(path.name + ".part.json")
        try:
            self.remote = _RemoteFile(**json.loads(self.notes.read_bytes()))
        except (OSError, ValueError, TypeError):
            self.remote = _RemoteFile()
        if self.remote.url != url or not self.remote.validator:
            self.restart()  # another file, or one that can't be recognised

    @property
    def have(self) -> int:
        """Bytes of the part."""
        return self.file.seek(0, os.SEEK_END)

    def restart(self) -> None:
        """Delete all bytes received."""
        self.remote = _RemoteFile()
        self.file.truncate(0)
        self.notes.unlink(missing_ok=True)

    def download(self, headers: dict[str, str], timeout_seconds: float, progress: Progress | None) -> None:
        """Try once to get the missing bytes; return when all are there by the server's count."""
        have = self.have
        if have and have == self.remote.total:
            return
        if have:
            headers = {**headers, "Range": f"bytes={have}-", "If-Range": self.remote.validator}
        try:
            response = open_url(partial(_send, timeout_seconds), self.url, headers)
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise FetchError(one_line(reason)) from error
            raise _BrokenOffError(one_line(reason)) from error
        with response:
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                self.check_resumed(response, have)
            elif response.status == HTTPStatus.OK:
                self.begin(response)
            elif response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                self.restart()  # a shorter file has replaced it
                raise _BrokenOffError("the file on the server changed")
            elif response.status in _TEMPORARY:
                raise _BrokenOffError(str(status_error(response.status)))
            else:
                raise status_error(response.status)
            self.append(response, timeout_seconds, progress)

    def check_resumed(self, response: HTTPResponse, have: int) -> None:
        """Start over unless `response` continues the same file after its first `have` bytes."""
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        fits = span and int(span[1]) == have and self.remote.total in (None, int(span[2]))
        if not span or not fits or _validator(response) not in ("", self.remote.validator):
            self.restart()
            raise _BrokenOffError("the server sent another part, or another file, than was requested")
        self.remote = replace(self.remote, total=int(span[2]))

    def begin(self, response: HTTPResponse) -> None:
        """Start with an empty part, and keep what the headers say about the file."""
        self.restart()
        headers = response.headers
        encoding, length = headers.get("Content-Encoding", "identity"), headers.get("Content-Length", "")
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        total = int(length) if length.isdigit() and not chunked else None
        if encoding != "identity":
            raise FetchError(f"the server compresses the file by {encoding[:20]!r}, which was not requested")
        if total is None and not chunked:
            raise FetchError("the server doesn't send the length, without which a cut download can't be detected")
        md5 = re.search(r"md5=([\w+/]{22}==)", ",".join(headers.get_all("X-Goog-Hash", [])))  # of Kaggle's storage
        checksum = base64.b64decode(md5[1]).hex() if md5 else None
        self.remote = _RemoteFile(self.url, _validator(response), total, checksum)
        write_atomically(self.notes, json.dumps(asdict(self.remote)))

    def append(self, response: HTTPResponse, timeout_seconds: float, progress: Progress | None) -> None:
        """Write the body while it arrives; raise unless it is complete."""
        done, total = self.have, self.remote.total
        since, before = time.monotonic(), done
        while chunk := _next_chunk(response):
            done += len(chunk)
            if done > (limit := _MAX_BYTES if total is None else total):
                self.restart()
                raise FetchError(f"the server sends more than {limit} bytes")
            self.file.write(chunk)
            self.file.flush()
            if progress:
                progress(done, total or 0)
            if (now := time.monotonic()) > since + timeout_seconds:
                if done - before < _MIN_BYTES_PER_SECOND * timeout_seconds:
                    raise _BrokenOffError(f"the server sent {done - before} bytes in {timeout_seconds:g} seconds")
                since, before = now, done
        if total is not None and done < total:
            raise _BrokenOffError(f"the connection ended after {done} of {total} bytes")

    def finish(self) -> None:
        """Compare the checksum, if the server sent one, and rename the part to `path`."""
        if expected := self.remote.md5:
            digest = hashlib.md5(usedforsecurity=False)
            self.file.seek(0)
            while chunk := self.file.read(1 << 20):
                digest.update(chunk)
            if digest.hexdigest() != expected:
                self.restart()
                raise FetchError(f"md5 is {digest.hexdigest()}, expected {expected}; the download was deleted")
        os.fsync(self.file.fileno())
        Path(self.file.name).replace(self.path)
        self.notes.unlink(missing_ok=True)


def _send(timeout_seconds: float, url: str, headers: dict[str, str]) -> HTTPResponse:
    """Return the response to a GET of `url`, through the proxies of the environment."""
    opener = request.OpenerDirector()  # without urllib's own treatment of statuses and redirects
    for handler in (request.ProxyHandler(), request.HTTPHandler(), request.HTTPSHandler()):
        opener.add_handler(handler)
    response: HTTPResponse = opener.open(request.Request(url, headers=headers), timeout=timeout_seconds)
    return response


def _validator(response: HTTPResponse) -> str:
    """Return the ETag or Last-Modified of `response`; "" for a weak ETag (not byte for byte: RFC 9110, 13.1.5)."""
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return "" if validator.startswith("W/") else validator


def _next_chunk(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:  # here, because a full disk raises OSError too
        raise _BrokenOffError(one_line(error)) from error


@contextmanager
def _locked_part(path: Path, shown: str) -> Iterator[IO[bytes]]:
    """Open `path` + ".part" for appending by one process at a time (unlocked on Windows); remove it if it stays empty."""
    part = path.with_name(path.name + ".part")
    with part.open("a+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = part.stat().st_ino == os.fstat(file.fileno()).st_ino
        except ImportError:
            ours = True
        except (BlockingIOError, FileNotFoundError):
            ours = False  # locked, or renamed by its owner since it was opened
        if not ours:
            raise DataError(f"{shown}: another process is downloading it to {path}; wait for that one")
        try:
            yield file
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)
                part.with_name(f"{part.name}.json").unlink(missing_ok=True)
