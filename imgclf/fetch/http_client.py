"""urllib, tamed: http(s) addresses alone, few redirects, no credentials for strangers, and two kinds of failure."""

import re
from http.client import HTTPMessage
from typing import IO
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from imgclf.errors import DataError

__all__ = ["BrokenOffError", "FetchError", "checked", "one_line", "opener"]

_HARMLESS = {"accept-encoding", "range", "if-range"}  # headers that may follow a redirect to another host


class FetchError(DataError):
    """The server didn't give the file; `status` is its HTTP answer, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BrokenOffError(Exception):
    """An attempt that may go better the next time."""


def checked(url: str) -> str:
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


def opener() -> request.OpenerDirector:
    """urllib's opener without its handlers for file:, ftp: and data: addresses."""
    opener = request.OpenerDirector()
    handlers = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler)
    for handler in (*handlers, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, _Redirect):
        opener.add_handler(handler())
    return opener


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


def one_line(error: object) -> str:
    """What `error` says, in one line that isn't too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__
