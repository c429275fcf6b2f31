"""What the tests of the page need: a server of a static folder, a small stand-in for `imgclf serve`, an ONNX file, a film."""

import atexit
import base64
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.browser import _Browser, _Tab

import imgclf.page
from imgclf.errors import DataError
from imgclf.exporting.web_runtime import VARIABLE, VERSION, runtime_files
from imgclf.preprocess import Preprocess

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:"
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
_TYPES |= {".wasm": "application/wasm", ".json": "application/json", ".jpg": "image/jpeg"}


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """Serve on 127.0.0.1 in a thread; yields the address of the root."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Static(SimpleHTTPRequestHandler):
    """A plain static host; `headers_too` are what some hosts add."""

    headers_too: dict[str, str] = {}
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **_TYPES}

    def log_message(self, *arguments: object) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in self.headers_too.items():
            self.send_header(name, value)
        super().end_headers()


def static_host(folder: Path, **headers: str) -> Any:
    """Return the context of a static host of `folder`; `headers` with "_" for "-" are added to every answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return serving(partial(type("Host", (_Static,), {"headers_too": names}), directory=str(folder)))


class Answers:
    """What the stand-in of `imgclf serve` answers; tests change it."""

    def __init__(self, models: Sequence[dict[str, Any]], sample: bytes = b"") -> None:
        self.models, self.sample = list(models), sample
        self.status = 200  # of the next predictions
        self.headers: dict[str, str] = {}
        self.error = "one line"
        self.seen: list[dict[str, Any]] = []
        self.top = [("ace of clubs", 0.91), ("ace of spades", 0.06), ("joker", 0.02)]
        self.map = ""  # a data: address
        self.pause_seconds = 0.0


def stub_server(answers: Answers) -> Any:
    """Return the context of a server with the routes and answers of `imgclf serve`."""
    return serving(type("Stub", (_Stub,), {"answers": answers}))


class _Stub(BaseHTTPRequestHandler):
    answers: Answers
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metadata":
            about = {"version": "0.1.0", "threshold": 0.0, "max_bytes": 32 * 2**20, "models": self.answers.models}
            return self._send(200, json.dumps(about).encode(), "application/json")
        if path.startswith("/samples/"):
            return self._send(200, self.answers.sample, "image/png")
        name = "index.html" if path == "/" else path.removeprefix("/static/")
        file = files(imgclf.page).joinpath(name)
        if "/" in name or not file.is_file():
            return self._send(404, b"{}", "application/json")
        self._send(200, file.read_bytes(), _TYPES[Path(name).suffix])

    def do_POST(self) -> None:
        answers, query = self.answers, parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answers.seen.append({"query": query, "type": self.headers["Content-Type"], "body": body})
        time.sleep(answers.pause_seconds)
        if answers.status != 200:
            return self._send(answers.status, json.dumps({"error": answers.error}).encode(), "application/json")
        top = [{"class": name, "probability": value} for name, value in answers.top]
        prediction: dict[str, Any] = {
            "name": "image",
            "predicted": top[0]["class"],
            **top[0],
            "top": top,
            "seconds": 0.0123,
        }
        if query["saliency"] == ["1"]:
            prediction["saliency"] = answers.map
        self._send(
            200, json.dumps({"model": query["model"][0], "predictions": [prediction]}).encode(), "application/json"
        )

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Connection", "close")  # so that the server is gone once it is closed
        for name, value in self.answers.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def runtime_or_skip() -> None:
    """Let `$IMGCLF_WEB_RUNTIME` name a folder with ONNX Runtime for the browser; skip the test where it can't be had.

    It is the package that the variable names, or what npm fetches, as for a user.
    """
    given = os.environ.get(VARIABLE)
    if not given and not shutil.which("npm"):
        pytest.skip(f"needs npm, or ${VARIABLE}: the file that `npm pack onnxruntime-web@{VERSION}` writes")
    if not given or Path(given).is_file():
        os.environ[VARIABLE] = _unpacked(given)


@cache
def _unpacked(package: str | None) -> str:
    """Return a folder with the checked files of the package, for all tests of this process: unpacking takes seconds."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        files = runtime_files(package)
    except DataError as error:
        if package:
            raise
        pytest.skip(f"npm can't fetch ONNX Runtime for the browser: {error}")
    for name, data in files.items():
        (Path(folder) / name).write_bytes(data)
    return folder


def colour_model(path: Path, preprocess: Preprocess, classes: Sequence[str]) -> dict[str, Any]:
    """Write an ONNX file whose classes are told apart by the mean colour of the image; return its facts (contract 1)."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    channels, count = preprocess.channels, len(classes)
    weights = np.random.default_rng(0).normal(0, 8, (channels, count)).astype(np.float32)
    if channels == 3 and count >= 3:
        weights[:, :3] = np.eye(3, dtype=np.float32)[:, [2, 1, 0]] * 24  # blue, green, red
        weights[:, 3:] = 0
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    tensors = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(np.array(255, np.float32), "white"),
        numpy_helper.from_array(weights, "weights"),
    ]
    side = preprocess.size
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", side, side, channels])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", count])],
        tensors,
    )
    facts = {
        "format": 1,
        "version": "0.1.0",
        "opset": 18,
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "backbone": "mean_colour",
        "metadata": {
            "data": {"name": "colours"},
            "metrics": {"test": {"accuracy": 0.987, "count": 265, "loss": float("nan")}},
        },
        "licence": "CC0",
    }
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"imgclf": json.dumps(facts)})
    onnx.save(model, str(path))
    return facts


def write_film(path: Path, images: Sequence[NDArray[np.uint8]], size: tuple[int, int] = (640, 480)) -> Path:
    """Write RGB images as the frames of a raw film (Y4M, 30 frames a second, a second each), centred on grey."""
    width, height = size
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F30:1 Ip A1:1 C420jpeg\n".encode())
        for image in images:
            frame = np.full((height, width, 3), 128, np.uint8)
            side = min(width, height)
            left = (width - side) // 2
            frame[:side, left : left + side] = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes()
            for _ in range(30):
                file.write(b"FRAME\n" + planes)
    return path


class LivePage:
    """A page in a tab that is watched: its console, its errors and its requests."""

    def __init__(self, tab: _Tab, address: str, width: int = 1280, dark: bool = False, cores: int = 2) -> None:
        self.tab, self.address = tab, address
        height = 844 if width <= 600 else 800
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        tab.call("Emulation.setHardwareConcurrencyOverride", hardwareConcurrency=cores)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            tab.call(f"{domain}.enable")
        tab.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        tab.call("Page.navigate", url=address)
        tab.wait_for("document.readyState === 'complete' && !document.querySelector('main')?.ariaBusy")

    def choose(self, *paths: Path) -> None:
        """Give files to the page's file input."""
        root = self.tab.call("DOM.getDocument")["root"]["nodeId"]
        node = self.tab.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def text(self, selector: str) -> str:
        """Return the text that is visible in the first element of a selector."""
        return str(self.tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def answer(self) -> str:
        """Return the headline of the first model, once it is there."""
        return str(self.tab.wait_for("document.querySelector('.card:not(.waiting) .label')?.textContent"))

    def error(self) -> str:
        """Return the sentence of the error, once it is there."""
        return str(self.tab.wait_for("!error.hidden && error.textContent"))

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        key_facts = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.tab.call("Input.dispatchKeyEvent", type="keyDown", **key_facts)
        self.tab.call("Input.dispatchKeyEvent", type="keyUp", **{**key_facts, "text": ""})

    def run(self, script: str) -> Any:
        """Return what a script returns; it may wait for promises."""
        return self.tab.evaluate(f"(async () => {{ {script} }})()")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self.tab.call("Page.getLayoutMetrics")["cssContentSize"]
        image = self.tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(image["data"]))

    def strangers(self) -> list[str]:
        """Return the addresses that were requested of other origins."""
        self.tab.evaluate("1")  # takes in what has been reported
        return [url for url in self.tab.requests if not url.startswith((self.address, "blob:", "data:"))]


def camera_browser(film: Path) -> _Browser:
    """Return a browser whose camera shows a film, without asking."""
    return _Browser(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
