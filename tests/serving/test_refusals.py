"""What a service refuses, each with its status and one line: hostile bodies, wrong parameters, foreign pages."""

import io
import json
import zipfile
from collections.abc import Iterator

import pytest
from PIL import Image
from support.image_files import chunk, encoded, png
from support.odd_names import NAMES
from support.service import JPEG, Answer, Asked, form, running

from imgclf.serving.models import ServedModel

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PNG = encoded(Image.new("RGB", (20, 20), (200, 40, 40)), "PNG")
NAMELESS = b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"
TEXT = b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\n1\r\n--x--\r\n'
PHOTO = encoded(Image.effect_noise((300, 300), 50), "JPEG")


def archive() -> bytes:
    """Return a ZIP file that holds an image."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("image.png", PNG)
    return file.getvalue()


HOSTILE = {
    "empty": b"",
    "truncated JPEG": PHOTO[: len(PHOTO) // 2],
    "JPEG without its end": PHOTO[:-40],
    "bomb of 50,000 x 50,000 pixels": png(50_000, 50_000, 1, 0, b"\0" * 100_000),
    "text bomb": png(20, 20, 8, 2, b"\0" * 61 * 20, chunk(b"zTXt", b"k\0\0" + b"\0" * 1000))[:-20],
    "ZIP": archive(),
    "HTML": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.7\n" + b"x" * 1000,
    "zeros": b"\0" * 500_000,
    "text": b"../../etc/passwd",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}


@pytest.mark.trust(
    "a body that is no image, is cut off, or would fill the memory", "an error of the service, or no answer"
)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_body_gets_422_and_the_service_lives(asked: Asked, red: bytes, name: str) -> None:
    for body, headers in ((HOSTILE[name], JPEG), form(("images", "x.png", HOSTILE[name]))):
        answer = asked.ask("/predict", body, headers)
        assert answer.status == 422 and 10 < len(answer.error) < 300
    assert asked.ask("/predict", red, JPEG).status == 200


def test_too_large_body_gets_413_and_is_not_kept(asked: Asked) -> None:
    answer = asked.ask("/predict", b"\xff\xd8" + bytes(60_000_000), JPEG)
    assert answer.status == 413 and "1,048,576 bytes" in answer.error and answer.headers["connection"] == "close"
    body, headers = form(("images", "x.png", bytes(2_000_000)))
    assert asked.ask("/predict", body, headers).status == 413
    assert asked.service is not None and asked.service.admission.held == asked.service.admission.taken == 0


def test_too_large_body_of_undeclared_length_gets_413_while_it_arrives(asked: Asked) -> None:
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"%x\r\n%s\r\n" % (2**16, bytes(2**16))
    assert asked.ask_raw(head + piece * 40 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_expected_body_is_not_asked_for_if_too_large(asked: Asked) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 60000000\r\n\r\n"
    assert asked.ask_raw(head).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("query", "status", "line"),
    [
        ("model=nothing", 404, "model nothing: not served here; expected one of colours, second"),
        ("model=colour", 404, "did you mean colours?"),
        ("tpo=3", 400, "did you mean top?"),
        ("top=0", 400, "top=0: expected a whole number from 1"),
        ("top=1e3", 400, "top=1e3: expected a whole number"),
        ("top=" + "9" * 5000, 400, "expected a whole number"),
        ("threshold=nan", 400, "expected a number from 0 to 1"),
        ("threshold=1.01", 400, "expected a number from 0 to 1"),
        ("saliency=yes", 400, "saliency=yes: expected a whole number from 0 to 1"),
        ("top=1&top=2", 400, "given twice"),
        ("model=%00%1b[31m%0d%0aSet-Cookie:%20a=b", 404, r"\x00\x1b[31m\x0d\x0aSet-Cookie"),
    ],
)
def test_wrong_parameter(asked: Asked, query: str, status: int, line: str) -> None:
    answer = asked.ask(f"/predict?{query}", PNG, JPEG)
    assert answer.status == status and line in answer.error and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"urls": "http://x"}',
        b'{"urls": []}',
        b'{"urls": [1]}',
        b'{"urls": ["http://x"], "more": 1}',
        b'{"url": "http://x"}',
        b"\xff\xfe",
        json.dumps({"urls": ["http://127.0.0.1/x"] * 33}).encode(),
    ],
)
def test_wrong_json(asked: Asked, body: bytes) -> None:
    assert asked.ask("/predict", body, JSON).status == 400


def test_json_is_bounded(asked: Asked) -> None:
    assert asked.ask("/predict", b'{"urls": ["' + b"x" * 2**18 + b'"]}', JSON).status == 413


@pytest.mark.parametrize(
    ("body", "headers", "line"),
    [
        (*form(), "no image"),
        (*form(("other", "x.png", PNG)), "expected files in the field images"),
        (*form(*[("images", "x.png", PNG)] * 33), "at most 32 files"),
        (PNG, {"Content-Type": "multipart/form-data"}, "the form can't be read"),
        (PNG, FORM, "the form can't be read"),
        (NAMELESS, FORM, "form"),
        (TEXT, FORM, "is a text"),
    ],
)
def test_wrong_form(asked: Asked, body: bytes, headers: dict[str, str], line: str) -> None:
    answer = asked.ask("/predict", body, headers)
    assert answer.status == 400 and line in answer.error


def test_form_with_an_endless_header_is_refused_in_time(asked: Asked) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="' + b"a" * 900_000 + b'"\r\n\r\n1\r\n--x--\r\n'
    assert asked.ask("/predict", body, FORM).status == 400


@pytest.mark.parametrize(
    "kind", ["text/html", "application/x-www-form-urlencoded", "application/json5", "a/b\x7f", ";;;x"]
)
def test_other_type_gets_415(asked: Asked, kind: str) -> None:
    status = asked.ask("/predict", PNG, {"Content-Type": kind}).status
    assert status == (200 if kind.startswith(";") else 415)  # without a type it is an image
    assert asked.ask("/predict", PNG, {**JPEG, "Content-Encoding": "gzip"}).status == 415


def test_unknown_path_or_method(asked: Asked) -> None:
    assert asked.ask("/nothing").status == 404 and "/docs lists them" in asked.ask("/nothing").error
    answer = asked.ask("/predict")
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert asked.ask("/metadata", b"", method="DELETE").status == 405


@pytest.fixture(scope="module")
def public(tiny_model: ServedModel) -> Iterator[Asked]:
    """Service with the default limits: it fetches nothing from private networks."""
    with running([tiny_model], cors=("https://example.org",)) as site:
        yield site


@pytest.mark.trust("an address of this machine or of a private network in a request", "the service asks it")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/samples/0/0",
        "http://localhost:{port}/samples/0/0",
        "http://[::1]:{port}/samples/0/0",
        "http://[::ffff:127.0.0.1]:{port}/samples/0/0",
        "http://2130706433:{port}/samples/0/0",
        "http://0x7f.1:{port}/samples/0/0",
        "http://10.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "http://user:password@127.0.0.1/",
        "/etc/passwd",
        "",
        "http://127.0.0.1:{port}/\r\nX-Injected: 1",
    ],
)
def test_private_address_gets_422(public: Asked, url: str) -> None:
    body = json.dumps({"urls": [url.format(port=public.port)]}).encode()
    answer = public.ask("/predict", body, JSON)
    assert answer.status == 422 and "password" not in answer.error.replace("user, password", "").replace(
        "/etc/passwd", ""
    )
    metrics = public.ask("/metrics").body.decode()
    assert 'path="/samples"' not in metrics


@pytest.mark.trust(
    "a page of another site asks a service on this machine", "it reads an answer, or the service works for it"
)
def test_other_hosts_and_origins_are_refused(public: Asked) -> None:
    port = public.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "",
        "localhost@evil.example",
        "[::1",
    ):
        answer = public.ask("/metadata", headers={"Host": host})
        assert answer.status == 421 and "expected localhost" in answer.error, host
    for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}", "127.1.2.3", "LOCALHOST", "example.org"):
        assert public.ask("/health", headers={"Host": host}).status == 200, host
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost",
        "https://example.org.evil.example",
        "https://x\x01",
    ):
        assert public.ask("/predict", PNG, {**JPEG, "Origin": origin}).status == 403, origin
    for origin in (f"http://127.0.0.1:{port}", "https://example.org"):
        assert public.ask("/predict", PNG, {**JPEG, "Origin": origin}).status == 200, origin


def test_cors_is_for_the_origins_that_are_named(public: Asked, asked: Asked) -> None:
    def allowed(answer: Answer) -> str | None:
        return answer.headers.get("access-control-allow-origin")

    ours, other = {"Origin": "https://example.org"}, {"Origin": "https://evil.example"}
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert allowed(public.ask("/predict", PNG, {**JPEG, **ours})) == "https://example.org"
    assert allowed(public.ask("/predict", b"", {**JPEG, **ours})) == "https://example.org"  # an error can be read too
    assert allowed(public.ask("/predict", PNG, {**JPEG, **other})) is None
    assert public.ask("/predict", headers={**ours, **wish}, method="OPTIONS").status == 200
    assert allowed(public.ask("/predict", headers={**other, **wish}, method="OPTIONS")) is None
    refused = asked.ask("/predict", headers={**ours, **wish}, method="OPTIONS")
    assert refused.status == 405 and not any(name.startswith("access-control") for name in refused.headers)
    assert allowed(asked.ask("/metadata", headers=ours)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /health HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n nonsense\r\n\r\n",
    ],
)
def test_broken_http_is_closed_and_the_service_lives(asked: Asked, data: bytes) -> None:
    answer = asked.ask_raw(data)
    assert answer.startswith(b"HTTP/1.1 4") or (answer == b"" and len(data) > 100_000)
    assert asked.ask("/health").status == 200


@pytest.mark.parametrize("name", [name for name in NAMES if name.isprintable() and name.isascii()])
def test_odd_names_in_the_query_stay_text(asked: Asked, name: str) -> None:
    from urllib.parse import quote

    answer = asked.ask(f"/predict?{quote(name)}=1&model={quote(name)}", PNG, JPEG)
    assert answer.status == 400 and len(answer.error) < 300
