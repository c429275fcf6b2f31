"""Downloads: a file or a data set is whole under its final name, or not there; what has come is kept for resuming.

A Kaggle data set comes as one archive from the address that Kaggle's own "Download with cURL" button shows,
`/api/v1/datasets/download/<owner>/<name>`, and is unpacked by `archive.extract`; kagglehub would unpack it by rules
that aren't ours (no limit on bytes or members). kagglehub, an extra, is the second way: it is asked where that address
fails, for instance because Kaggle changed it, and its folder is copied under the same rules. Both ways were tried on
servers of the tests only, never on kaggle.com itself.
"""

import base64
import hashlib
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from imgclf.data.archive import ArchiveError, Limits, adopt, extract
from imgclf.errors import DataError
from imgclf.storage import cache_folder, write_atomically

__all__ = ["destination", "download_dataset", "download_url"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: unknown)

_KAGGLE = "https://www.kaggle.com"
_CHUNK_BYTES = 1 << 18
_SLOWEST_BYTES_PER_SECOND = 100  # a server that drips more slowly counts as silent
_BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each later one
_HARMLESS = {"accept-encoding", "range", "if-range"}  # headers that may follow a redirect to another host
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}


class _FetchError(DataError):
    """The server didn't give the file; `status` is its HTTP answer, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _BrokenOffError(Exception):
    """An attempt that may go better the next time."""


def destination(name: str) -> Path:
    """The folder of the data set `name` in the cache folder; it exists only when the data set is whole."""
    return cache_folder() / "data" / name


def download_dataset(name: str, handle: str, *, base_url: str | None = None) -> Path:
    """Download the Kaggle data set `handle` ("owner/name") to `destination(name)`, unless it is there, and return that.

    `base_url` (else $IMGCLF_KAGGLE_URL, else kaggle.com) may name a mirror. What happens is told on stderr. Raises
    DataError in one line: no credentials, no such data set, a hostile archive (deleted), no room.
    """
    if not re.fullmatch(r"[\w-]+/[\w-]+", handle, re.ASCII) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise DataError(f"{name!r}, {handle!r}: expected a plain name and a Kaggle handle like 'owner/data-set'")
    folder = destination(name)
    if folder.is_dir() and any(folder.iterdir()):
        print(f"{folder}: already downloaded", file=sys.stderr)
        return folder
    base_url = (base_url or os.environ.get("IMGCLF_KAGGLE_URL") or _KAGGLE).rstrip("/")
    archive = folder.with_name(f"{name}.archive")
    try:
        with _bar(f"downloading {name}") as progress:
            url = f"{base_url}/api/v1/datasets/download/{handle}"
            download_url(url, archive, headers=_credentials(), progress=progress)
    except _FetchError as error:
        return _through_kagglehub(handle, folder, error)
    try:
        with _bar(f"unpacking {name}") as progress:
            extract(archive, folder, progress=progress)
    except ArchiveError:
        archive.unlink(missing_ok=True)  # the next call must not meet it again
        raise
    archive.unlink(missing_ok=True)
    return folder


def _through_kagglehub(handle: str, folder: Path, cause: _FetchError) -> Path:
    """The second way, where kagglehub is installed and `cause` closed the first; else `cause`, told usefully."""
    try:
        import kagglehub
    except ImportError:
        raise _told(handle, cause.status, str(cause)) from cause
    print(f"{cause}; asking kagglehub", file=sys.stderr)
    try:
        tree = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub's exceptions share no base, and moved between its versions
        status = getattr(getattr(error, "response", None), "status_code", 0) or cause.status
        unknown = "Credential" in type(error).__name__ or "Unauthenticated" in type(error).__name__
        line = " ".join(str(error).split()) or type(error).__name__
        raise _told(handle, 401 if unknown else status, f"kagglehub: {line}") from error
    return adopt(tree.resolve(), folder)  # copied: kagglehub's cache stays kagglehub's


def _told(handle: str, status: int, line: str) -> DataError:
    by_hand = f"download it by hand from {_KAGGLE}/datasets/{handle} and pass data_dir="
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return DataError(
            f"Kaggle wants to know who downloads {handle} ({status}): create an API token at {_KAGGLE}/settings, put "
            "it to ~/.kaggle/kaggle.json or set KAGGLE_USERNAME and KAGGLE_KEY (or KAGGLE_API_TOKEN), and accept the "
            f"data set's terms on its page; or {by_hand}"
        )
    return DataError(f"{line}; or {by_hand}")


def _credentials() -> dict[str, str]:
    """The Authorization header from where Kaggle's own tools look, in their order; {} if there are none."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    user, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    file = folder / "access_token"
    try:
        if token and os.path.isfile(token):  # noqa: PTH113 (it may name a file; Path raises for a long token)
            token = Path(token).read_text().strip()
        elif not token and file.is_file():
            token = file.read_text().strip()
        file = folder / "kaggle.json"
        if not token and not (user and key) and file.is_file():
            saved = json.loads(file.read_text())
            user, key = saved["username"], saved["key"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = type(error).__name__  # never the text: it may hold the key
        raise DataError(
            f"{file}: not a readable Kaggle token ({what}); create a new one at {_KAGGLE}/settings"
        ) from None
    if token:
        return {"Authorization": f"Bearer {token}"}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"} if user and key else {}


def download_url(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    headers: dict[str, str] | None = None,
    timeout_seconds: float = 30,
    attempts: int = 4,
    progress: Progress | None = None,
) -> Path:
    """Download an http(s) `url` to `path`, unless a file that fits `size` and `sha256` is there, and return `path`.

    The bytes gather in `path` + ".part" and get the name when they are whole and on the disk; a broken download goes on
    from there if the server has the same file still (its ETag or Last-Modified). `timeout_seconds` bounds each silence.
    `headers` go to the host of `url` alone. Raises DataError in one line that names the url; a wrong checksum deletes
    the part.
    """
    path, shown = Path(path), _checked(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.is_file() and size in (None, path.stat().st_size)
        if there and (sha256 is None or _digest(path, "sha256") == sha256.lower()):
            return path
        with _locked_part(path, shown) as file:
            part = _Part(url, path, file, {**(headers or {}), "Accept-Encoding": "identity"}, size, timeout_seconds)
            for attempt in range(1, attempts + 1):
                try:
                    part.fetch(progress)
                    break
                except _BrokenOffError as error:
                    if attempt == attempts:
                        kept = f"; {part.have} bytes are kept, run it again to go on from there" if part.have else ""
                        raise _FetchError(f"{shown}: {error} (attempt {attempt} of {attempts}){kept}") from error
                    time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            part.finish(sha256)
    except OSError as error:
        raise DataError(f"{shown}: can't be written to {path}: {error.strerror}; make room and run it again") from error
    return path


class _Part:
    """The file `path` + ".part", what is known of it (in a JSON file beside it), and how it grows."""

    def __init__(
        self, url: str, path: Path, file: IO[bytes], headers: dict[str, str], size: int | None, timeout_seconds: float
    ) -> None:
        self.url, self.path, self.file, self.headers = url, path, file, headers
        self.shown, self.size, self.timeout_seconds = _checked(url), size, timeout_seconds
        self.notes = path.with_name(path.name + ".part.json")
        try:
            self.known: dict[str, Any] = json.loads(self.notes.read_bytes())
        except (OSError, ValueError):
            self.known = {}
        if self.known.get("url") != url or not self.known.get("validator"):
            self.restart()  # another file, or one that can't be recognised

    @property
    def have(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def restart(self) -> None:
        self.known = {}
        self.file.truncate(0)
        self.notes.unlink(missing_ok=True)

    def fetch(self, progress: Progress | None) -> None:
        """One attempt at the missing bytes; returns when, as far as the server tells, all are there."""
        have = self.have
        if have and have == self.known.get("total"):
            return
        headers = dict(self.headers)
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.known["validator"]}
        try:
            response = _opener().open(request.Request(self.url, headers=headers), timeout=self.timeout_seconds)
        except HTTPError as error:
            error.close()
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                self.restart()  # the file is another, shorter one now
                raise _BrokenOffError("the file on the server changed") from None
            raise self.refusal(error.code, str(error.reason)) from None
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to nonsense
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise _FetchError(f"{self.shown}: {_line(reason)}") from error
            raise _BrokenOffError(_line(reason)) from error
        with response:
            total = self.begin(response.status, response.headers, have)
            self.append(response, total, progress)

    def refusal(self, status: int, reason: str = "") -> Exception:
        """The exception for an answer that brings no file."""
        if status in _TEMPORARY:
            return _BrokenOffError(f"the server answers {status}")
        phrase = reason if 300 <= status < 400 else _PHRASES.get(status, "")  # a redirect's reason is urllib's or ours
        return _FetchError(
            f"{self.shown}: the server answers {status} {' '.join(phrase.split())[:300]}".rstrip(), status
        )

    def begin(self, status: int, headers: HTTPMessage, have: int) -> int | None:
        """Take the answer's headers: go on, or begin anew; the number of bytes in all, None if the body's end tells."""
        validator = headers.get("ETag") or headers.get("Last-Modified") or ""
        if validator.startswith("W/"):
            validator = ""  # "weakly the same" isn't byte for byte (RFC 9110, 13.1.5)
        if status == HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            same = span and int(span[1]) == have and self.known.get("total") in (None, int(span[2]))
            if not span or not same or validator not in ("", self.known.get("validator")):
                self.restart()
                raise _BrokenOffError("the server sends another part, or another file, than was asked for")
            return int(span[2])
        if status != HTTPStatus.OK:
            raise self.refusal(status)
        self.restart()
        packing, length = headers.get("Content-Encoding", "identity"), headers.get("Content-Length", "")
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        total = int(length) if length.isdigit() and not chunked else None
        if packing != "identity":
            raise _FetchError(f"{self.shown}: the server packs the file by {packing[:20]!r}, which wasn't asked for")
        if total is None and not chunked and self.size is None:
            raise _FetchError(f"{self.shown}: the server doesn't tell the length, half a file would pass for whole")
        if self.size is not None and total not in (None, self.size):
            raise _FetchError(f"{self.shown}: the server has {total} bytes, expected {self.size}")
        md5 = re.search(r"md5=([\w+/]{22}==)", ",".join(headers.get_all("X-Goog-Hash", [])))  # Kaggle's storage
        checksum = base64.b64decode(md5[1]).hex() if md5 else None
        self.known = {"url": self.url, "validator": validator, "total": total, "md5": checksum}
        write_atomically(self.notes, json.dumps(self.known))
        return total

    def append(self, response: Any, total: int | None, progress: Progress | None) -> None:
        """Write the body as it comes, and leave when it is whole."""
        done, expected = self.have, self.size if total is None else total
        most = Limits().max_bytes if expected is None else expected
        since, before = time.monotonic(), done
        while chunk := _next_chunk(response):
            done += len(chunk)
            if done > most:
                self.restart()
                raise _FetchError(f"{self.shown}: the server sends more than {most} bytes")
            self.file.write(chunk)
            self.file.flush()
            if progress:
                progress(done, expected or 0)
            if (now := time.monotonic()) > since + self.timeout_seconds:
                if done - before < _SLOWEST_BYTES_PER_SECOND * self.timeout_seconds:
                    raise _BrokenOffError(f"the server sent {done - before} bytes in {self.timeout_seconds:g} seconds")
                since, before = now, done
        if expected is not None and done < expected:
            raise _BrokenOffError(f"the connection ended after {done} of {expected} bytes")

    def finish(self, sha256: str | None) -> None:
        """Check the whole part and give it its name."""
        part = Path(self.file.name)
        for name, expected in (("sha256", sha256), ("md5", self.known.get("md5"))):
            if expected and (got := _digest(part, name)) != expected.lower():
                self.restart()
                raise _FetchError(f"{self.shown}: {name} is {got}, expected {expected}; the download was deleted")
        os.fsync(self.file.fileno())
        part.replace(self.path)
        self.notes.unlink(missing_ok=True)


class _Redirect(request.HTTPRedirectHandler):
    """At most 5 redirects, to http(s) alone, never from https down to http, and no credentials for another host."""

    max_redirections = 5
    http_error_308 = request.HTTPRedirectHandler.http_error_302  # Python 3.10 has none

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise HTTPError(req.full_url, code, f"to a {new.scheme} address, which is refused", headers, fp)
        same = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        kept = {name: value for name, value in req.headers.items() if same or name.lower() in _HARMLESS}
        return request.Request(newurl, headers=kept)


def _opener() -> request.OpenerDirector:
    """urllib's opener without its handlers for file:, ftp: and data: addresses."""
    opener = request.OpenerDirector()
    handlers = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler)
    for handler in (*handlers, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, _Redirect):
        opener.add_handler(handler())
    return opener


def _next_chunk(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:  # the network's; a full disk is an OSError too
        raise _BrokenOffError(_line(error)) from error


@contextmanager
def _locked_part(path: Path, shown: str) -> Iterator[IO[bytes]]:
    """`path` + ".part", open for appending by one process at a time (unlocked on Windows); removed if left empty."""
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


def _digest(path: Path, name: str) -> str:
    digest = hashlib.new(name)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _checked(url: str) -> str:
    """`url` as messages show it: without its query, which may be a secret; DataError for one that isn't taken."""
    try:
        parts = urlsplit(url)
        plain = "@" not in parts.netloc and re.fullmatch(r"[!-~]+", url)
        if parts.scheme in ("http", "https") and parts.hostname and plain:
            return f"{parts.scheme}://{parts.netloc}{parts.path}"
    except ValueError:
        pass
    shown = re.sub(r"//[^/]*@", "//...@", url)
    raise DataError(f"{shown!r}: expected an address like https://host/file, without user, password, spaces or accents")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
