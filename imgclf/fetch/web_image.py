"""One picture from an address that anybody may have written: bounded in time, in bytes and in what it can reach."""

import ipaddress
import re
import socket
import ssl
import threading
import time
import zlib
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from imgclf.errors import DataError, ImageError
from imgclf.fetch.http_client import checked, one_line

__all__ = ["MAX_BODY", "fetch_image", "is_public", "is_url"]

MAX_BODY = 32 * 2**20  # bytes, after decompression
REDIRECTS = 5
_CHUNK = 1 << 16
_MOVED = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PARTS = "%/:?#[]@!$&'()*+,;=~"  # what is left as it is in an address with spaces or accents


def is_url(text: str) -> bool:
    """Whether `text` is meant as a web address and not as a file's name."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def fetch_image(url: str, *, allow_private: bool = False, timeout_seconds: float = 20.0) -> bytes:
    """The body at `url`, at most `MAX_BODY` bytes of it unpacked, within `timeout_seconds` in all.

    http and https only, at most 5 redirects, none from https to http; every address on the way is looked up once, checked
    and connected to as it was checked, and one that isn't public (loopback, private, link-local, reserved, also written
    as an IPv6 address) is refused unless `allow_private`. Proxies of the environment aren't used: they would connect to
    addresses that nobody has checked. Raises `ImageError` that names the address.
    """
    shown, address = _readable(url)
    visit = _Visit(allow_private, time.monotonic() + timeout_seconds)
    answer: Future[bytes] = Future()

    def work() -> None:
        try:
            answer.set_result(visit.follow(address))
        except BaseException as error:  # handed to whoever waits
            answer.set_exception(error)
        finally:
            visit.close()  # what was opened after nobody waited any more

    threading.Thread(target=work, daemon=True).start()  # looking up a name can't be interrupted, only left alone
    try:
        return answer.result(timeout_seconds)
    except (LateError, TimeoutError):
        raise ImageError(
            f"{shown}: not there after {timeout_seconds:g} seconds; try again, or save it to a file"
        ) from None
    except ImageError as error:
        raise ImageError(f"{shown}: {error}") from None
    except (OSError, HTTPException, ValueError, zlib.error) as error:
        raise ImageError(f"{shown}: can't be fetched ({one_line(error)})") from None
    finally:
        visit.close()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; an IPv4 address inside an IPv6 one counts as itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


def _readable(url: str) -> tuple[str, str]:
    """The address as messages show it, and as it is asked for."""
    address = url.strip()
    try:
        host = urlsplit(address).hostname or ""
        if not host.isascii():
            address = address.replace(host, host.encode("idna").decode(), 1)
        address = quote(address, safe=_PARTS)
        return checked(address), address
    except (DataError, ValueError) as error:
        raise ImageError(f"{url[:200]}: {error}" if isinstance(error, ValueError) else str(error)) from None


class _Visit:
    """The way to one picture, over its redirects."""

    def __init__(self, allow_private: bool, deadline: float) -> None:
        self.allow_private, self.deadline = allow_private, deadline
        self._sockets: list[socket.socket] = []

    def follow(self, url: str) -> bytes:
        """The body at the end of the redirects."""
        for _ in range(REDIRECTS + 1):
            with self._ask(urlsplit(url)) as response:
                if response.status not in _MOVED:
                    return self._body(response)
                target = urljoin(url, quote(response.headers.get("Location", ""), safe=_PARTS))
            if not is_url(target) or (url.lower().startswith("https:") and not target.lower().startswith("https:")):
                raise ImageError(f"redirects to {target[:100]!r}, which is refused; expected another https address")
            try:
                checked(target)
            except DataError as error:
                raise ImageError(f"redirects to an address that is refused ({error})") from None
            url = target
        raise ImageError(f"redirects more than {REDIRECTS} times")

    def close(self) -> None:
        """Cut every connection, so that nothing goes on behind the caller's back."""
        for connected in self._sockets:
            with suppress(OSError):  # it is closed already
                connected.shutdown(socket.SHUT_RDWR)
            connected.close()

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _ask(self, parts: SplitResult) -> HTTPResponse:
        secure, host = parts.scheme.lower() == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        connected: Any = self._connect(host, port)
        if secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
            self._sockets.append(connected)
        connection = HTTPConnection(host, port)
        connection.default_port, connection.sock = (443 if secure else 80), connected
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "GET", path, headers={"User-Agent": "imgclf", "Accept": "image/*", "Accept-Encoding": "identity"}
        )
        return connection.getresponse()

    def _connect(self, host: str, port: int) -> socket.socket:
        """A connection to what `host` stands for, each of its addresses checked before the first is used."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not self.allow_private and not is_public(str(address[0])):
                raise ImageError(
                    f"{host} is the private address {address[0]}, which is refused; --allow-private takes it"
                )
        failure: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            connected = socket.socket(family, kind, protocol)
            self._sockets.append(connected)
            connected.settimeout(self._left())
            try:
                connected.connect(address)
                return connected
            except OSError as error:
                failure = error
        raise failure

    def _body(self, response: HTTPResponse) -> bytes:
        if response.status != HTTPStatus.OK:
            raise ImageError(f"the server answers {response.status} {one_line(response.reason)}")
        packing = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ImageError(f"the server packs it by {packing[:20]!r}, which wasn't asked for")
        unpack = zlib.decompressobj(47) if packing != "identity" else None  # 47: zlib or gzip, by its header
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            self._left()
            body += unpack.decompress(chunk, MAX_BODY + 1 - len(body)) if unpack else chunk
            if len(body) > MAX_BODY:
                raise ImageError(f"has more than {MAX_BODY // 2**20} MiB; save it smaller")
        if response.length:
            raise ImageError(f"the connection ended {response.length} bytes early; try again")
        return bytes(body)
