"""Servers on 127.0.0.1, and an environment without credentials."""

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.http_site import Handler, Site

from imgclf.fetch import resumable


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    """Start a server for each call; the keywords are the fields of its `Site`."""
    servers = []

    def start(**properties: Any) -> Site:
        site = Site(**properties)
        handler = type("OneSite", (Handler,), {"site": site})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        servers.append(server)
        return site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no waiting, no credentials, a cache of its own, and kagglehub not installed."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "IMGCLF_KAGGLE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resumable, "_BACKOFF_SECONDS", 0.001)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
