"""What stands before every route: who may ask, headers of every answer, figures, and refusals as JSON."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from imgclf.names import as_json, printable
from imgclf.serving.counters import Counters
from imgclf.serving.settings import Refusal, ServeSettings

__all__ = ["Guard", "json_answer"]

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_DRAIN_SECONDS, _DRAIN_BYTES = 5.0, 2**28  # of a refused body, so that its sender reads the answer before the end


def json_answer(value: object, status: int = 200) -> Response:
    """Return an answer in JSON, in which names are escaped as `imgclf.names` does it."""
    headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if status in (429, 503) else {})
    return Response(as_json(value, allow_nan=False), status, headers, "application/json")


class Guard:
    """Middleware: refuses foreign hosts and origins, and turns every `Refusal` into its answer.

    `name` gives the route of a path, under which its requests are counted.
    """

    def __init__(self, app: App, settings: ServeSettings, counters: Counters, name: Callable[[str], str]) -> None:
        self.app, self.settings, self.counters, self.name = app, settings, counters, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # where the client has gone before an answer

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
            await self.app(scope, receive, guarded)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, guarded)
        except ClientDisconnect:
            pass
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            if status != 499:
                raise
            line = "an error of the service itself; its log has the details"
            await json_answer({"error": line}, 500)(scope, receive, guarded)
        finally:
            self.counters.count_request(self.name(scope["path"]), status, time.perf_counter() - began)

    def _check(self, method: str, headers: Headers) -> None:
        """Raise `Refusal` for a host or an origin that may not ask."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if "content-length" in headers and "transfer-encoding" in headers:
            # RFC 9112, 6.1: what a proxy in front takes for the end of the body may be another request
            raise Refusal(400, "content-length and transfer-encoding: expected one of them", closes=True)
        if not self.settings.knows_host(host):
            line = (
                f"host {printable(host)[:80]!r}: expected localhost or 127.0.0.1; --host 0.0.0.0 serves other names too"
            )
            raise Refusal(421, line, closes=True)
        if method == "POST" and origin is not None and not self.settings.knows_origin(origin, host):
            line = f"origin {printable(origin)[:80]!r}: a page of another site may not ask; --cors permits it"
            raise Refusal(403, line, closes=True)


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer of a refusal. Where the body wasn't read whole, read on for a while, or the client, which still sends,
    would get an error of the connection and no answer; then close.
    """
    answer = json_answer({"error": refusal.line}, refusal.status)
    if not refusal.closes:
        await answer(scope, receive, send)
        return
    answer.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": refusal.status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    if not Headers(scope=scope).get("expect"):  # else the client waits for the answer before it sends
        await _drain(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    """Read the rest of a body and forget it, up to a size and a time."""

    async def read() -> None:
        count, more = 0, True
        while more and count < _DRAIN_BYTES:
            message = await receive()
            count += len(message.get("body", b""))
            more = bool(message.get("more_body"))

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DRAIN_SECONDS)
