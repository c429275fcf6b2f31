"""Images from web addresses: reachable hosts, deadline, size limit and redirects, on a loopback server."""

import gzip
import io
import ipaddress
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import imgclf
from imgclf.errors import ImageError
from imgclf.fetch import fetch_image, http, is_url
from imgclf.fetch.http import FetchError, is_public, open_url
from imgclf.predict import main

Respond = Callable[[BaseHTTPRequestHandler], None]


def png(side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), (200, 40, 40), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def page(body: bytes, status: int = 200, **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def moved(where: str, status: int = 302) -> Respond:
    return page(b"", status, Location=where)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-A: b\r\n")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 20))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a server that answers each path of `PAGES` by its function."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            PAGES.get(self.path.partition("?")[0], page(b"nothing", 404))(self)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that left during a slow response

    httpd = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


BOMB = gzip.compress(bytes(64 * 2**20))
PAGES: dict[str, Respond] = {
    "/red.png": page(png()),
    "/café.png": page(png()),
    "/caf%C3%A9.png": page(png()),
    "/packed.png": page(gzip.compress(png()), Content_Encoding="gzip"),
    "/members.png": page(gzip.compress(png()[:50]) + gzip.compress(png()[50:]), Content_Encoding="x-gzip"),
    "/deflate.png": page(zlib.compress(png()), Content_Encoding="deflate"),
    "/trailing.png": page(gzip.compress(png()) + b"more", Content_Encoding="gzip"),
    "/empty.png": page(b"", Content_Encoding="gzip"),
    "/chunked.png": page(
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(png()), png()), Transfer_Encoding="chunked", Content_Length=""
    ),
    "/cut-chunk.png": page(b"%x\r\n%s" % (len(png()), png()[:40]), Transfer_Encoding="chunked", Content_Length=""),
    "/cut-chunks.png": page(b"%x\r\n%s\r\n" % (len(png()), png()), Transfer_Encoding="chunked", Content_Length=""),
    "/bomb": page(BOMB, Content_Encoding="gzip"),
    "/brotli": page(b"xx", Content_Encoding="br"),
    "/page.jpg": page(b"<!DOCTYPE html><html><body>Not found</body></html>", Content_Type="image/jpeg"),
    "/short.png": page(png(), Content_Length=str(len(png()) + 10)),
    "/once": moved("/red.png"),
    "/loop": moved("/loop"),
    "/file": moved("file:///etc/passwd"),
    "/elsewhere": moved("http://127.0.0.2:1/secret"),
    "/user": moved("http://me:secret@127.0.0.1/x"),
    "/drip": drip,
    "/drip-headers": drip_headers,
    "/endless": endless,
}


def fetch(url: str, **options: float) -> bytes:
    return fetch_image(url, allow_private=True, timeout_seconds=options.get("timeout_seconds", 10))


@pytest.mark.parametrize(
    "path",
    ["/red.png", "/packed.png", "/members.png", "/deflate.png", "/chunked.png", "/once", "/red.png?key=1", "/café.png"],
)
def test_image_arrives_byte_for_byte(server: str, path: str) -> None:
    assert fetch(server + path) == png()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.png", "the server returned 404"),
        ("/bomb", "has more than 32 MiB"),
        ("/endless", "has more than 32 MiB"),
        ("/brotli", "compresses it by 'br'"),
        ("/short.png", "ended 10 bytes early"),
        ("/trailing.png", "can't be fetched"),
        ("/empty.png", "its gzip body ends early"),
        ("/cut-chunk.png", "can't be fetched (IncompleteRead"),
        ("/cut-chunks.png", "can't be fetched (IncompleteRead"),
        ("/loop", "redirects more than 5 times"),
        ("/file", "redirects to an address that is refused ('file:///etc/passwd'"),
        ("/user", "redirects to an address that is refused"),
    ],
)
def test_refusal_names_the_address(server: str, path: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(server + path)
    assert str(caught.value).startswith(f"{server}{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.trust("compressed web images cut off at each byte", "an image that is taken as whole")
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_body_cut_off_at_any_byte_is_an_error(
    server: str, encoding: str, record_property: Callable[[str, object], None]
) -> None:
    body = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](png())
    for length in range(len(body)):
        PAGES["/cut"] = page(body[:length], Content_Encoding=encoding)
        with pytest.raises(ImageError, match=f"its {encoding} body ends early; try again"):
            fetch(f"{server}/cut")
    record_property("tried", len(body))


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_drip_ends_at_the_deadline(server: str, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match=f"{path}: no complete response after 0.5 seconds"):
        fetch(server + path, timeout_seconds=0.5)
    assert time.monotonic() - began < 5


def test_silent_server_ends_at_the_deadline() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ImageError, match=r"no complete response after 0\.3 seconds"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", timeout_seconds=0.3)
    silent.close()


LOOPBACK = "127.0.0.1 localhost 2130706433 0x7f000001 0177.0.0.1 127.1 [::1] [::ffff:127.0.0.1] 0.0.0.0 [::]"
PRIVATE = "10.0.0.1 192.168.1.1 169.254.169.254 [fe80::1] [64:ff9b::7f00:1] [2002:7f00:1::]"


@pytest.mark.parametrize("host", f"{LOOPBACK} {PRIVATE}".split())
def test_private_addresses_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch_image(f"http://{host}:9/x", timeout_seconds=5)
    # "can't be fetched": on a system without IPv6, or without this form of an address
    assert "which is refused" in str(caught.value) or "can't be fetched" in str(caught.value)
    if host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "10.0.0.1", "169.254.169.254"):
        assert "the private address" in str(caught.value)


def test_redirect_to_a_private_address_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 127.0.0.1 stands for a host of the internet
    monkeypatch.setattr(http, "is_public", lambda address: address == "127.0.0.1")
    assert fetch_image(f"{server}/once", timeout_seconds=5) == png()
    with pytest.raises(ImageError, match=r"127\.0\.0\.2, which is refused"):
        fetch_image(f"{server}/elsewhere", timeout_seconds=5)


def test_redirect_from_https_to_http_is_refused() -> None:
    def send(url: str, headers: dict[str, str]) -> HTTPResponse:
        response = io.BytesIO(b"HTTP/1.1 302 Found\r\nLocation: http://kaggle.example/a\r\n\r\n")
        moved = HTTPResponse(SimpleNamespace(makefile=lambda mode: response))  # type: ignore[arg-type]
        moved.begin()
        return moved

    with pytest.raises(FetchError, match="from https to http, which is refused"):
        open_url(send, "https://kaggle.example/a", {})


PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.31.195.255 192.31.197.0 192.52.192.255
192.52.194.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 192.175.47.255 192.175.49.0 198.17.255.255
198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 168.63.129.15 2001:200::
2001:4860:4860::8888 2001:db7:ffff::1 2001:db9:: 2003::1 2606:4700::1111 2620:4f:7fff::1 2620:4f:8001::
2a00:1450::200e 3ffd::1 2600::5efe:808:808
"""  # most of them next to a special network
# IANA's registries of special-purpose addresses, of both kinds, whether reachable from everywhere or not, and the ranges that
# it has given to nobody.
SPECIAL = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29 192.0.0.8/32
192.0.0.9/32 192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16
192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
168.63.129.16/32 ::1/128 ::/128 ::/96 ::ffff:0:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28
2001:30::/28 2001:db8::/32 2620:4f:8000::/48 3ffe::/16 3fff::/20 4000::/3 5f00::/16 fc00::/7 fe80::/10 fec0::/10
ff00::/8
"""


def inside_ipv6(address: str) -> list[str]:
    """Return the IPv6 addresses that stand for an IPv4 address: mapped, NAT64, 6to4, and ISATAP of both kinds."""
    number = int(ipaddress.IPv4Address(address))
    six_to_four = ipaddress.IPv6Address(0x2002 << 112 | number << 80)
    forms = ("::ffff:", "64:ff9b::", "2600::5efe:", "2600::200:5efe:")
    return [f"{form}{number >> 16:x}:{number & 0xFFFF:x}" for form in forms] + [str(six_to_four)]


@pytest.mark.trust("addresses at the ends of IANA's special networks, in each form", "one that counts as public")
def test_special_addresses_are_not_public_in_any_form(record_property: Callable[[str, object], None]) -> None:
    addresses = [str(network[i]) for network in map(ipaddress.ip_network, SPECIAL.split()) for i in (0, -1)]
    addresses += [form for address in addresses if "." in address for form in inside_ipv6(address)]
    addresses += ["fe80::1%eth0", "::127.0.0.1", "2001:0:808:808::f7f7:f7f7"]
    assert [address for address in addresses if is_public(address)] == []
    record_property("tried", len(addresses))


def test_public_addresses_are_public_in_any_form() -> None:
    public = PUBLIC.split()
    addresses = public + [form for address in public if "." in address for form in inside_ipv6(address)]
    assert [address for address in addresses if not is_public(address)] == []
    draw = random.Random(0)
    drawn = [str(ipaddress.IPv4Address(draw.getrandbits(32))) for _ in range(2000)]
    assert [address for address in drawn if is_public(address) and not ipaddress.ip_address(address).is_global] == []


def test_is_url_and_addresses_with_a_password() -> None:
    assert is_url("http://a/b") and is_url("HTTPS://a/b")
    assert not is_url("ftp://a/b") and not is_url("images/http://") and not is_url("C:/x")
    with pytest.raises(ImageError, match="expected an address"):
        fetch_image("http://me:secret@example.org/x.jpg")
    with pytest.raises(ImageError) as caught:
        fetch_image("http://me:secret@example.org/x.jpg")
    assert "secret" not in str(caught.value)


def test_predict_accepts_addresses(server: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(tiny_run / "checkpoints" / "best.ckpt")
    good, bad = f"{server}/red.png", f"{server}/page.jpg"
    assert main([checkpoint, good, bad, "--allow-private", "--csv"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith(f"{good},red,")
    assert f"{bad}: begins with" in err or (f"{bad}: " in err and "page" in err)
    assert main([checkpoint, good]) == 1
    assert "which is refused" in capsys.readouterr().err


def test_load_accepts_addresses(server: str, tiny_run: Path) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    with pytest.raises(ImageError, match="the private address"):
        classifier.predict(f"{server}/red.png")
