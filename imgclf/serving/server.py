"""The HTTP server: uvicorn on one socket, with limits for connections and slow heads, which stops when it has answered."""

import asyncio
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from imgclf.errors import ConfigError
from imgclf.serving.settings import CONNECTIONS, HEADER_SECONDS, is_loopback

__all__ = ["Server", "bind", "serve"]

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at the address, before models are loaded; 0 is a free port. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}; expected an address of this machine") from None
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{host}:{port}: can't be served at ({error.strerror}); pass another --port, or 0") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address by which a browser on this machine finds the socket."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}/"


def is_private(bound: socket.socket) -> bool:
    """Return whether this machine alone reaches the socket."""
    return is_loopback(bound.getsockname()[0])


def serve(app: ASGIApp, bound: socket.socket, timeout_seconds: float, ready: Any = None, browser: bool = False) -> int:
    """Serve until a signal, answer what was taken, and return the signal's number; `ready` is called once it answers.

    A second SIGINT doesn't wait for answers.
    """
    server = Server(app, timeout_seconds, ready)
    if browser:
        server.started_calls.append(
            lambda: threading.Thread(target=webbrowser.open, args=[url_of(bound)], daemon=True).start()
        )
    asyncio.run(server.serve(sockets=[bound]))
    return server.signum


class Server(uvicorn.Server):
    """uvicorn with signals that end it and nothing else; `signum` is the one that did, 0 for `should_exit`."""

    def __init__(self, app: ASGIApp, timeout_seconds: float, ready: Any = None) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="critical",  # a flood of broken requests must not fill a log; `Guard` logs errors of the service
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=15,
            # For a body and its answer, the longest that a request that was taken may need.
            timeout_graceful_shutdown=int(2 * timeout_seconds) + 1,
        )
        super().__init__(config)
        self.signum = 0
        self.started_calls = [ready] if ready else []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and call those that wait for it."""
        await super().startup(sockets)
        for call in self.started_calls:
            call()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals inside the block; uvicorn's own would raise them again after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            if before[number] is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores SIGHUP
                signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        self.handle_exit(signum, frame)


class _Protocol(H11Protocol):
    """uvicorn's connection, closed where the head of a request, or the reading of an answer, takes too long."""

    _timer: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.write(_BUSY)
            transport.close()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._cancel()  # uvicorn's own timer waits for the next request

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _watch_head(self) -> None:
        """Start the timer where no request is being answered; the head of the next one may have begun."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
