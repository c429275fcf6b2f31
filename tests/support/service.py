"""A service in a thread of the test's process, and requests to it."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from imgclf.serving.app import Service, build_app
from imgclf.serving.models import Decoded, ServedModel
from imgclf.serving.server import Server, bind
from imgclf.serving.settings import ServeSettings

JPEG = {"Content-Type": "image/jpeg"}


@dataclass(frozen=True)
class Answer:
    """Status, headers with lower-case names, and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        line: str = self.json["error"]
        assert "\n" not in line and set(self.json) == {"error"}
        return line


@dataclass(frozen=True)
class Asked:
    """A service that runs."""

    port: int
    service: Service | None = None

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Answer:
        """Return the answer to a request: GET without a body, POST with one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def ask_raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Return all that comes back for these bytes until the service closes the connection; raises TimeoutError."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            parts = []
            with suppress(ConnectionError):  # where it closes before it has read all
                connection.sendall(data)
                while part := connection.recv(65536):
                    parts.append(part)
            return b"".join(parts)


def form(*files: tuple[str, str, bytes], boundary: str = "frontier") -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a form with files: field, file name, bytes."""
    parts = b""
    for field, name, data in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        parts += head.encode("utf-8", "surrogateescape") + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n"
    kind = f"multipart/form-data; boundary={boundary}"
    return parts + f"--{boundary}--\r\n".encode(), {"Content-Type": kind}


@contextmanager
def running(models: Sequence[ServedModel], **settings: Any) -> Iterator[Asked]:
    """Run a service for these models on a free port."""
    bound = bind("127.0.0.1", 0)
    service, ready = Service(models, ServeSettings(**settings)), threading.Event()
    server = Server(build_app(service), service.settings.timeout_seconds, ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        assert ready.wait(10)
        yield Asked(bound.getsockname()[1] if bound.fileno() >= 0 else 0, service)
    finally:
        server.should_exit = True
        thread.join(20)
        service.stop()
        assert not thread.is_alive()


class GatedModel(ServedModel):
    """A model that predicts only after its `gate` is opened, and remembers the size of each batch."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model.name, model.predictor)
        self._explains = False
        self.gate, self.batches, self.begun = threading.Event(), [], threading.Event()

    def predict(self, images: Sequence[Decoded]) -> Any:
        self.batches.append(len(images))
        self.begun.set()
        assert self.gate.wait(20)
        return super().predict(images)
