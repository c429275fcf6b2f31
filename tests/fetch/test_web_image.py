"""RemoteImage addresses: what they may reach, for how long, and how much of it; all on a loopback server."""

import gzip
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgclf
from imgclf.errors import ImageError
from imgclf.fetch import web_image as web
from imgclf.fetch.web_image import fetch_image, is_public, is_url
from imgclf.predict import main

Answer = Callable[[BaseHTTPRequestHandler], None]


def png(side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), (200, 40, 40), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def to_dict(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def moved(where: str, status: int = 302) -> Answer:
    return to_dict(b"", status, Location=where)


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
    """A server whose paths answer as `PAGES` says; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            PAGES.get(self.path.partition("?")[0], to_dict(b"nothing", 404))(self)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # whoever was cut off in a slow answer

    httpd = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


BOMB = gzip.compress(bytes(64 * 2**20))
PAGES: dict[str, Answer] = {
    "/red.png": to_dict(png()),
    "/café.png": to_dict(png()),
    "/caf%C3%A9.png": to_dict(png()),
    "/packed.png": to_dict(gzip.compress(png()), Content_Encoding="gzip"),
    "/bomb": to_dict(BOMB, Content_Encoding="gzip"),
    "/brotli": to_dict(b"xx", Content_Encoding="br"),
    "/page.jpg": to_dict(b"<!DOCTYPE html><html><body>Not found</body></html>", Content_Type="image/jpeg"),
    "/short.png": to_dict(png(), Content_Length=str(len(png()) + 10)),
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


@pytest.mark.parametrize("path", ["/red.png", "/packed.png", "/once", "/red.png?key=1", "/café.png"])
def test_a_picture_comes_as_it_is(server: str, path: str) -> None:
    assert fetch(server + path) == png()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.png", "the server answers 404"),
        ("/bomb", "has more than 32 MiB"),
        ("/endless", "has more than 32 MiB"),
        ("/brotli", "packs it by 'br'"),
        ("/short.png", "ended 10 bytes early"),
        ("/loop", "redirects more than 5 times"),
        ("/file", "redirects to 'file:///etc/passwd', which is refused"),
        ("/user", "redirects to an address that is refused"),
    ],
)
def test_what_is_refused_names_the_address(server: str, path: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(server + path)
    assert str(caught.value).startswith(f"{server}{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_drip_ends_at_the_deadline(server: str, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match=f"{path}: not there after 0.5 seconds"):
        fetch(server + path, timeout_seconds=0.5)
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing(server: str) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ImageError, match=r"not there after 0\.3 seconds"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", timeout_seconds=0.3)
    silent.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]",
     "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "[::]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"],
)  # fmt: skip
def test_private_addresses_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch_image(f"http://{host}:9/x", timeout_seconds=5)
    assert "which is refused" in str(caught.value) or "can't be fetched" in str(
        caught.value
    )  # no IPv6, or no such form
    if host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "10.0.0.1", "169.254.169.254"):
        assert "the private address" in str(caught.value)


def test_a_redirect_is_checked_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        web, "is_public", lambda address: address == "127.0.0.1"
    )  # as if it were a host of the internet
    assert fetch_image(f"{server}/once", timeout_seconds=5) == png()
    with pytest.raises(ImageError, match=r"127\.0\.0\.2, which is refused"):
        fetch_image(f"{server}/elsewhere", timeout_seconds=5)


def test_what_is_public() -> None:
    assert all(map(is_public, ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")))
    private = ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
               "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
               "2002:a00:1::", "::127.0.0.1", "ff02::1")  # fmt: skip
    assert not any(map(is_public, private))


def test_what_is_an_address() -> None:
    assert is_url("http://a/b") and is_url("HTTPS://a/b")
    assert not is_url("ftp://a/b") and not is_url("pictures/http://") and not is_url("C:/x")
    with pytest.raises(ImageError, match="expected an address"):
        fetch_image("http://me:secret@example.org/x.jpg")
    with pytest.raises(ImageError) as caught:
        fetch_image("http://me:secret@example.org/x.jpg")
    assert "secret" not in str(caught.value)


def test_predict_takes_addresses(server: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(tiny_run / "checkpoints" / "best.ckpt")
    good, bad = f"{server}/red.png", f"{server}/page.jpg"
    assert main([checkpoint, good, bad, "--allow-private", "--csv"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith(f"{good},red,")
    assert f"{bad}: begins with" in err or (f"{bad}: " in err and "page" in err)
    assert main([checkpoint, good]) == 1
    assert "which is refused" in capsys.readouterr().err


def test_load_takes_addresses(server: str, tiny_run: Path) -> None:
    classifier = imgclf.load(tiny_run / "checkpoints" / "best.ckpt")
    with pytest.raises(ImageError, match="the private address"):
        classifier.predict(f"{server}/red.png")
