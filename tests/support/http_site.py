"""HTTP server on 127.0.0.1 that tests configure: it cuts connections, sends wrong lengths and redirects."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from imgclf.errors import DataError

BODY = bytes(os.urandom(200_000))


@dataclass
class Site:
    """Behaviour of one server; `seen` lists the requests: path and headers."""

    body: bytes = BODY
    etag: str | None = '"v1"'
    ranges: bool = True
    # Bytes of the body until the connection breaks.
    cut_after: int | None = None
    # Added to the Content-Length.
    extra_length: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    # Status codes of the next responses, which have no body.
    status: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    if_range_ignored: bool = False
    # "declared", "chunked" or "undeclared".
    length: str = "declared"
    pause_seconds: float = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Serves GET requests as its `site` is configured."""

    site: Site

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.path in site.redirects:
            return self.respond(302, {"Location": site.redirects[self.path], "Content-Length": "0"})
        if site.status:
            return self.respond(site.status.pop(0), {"Content-Length": "0"})
        start = 0
        requested, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if requested and site.ranges and (site.if_range_ignored or condition == site.etag):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start >= len(site.body) > 0:
            return self.respond(416, {"Content-Range": f"bytes */{len(site.body)}", "Content-Length": "0"})
        data = site.body[start:]
        headers = dict(site.headers) | ({"ETag": site.etag} if site.etag else {})
        if site.length == "declared":
            headers["Content-Length"] = str(len(data) + site.extra_length)
        elif site.length == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(site.body) - 1}/{len(site.body)}"
        self.respond(206 if start else 200, headers)
        sent = data if site.cut_after is None else data[: site.cut_after]
        if site.pause_seconds:
            self.wfile.write(sent[:10])
            threading.Event().wait(site.pause_seconds)
        else:
            self.wfile.write(sent)

    def respond(self, status: int, headers: dict[str, str]) -> None:
        self.protocol_version, self.close_connection = "HTTP/1.1", True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def fail(call: Callable[[], object], *parts: str) -> str:
    """Return the message of the DataError that `call` raises: one line that contains `parts`."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    return message


def names(folder: Path) -> list[str]:
    """Return the sorted names in `folder`."""
    return sorted(path.name for path in folder.iterdir())
