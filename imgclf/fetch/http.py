"""A file from the web: whole under its final name, or not there; what has come is kept for resuming."""

import os
import time
from pathlib import Path

from imgclf.errors import DataError
from imgclf.fetch.http_client import BrokenOffError, FetchError, checked
from imgclf.fetch.http_part import Part, Progress, digest_of, locked_part

__all__ = ["download_url"]

_BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each later one


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
    path, shown = Path(path), checked(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.is_file() and size in (None, path.stat().st_size)
        if there and (sha256 is None or digest_of(path, "sha256") == sha256.lower()):
            return path
        with locked_part(path, shown) as file:
            part = Part(url, path, file, {**(headers or {}), "Accept-Encoding": "identity"}, size, timeout_seconds)
            for attempt in range(1, attempts + 1):
                try:
                    part.fetch(progress)
                    break
                except BrokenOffError as error:
                    if attempt == attempts:
                        kept = f"; {part.have} bytes are kept, run it again to go on from there" if part.have else ""
                        raise FetchError(f"{shown}: {error} (attempt {attempt} of {attempts}){kept}") from error
                    time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            part.finish(sha256)
    except OSError as error:
        raise DataError(f"{shown}: can't be written to {path}: {error.strerror}; make room and run it again") from error
    return path
