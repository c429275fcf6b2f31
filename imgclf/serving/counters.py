"""Figures of a service for Prometheus; each service has a registry of its own."""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["CONTENT_TYPE", "Counters"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Counters:
    """Requests by path and status, their seconds, images by outcome, sizes of batches, and what is taken at the moment."""

    def __init__(self, places: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("imgclf_requests", "Requests answered.", ["path", "status"], registry=registry)
        text = "Seconds from the head of a request to its answer."
        self._seconds = Histogram("imgclf_request_seconds", text, ["path"], buckets=_SECONDS, registry=registry)
        self._images = Counter("imgclf_images", "Images by outcome.", ["model", "outcome"], registry=registry)
        text = "Images that the network took at once."
        self._batches = Histogram("imgclf_batch_images", text, ["model"], buckets=_SIZES, registry=registry)
        taken = Gauge("imgclf_places_taken", "Images taken and not yet answered.", registry=registry)
        taken.set_function(places)
        held = Gauge("imgclf_held_bytes", "Bytes of bodies in memory.", registry=registry)
        held.set_function(held_bytes)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request; `path` is one of the routes, so that a stranger can't add figures."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_image(self, model: str, outcome: str) -> None:
        """Count an image: "predicted", "unreadable" or "failed"."""
        self._images.labels(model, outcome).inc()

    def count_batch(self, model: str, size: int) -> None:
        """Count a batch of `size` images."""
        self._batches.labels(model).observe(size)

    def text(self) -> bytes:
        """Return the figures in the text format of Prometheus."""
        return generate_latest(self.registry)
