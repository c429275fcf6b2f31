"""A download on its way: the part of a file that has come, what is known of it, and how it grows and gets its name."""

import base64
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError

from imgclf.errors import DataError
from imgclf.fetch.archive import Limits
from imgclf.fetch.http_client import BrokenOffError, FetchError, checked, one_line, opener
from imgclf.files.atomic import write_atomically

__all__ = ["Part", "Progress", "digest_of", "locked_part"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all (0: unknown)

_CHUNK_BYTES = 1 << 18
_SLOWEST_BYTES_PER_SECOND = 100  # a server that drips more slowly counts as silent
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)}


class Part:
    """The file `path` + ".part", what is known of it (in a JSON file beside it), and how it grows."""

    def __init__(
        self, url: str, path: Path, file: IO[bytes], headers: dict[str, str], size: int | None, timeout_seconds: float
    ) -> None:
        self.url, self.path, self.file, self.headers = url, path, file, headers
        self.shown, self.size, self.timeout_seconds = checked(url), size, timeout_seconds
        self.notes = path.with_name(path.name + ".part.json")
        try:
            self.known: dict[str, Any] = json.loads(self.notes.read_bytes())
        except (OSError, ValueError):
            self.known = {}
        if self.known.get("url") != url or not self.known.get("validator"):
            self.restart()  # another file, or one that can't be recognised

    @property
    def have(self) -> int:
        """Bytes of the part."""
        return self.file.seek(0, os.SEEK_END)

    def restart(self) -> None:
        """Forget all that has come."""
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
            response = opener().open(request.Request(self.url, headers=headers), timeout=self.timeout_seconds)
        except HTTPError as error:
            error.close()
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                self.restart()  # the file is another, shorter one now
                raise BrokenOffError("the file on the server changed") from None
            raise self.refusal(error.code, str(error.reason)) from None
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to nonsense
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise FetchError(f"{self.shown}: {one_line(reason)}") from error
            raise BrokenOffError(one_line(reason)) from error
        with response:
            total = self.begin(response.status, response.headers, have)
            self.append(response, total, progress)

    def refusal(self, status: int, reason: str = "") -> Exception:
        """The exception for an answer that brings no file."""
        if status in _TEMPORARY:
            return BrokenOffError(f"the server answers {status}")
        phrase = reason if 300 <= status < 400 else _PHRASES.get(status, "")  # a redirect's reason is urllib's or ours
        return FetchError(
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
                raise BrokenOffError("the server sends another part, or another file, than was asked for")
            return int(span[2])
        if status != HTTPStatus.OK:
            raise self.refusal(status)
        self.restart()
        packing, length = headers.get("Content-Encoding", "identity"), headers.get("Content-Length", "")
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        total = int(length) if length.isdigit() and not chunked else None
        if packing != "identity":
            raise FetchError(f"{self.shown}: the server packs the file by {packing[:20]!r}, which wasn't asked for")
        if total is None and not chunked and self.size is None:
            raise FetchError(f"{self.shown}: the server doesn't tell the length, half a file would pass for whole")
        if self.size is not None and total not in (None, self.size):
            raise FetchError(f"{self.shown}: the server has {total} bytes, expected {self.size}")
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
                raise FetchError(f"{self.shown}: the server sends more than {most} bytes")
            self.file.write(chunk)
            self.file.flush()
            if progress:
                progress(done, expected or 0)
            if (now := time.monotonic()) > since + self.timeout_seconds:
                if done - before < _SLOWEST_BYTES_PER_SECOND * self.timeout_seconds:
                    raise BrokenOffError(f"the server sent {done - before} bytes in {self.timeout_seconds:g} seconds")
                since, before = now, done
        if expected is not None and done < expected:
            raise BrokenOffError(f"the connection ended after {done} of {expected} bytes")

    def finish(self, sha256: str | None) -> None:
        """Check the whole part and give it its name."""
        part = Path(self.file.name)
        for name, expected in (("sha256", sha256), ("md5", self.known.get("md5"))):
            if expected and (got := digest_of(part, name)) != expected.lower():
                self.restart()
                raise FetchError(f"{self.shown}: {name} is {got}, expected {expected}; the download was deleted")
        os.fsync(self.file.fileno())
        part.replace(self.path)
        self.notes.unlink(missing_ok=True)


def _next_chunk(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:  # the network's; a full disk is an OSError too
        raise BrokenOffError(one_line(error)) from error


@contextmanager
def locked_part(path: Path, shown: str) -> Iterator[IO[bytes]]:
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


def digest_of(path: Path, name: str) -> str:
    """The checksum of the kind `name`, as hexadecimal digits."""
    digest = hashlib.new(name)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
