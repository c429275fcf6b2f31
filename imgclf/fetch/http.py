"""HTTP requests to untrusted addresses: bounded redirects, no credentials for other hosts, and one image within limits.

`open_url` is the redirect policy of every request. `fetch_image` adds what an address from a stranger needs: a deadline,
a size limit, and a check of every host against private addresses (server-side request forgery).
"""

import ipaddress
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import quote, urljoin, urlsplit

from imgclf.errors import DataError, ImageError, one_line

__all__ = ["FetchError", "check_url", "fetch_image", "is_public", "is_url", "open_url", "status_error"]

Send = Callable[[str, dict[str, str]], HTTPResponse]  # one request to an address, with headers

_MAX_REDIRECTS = 5
_MAX_IMAGE_BYTES = 32 * 2**20  # after decompression
_CHUNK_BYTES = 1 << 16
_REDIRECTS = {301, 302, 303, 307, 308}
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_FOR_ANY_HOST = {"Accept", "Accept-Encoding", "If-Range", "Range", "User-Agent"}  # headers that may follow a redirect
_UNQUOTED = "%/:?#[]@!$&'()*+,;=~"  # characters of an address that stay unencoded
# Networks of IANA's registries of special-purpose addresses, those that are reachable from everywhere too (relays, sinks of
# DNS, anycast): none of them is a web server's. https://www.iana.org/assignments/iana-ipv4-special-registry
_SPECIAL_IPV4 = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.31.196.0/24
    192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4
    240.0.0.0/4 168.63.129.16/32
"""  # the last one: Azure's own service inside its machines
_SPECIAL_IPV6 = (
    "2001::/23 2001:db8::/32 2620:4f:8000::/48 3ffe::/16 3fff::/20"  # within _UNICAST; Teredo is in the first
)
_SPECIAL = tuple(map(ipaddress.ip_network, (_SPECIAL_IPV4 + _SPECIAL_IPV6).split()))
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class FetchError(DataError):
    """The server did not deliver; `status` is its HTTP status, 0 without a response."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def is_url(text: str) -> bool:
    """Return whether `text` is a web address rather than a file name."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def check_url(url: str) -> str:
    """Return `url` for messages, without its query, which may hold a secret; raise DataError unless it is plain http(s)."""
    try:
        parts = urlsplit(url)
        plain = "@" not in parts.netloc and parts.port != 0 and re.fullmatch(r"[!-~]+", url)
        if parts.scheme in ("http", "https") and parts.hostname and plain:
            return f"{parts.scheme}://{parts.netloc}{parts.path}"
    except ValueError:
        pass
    expected = "an address like https://host/file, without user, password, spaces or accents"
    raise DataError(f"{_masked(url)}: expected {expected}")


def open_url(send: Send, url: str, headers: dict[str, str]) -> HTTPResponse:
    """Return the response of `send` after at most five redirects, with any other status.

    Redirects lead to http(s) only, never from https to http, and `headers` stay with the first host. Raises FetchError
    for a refused redirect.
    """
    headers = {"User-Agent": "imgclf", "Accept-Encoding": "identity", **headers}
    for _ in range(_MAX_REDIRECTS + 1):
        response = send(url, headers)
        if response.status not in _REDIRECTS:
            return response
        with response:
            target = _redirect_target(url, response.headers.get("Location", ""))
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            headers = {name: value for name, value in headers.items() if name in _FOR_ANY_HOST}
        url = target
    raise FetchError(f"redirects more than {_MAX_REDIRECTS} times")


def _redirect_target(url: str, location: str) -> str:
    """Return the address that `location`, a redirect's header, means at `url`; raise FetchError for a refused one."""
    try:
        target = urljoin(url, quote(location, safe=_UNQUOTED, encoding="iso-8859-1"))
        check_url(target)
    except (DataError, ValueError) as error:
        raise FetchError(f"redirects to an address that is refused ({one_line(error)})") from None
    if (urlsplit(url).scheme, urlsplit(target).scheme) == ("https", "http"):
        raise FetchError("redirects from https to http, which is refused")
    return target


def status_error(status: int) -> FetchError:
    """Return the error for a response without the expected body."""
    return FetchError(f"the server returned {status} {_PHRASES.get(status, '')}".rstrip(), status)


def _masked(url: str) -> str:
    """Return `url` quoted, without user and password, in at most 200 characters."""
    return repr(re.sub(r"//[^/]*@", "//...@", url)[:200])


def fetch_image(url: str, *, allow_private: bool = False, timeout_seconds: float = 20.0) -> bytes:
    """Return the body at `url`, at most 32 MiB after decompression, within `timeout_seconds` in all.

    Each host on the way is looked up once and connected to at the address that was checked; an address that is not
    public (loopback, private, link-local, reserved, also inside an IPv6 address) is refused unless `allow_private`.
    Proxies of the environment are not used: they would connect to unchecked addresses. Raises ImageError, which begins
    with the address.
    """
    address, shown = _to_ascii(url)
    client = _CheckedClient(allow_private, time.monotonic() + timeout_seconds)
    body: Future[bytes] = Future()

    def work() -> None:
        try:
            body.set_result(_read_body(client, address))
        except BaseException as error:
            body.set_exception(error)
        finally:
            client.close()

    # In a thread: the lookup of a name cannot be interrupted, only abandoned.
    threading.Thread(target=work, daemon=True).start()
    try:
        return body.result(timeout_seconds)
    except (FutureTimeoutError, TimeoutError):
        late = f"no complete response after {timeout_seconds:g} seconds; try again, or save the image to a file"
        raise ImageError(f"{shown}: {late}") from None
    except FetchError as error:
        raise ImageError(f"{shown}: {error}") from None
    except (OSError, HTTPException, ValueError, zlib.error) as error:
        raise ImageError(f"{shown}: can't be fetched ({one_line(error)})") from None
    finally:
        client.close()


def _to_ascii(url: str) -> tuple[str, str]:
    """Return the address with its host in IDNA and its path percent-encoded, and the address for messages."""
    address = url.strip()
    try:
        host = urlsplit(address).hostname or ""
        if not host.isascii():
            address = address.replace(host, host.encode("idna").decode(), 1)
        address = quote(address, safe=_UNQUOTED)
        return address, check_url(address)
    except ValueError as error:
        raise ImageError(f"{_masked(url)}: not a web address ({one_line(error)})") from None
    except DataError as error:
        raise ImageError(str(error)) from None


def is_public(address: str) -> bool:
    """Return whether a server of the public internet can have the IP address; an IPv4 address inside an IPv6 one counts as
    itself: mapped, 6to4, NAT64 and ISATAP.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        inner = ip.ipv4_mapped or ip.sixtofour or (last if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        isatap = int(ip) >> 32 & 0xFDFFFFFF == 0x5EFE
        if ip not in _UNICAST or (isatap and not is_public(str(last))):
            return False
    return not any(ip in network for network in _SPECIAL)


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class _CheckedClient:
    """HTTP client that connects only to checked addresses, and cuts every connection on `close`."""

    def __init__(self, allow_private: bool, deadline: float) -> None:
        self.allow_private, self.deadline = allow_private, deadline
        self._sockets: list[socket.socket] = []

    def send(self, url: str, headers: dict[str, str]) -> HTTPResponse:
        """Return the response to a GET of `url`."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "https":
            connection: HTTPConnection = HTTPSConnection(host, port, context=_tls_context())
            connection.sock = _tls_context().wrap_socket(self._connect(host, port), server_hostname=host)
            self._sockets.append(connection.sock)
        else:
            connection = HTTPConnection(host, port)
            connection.sock = self._connect(host, port)
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        return connection.getresponse()

    def seconds_left(self) -> float:
        """Return the seconds until the deadline; raise TimeoutError after it."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def close(self) -> None:
        """Cut every connection, so that the thread ends with its caller."""
        for connected in self._sockets:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
            connected.close()

    def _connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to `host`; all its addresses are checked before the first one is used."""
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in addresses:
            if not self.allow_private and not is_public(str(address[0])):
                reason = f"{host} is the private address {address[0]}, which is refused"
                raise FetchError(f"{reason}; --allow-private permits it")
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in addresses:
            connected = socket.socket(family, kind, protocol)
            self._sockets.append(connected)
            connected.settimeout(self.seconds_left())
            try:
                connected.connect(address)
                return connected
            except OSError as error:
                failure = error
        raise failure


def _read_body(client: _CheckedClient, url: str) -> bytes:
    with open_url(client.send, url, {"Accept": "image/*"}) as response:
        if response.status != HTTPStatus.OK:
            raise status_error(response.status)
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise FetchError(f"the server compresses it by {encoding[:20]!r}, which was not requested")
        body, received = bytearray(), 0
        unpack = _Unpacker() if encoding != "identity" else None
        while chunk := response.read1(_CHUNK_BYTES):
            client.seconds_left()
            received += len(chunk)
            body += unpack.unpack(chunk, _MAX_IMAGE_BYTES + 1 - len(body)) if unpack else chunk
            if max(len(body), received) > _MAX_IMAGE_BYTES:
                raise FetchError(f"has more than {_MAX_IMAGE_BYTES // 2**20} MiB; save it smaller")
        if response.length:
            raise FetchError(f"the connection ended {response.length} bytes early; try again")
        if unpack and not unpack.complete:
            raise FetchError(f"its {encoding} body ends early; try again")
        return bytes(body)


class _Unpacker:
    """Decompresses a body in zlib's format, or in gzip's, which may have several members; each has a checksum at its end."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(47)  # 47: zlib or gzip, by the header

    @property
    def complete(self) -> bool:
        """Whether the last member has ended."""
        return self._stream.eof

    def unpack(self, chunk: bytes, limit: int) -> bytes:
        """Return at most `limit` bytes; raises `zlib.error` for damaged ones."""
        unpacked = b""
        while chunk and len(unpacked) < limit:
            if self._stream.eof:
                self._stream = zlib.decompressobj(31)  # another member: gzip alone has them
            unpacked += self._stream.decompress(chunk, limit - len(unpacked))
            chunk = self._stream.unused_data
        return unpacked
