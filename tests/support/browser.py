"""Open pages in a headless browser, where one is installed, and return what a script reads from them."""

import atexit
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: one of {', '.join(_NAMES)}")

_COLLECT_ERRORS = """
window.errors = [];
window.addEventListener("error", event => errors.push("error: " + event.message));
window.addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
"""
_LOADED = (
    """new Promise(done => document.readyState === "complete" ? done() : addEventListener("load", () => done()))"""
)
_SETTLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


def browse(
    page: str,
    script: str,
    folder: Path,
    width: int = 1180,
    *,
    dark: bool = False,
    media: str = "screen",
    screenshot: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """Run `script` in the loaded page; return its `out`, with the page's errors under "errors", and the browser's console.

    The window is `width` pixels wide, also narrower than a browser's own windows; up to 600 it is that of a phone.
    `media` is "screen" or "print". `screenshot` is where to write the whole page as PNG.
    """
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    tab = _start().open()
    height = 844 if width <= 600 else 800
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= 600)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
    for domain in ("Page", "Runtime", "Log"):
        tab.call(f"{domain}.enable")
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=_COLLECT_ERRORS)
    tab.call("Page.navigate", url=path.as_uri())
    tab.evaluate(_LOADED)
    tab.evaluate(_SETTLED)
    result = tab.evaluate(f"(async () => {{ const out = {{}};\n{script}\nout.errors = errors; return out; }})()")
    if screenshot:
        size = tab.call("Page.getLayoutMetrics")["cssContentSize"]
        image = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        screenshot.write_bytes(base64.b64decode(image["data"]))
    tab.close()
    return dict(result), "\n".join(tab.console)


class _Browser:
    """A headless browser that takes commands of the Chrome DevTools Protocol over a pipe; it has no other dependency."""

    def __init__(self, *more: str) -> None:
        assert BROWSER
        profile = tempfile.mkdtemp()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            *more,
        ]
        # The protocol's pipes are the descriptors 3 and 4.
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 0</dev/null 1>&2', "sh", BROWSER, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.numbers, self.buffer, self.profile = itertools.count(1), b"", profile
        atexit.register(self.close)

    def open(self) -> "_Tab":
        """Return a new empty tab."""
        target = self.call("Target.createTarget", None, url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", None, targetId=target, flatten=True)["sessionId"]
        return _Tab(self, target, session)

    def call(self, method: str, tab: "_Tab | None", **parameters: object) -> dict[str, Any]:
        """Return the result of a command; what the console of `tab` says meanwhile is added to its lines."""
        assert self.process.stdin and self.process.stdout
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": tab.session} if tab else {})
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            while b"\0" not in self.buffer:
                received = self.process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
                assert received, f"the browser ended at {method}"
                self.buffer += received
            line, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            if tab and answer.get("method") in (
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
            ):
                tab.console.append(json.dumps(answer["params"]))
            if tab and answer.get("method") == "Network.requestWillBeSent":
                tab.requests.append(answer["params"]["request"]["url"])
            if tab and answer.get("method") == "Target.attachedToTarget":
                tab.workers.append(answer["params"]["sessionId"])

    def close(self) -> None:
        """End the browser, and remove its profile."""
        self.process.terminate()
        self.process.communicate()
        shutil.rmtree(self.profile, ignore_errors=True)


class _Tab:
    """A tab of the browser."""

    def __init__(self, browser: _Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session
        self.console: list[str] = []
        self.requests: list[str] = []  # addresses, once `Network.enable` was called
        self.workers: list[str] = []  # sessions of new workers, once `Target.setAutoAttach` was called

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Return the result of a command in this tab."""
        return self.browser.call(method, self, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, of a promise once it is kept."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def watch_workers(self) -> None:
        """Let the workers run that wait for a debugger, with their requests and consoles in this tab's lists."""
        while self.workers:
            worker = _Tab(self.browser, self.target, self.workers.pop())
            worker.console, worker.requests = self.console, self.requests
            for method in ("Network.enable", "Runtime.enable", "Runtime.runIfWaitingForDebugger"):
                worker.call(method)

    def wait_for(self, expression: str, seconds: float = 20) -> Any:
        """Return the value of an expression once it is true; fail after `seconds`, with what the console says."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            self.watch_workers()
            assert time.monotonic() < end, (expression, self.console)
            time.sleep(0.02)
        return value

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", None, targetId=self.target)


@cache
def _start() -> _Browser:
    """Return the browser that all tests of this process share: a start takes longer than a page."""
    return _Browser()


NASTY = '</script><img src=x onerror="document.title=1">&'


class Tags(HTMLParser):
    """Elements of a page (`tags`) and the addresses that it would load from (`loads`)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
