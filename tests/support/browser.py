"""Open a page in a headless browser, where one is installed, and return what a script reads from it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: one of {', '.join(_NAMES)}")

_FRAME = """
<script>
const errors = [];
window.addEventListener("error", event => errors.push("error: " + event.message));
window.addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
window.addEventListener("load", () => {
  const out = {};
  %s
  out.errors = errors;
  document.documentElement.setAttribute("data-result", JSON.stringify(out));
});
</script>
"""


def browse(page: str, script: str, folder: Path, width: int = 1180) -> tuple[dict[str, Any], str]:
    """Run `script` in the loaded page; return its `out`, with the page's errors under "errors", and the browser's console."""
    assert BROWSER
    path = folder / "page.html"
    loosened = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", page)
    path.write_text(loosened.replace("<main>", _FRAME % script + "<main>", 1), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--window-size={width},900",
        profile,
        "--virtual-time-budget=4000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'data-result="(.*?)"', done.stdout)
    assert match, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(match[1])), console


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
