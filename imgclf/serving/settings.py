"""What a service may spend, and the one exception by which it refuses a request."""

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from imgclf.errors import ConfigError
from imgclf.threads import available_cpus

__all__ = ["CONNECTIONS", "HEADER_SECONDS", "IMAGES_PER_REQUEST", "JSON_BYTES", "Refusal", "ServeSettings"]

CONNECTIONS = 512  # open at once; more are answered 503 and closed
HEADER_SECONDS = 10.0  # for the head of a request, which no application sees before it is complete
IMAGES_PER_REQUEST = 32
JSON_BYTES = 2**18  # of a body with addresses: 32 of 8,000 characters


class Refusal(Exception):
    """A request that isn't answered as asked: its HTTP `status`, and one line that says what to change.

    `closes`: the body wasn't read whole, so that the connection can't be used again.
    """

    def __init__(self, status: int, line: str, closes: bool = False) -> None:
        super().__init__(line)
        self.status, self.line, self.closes = status, line, closes


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a service, and who may ask it.

    `max_bytes`: of a request's body. `queue`: images that are read, decoded or wait for the network at the same time.
    `timeout_seconds`: for the arrival of a body, and again for its answer. `batch`: images that the network takes at once.
    `workers`: images decoded at once, each in at most 300 MB. `threshold`: of requests that name none.
    `allow_private`: fetch addresses of private networks too. `cors`: origins of other pages that may ask, or "*".
    `loopback`: only this machine reaches the service, so that other host names are an attack.
    """

    max_bytes: int = 32 * 2**20
    queue: int = 128
    timeout_seconds: float = 30.0
    batch: int = 8  # on two cores 16 were slower
    workers: int = field(default_factory=available_cpus)
    threshold: float = 0.0
    allow_private: bool = False
    cors: tuple[str, ...] = ()
    loopback: bool = True

    def __post_init__(self) -> None:
        for origin in self.cors:
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin
            ):
                raise ConfigError(
                    f"--cors {origin}: expected an origin such as https://example.org, without a path, or *"
                )

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies in memory at the same time: eight of the largest."""
        return 8 * self.max_bytes

    def knows_host(self, host: str) -> bool:
        """Return whether a request may name the service `host`, the value of its Host header.

        A page of another site whose name was pointed at 127.0.0.1 (DNS rebinding) sends that site's name.
        """
        if not self.loopback or any(urlsplit(origin).netloc == host for origin in self.cors):
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name)

    def knows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of `origin` may ask: the service's own, or one of `cors`."""
        return "*" in self.cors or origin in self.cors or urlsplit(origin).netloc == host


def is_loopback(name: str) -> bool:
    """Return whether a host's name, or its address, means this machine alone."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
