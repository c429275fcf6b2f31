"""The routes of a service, as an ASGI application: predictions, facts, figures, the page and its samples."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from imgclf.errors import ImageError, nearest
from imgclf.names import printable
from imgclf.serving.bodies import Upload, read_uploads
from imgclf.serving.counters import CONTENT_TYPE, Counters
from imgclf.serving.document import docs_page, openapi, version
from imgclf.serving.guard import Guard, json_answer
from imgclf.serving.models import Decoded, ServedModel, find_model, unknown_model
from imgclf.serving.settings import Refusal, ServeSettings
from imgclf.serving.work import Admission, Batcher, WorkerThreads

if TYPE_CHECKING:
    from imgclf.inference.prediction import Prediction

__all__ = ["Service", "build_app"]

Result = TypeVar("Result")
PAGE = Path(__file__).parents[1] / "page"
_FETCHES = 8  # addresses fetched at once
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
UNSURE = "unsure"


@dataclass(frozen=True)
class Question:
    """The parameters of a request for predictions."""

    model: ServedModel
    top: int
    threshold: float
    saliency: bool

    @classmethod
    def of(cls, request: Request, models: Sequence[ServedModel], settings: ServeSettings) -> "Question":
        """Return the question of a request; raises `Refusal` 400 for a wrong parameter, 404 for an unknown model."""
        given = request.query_params
        known = ("model", "top", "threshold", "saliency")
        for name in given:
            if name not in known:
                raise Refusal(400, f"parameter {printable(name)[:80]}: unknown; {nearest(name, known)}", closes=True)
        if len(given.multi_items()) > len(given):
            raise Refusal(400, "a parameter is given twice; expected each at most once", closes=True)
        name = given.get("model", models[0].name)
        model = find_model(models, name)
        if model is None:
            raise Refusal(404, unknown_model(models, name), closes=True)
        top = _number(given, "top", 5, 1, 100_000)
        threshold = _number(given, "threshold", settings.threshold, 0, 1)
        saliency = bool(_number(given, "saliency", 0, 0, 1))
        if saliency and not model.explains:
            reason = "its network has no feature map, or isn't PyTorch's"
            line = f"saliency=1: {printable(model.name)} has no saliency maps ({reason})"
            raise Refusal(400, line, closes=True)
        return cls(model, int(top), threshold, saliency)


def _number(given: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Return a parameter as a number; a whole one where default and limits are. Raises `Refusal` 400."""
    text = given.get(name)
    if text is None:
        return default
    kind = int if name != "threshold" else float
    try:
        value = kind(text) if len(text) < 20 else -1
    except ValueError:
        value = -1
    if not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise Refusal(400, f"{name}={printable(text)[:40]}: expected {what} from {low:g} to {high:g}", closes=True)
    return value


class Service:
    """The models and threads behind the routes."""

    def __init__(self, models: Sequence[ServedModel], settings: ServeSettings) -> None:
        self.models, self.settings = tuple(models), settings
        self.admission = Admission(settings.queue, settings.held_bytes)
        self.counters = Counters(lambda: self.admission.taken, lambda: self.admission.held)
        self._decoders = WorkerThreads(settings.workers)
        self._fetchers = WorkerThreads(_FETCHES)
        self._explainer = WorkerThreads(1)
        self._decoding = threading.BoundedSemaphore(settings.workers)  # in fetchers too
        cores = threading.Lock()
        self._batchers = {
            model.name: Batcher(model.predict, settings.batch, cores, partial(self.counters.count_batch, model.name))
            for model in models
        }

    def stop(self) -> None:
        """Let the threads end."""
        for threads in (self._decoders, self._fetchers, self._explainer):
            threads.stop()
        for batcher in self._batchers.values():
            batcher.stop()

    async def predict(self, request: Request) -> Response:
        """`POST /predict`: the classes of one or several images."""
        question = Question.of(request, self.models, self.settings)
        with self.admission.ticket() as ticket:
            uploads = await read_uploads(request, self.settings, ticket)
            answers = asyncio.gather(*(self._answer(upload, question) for upload in uploads))
            try:
                predictions = await asyncio.wait_for(answers, self.settings.timeout_seconds)
            except asyncio.TimeoutError:
                line = (
                    f"no answer within {self.settings.timeout_seconds:g} seconds; ask again later, or for fewer images"
                )
                raise Refusal(503, line) from None
        if len(predictions) == 1 and "error" in predictions[0]:
            return json_answer({"error": predictions[0]["error"]}, 422)
        return json_answer({"model": question.model.name, "predictions": predictions})

    async def _answer(self, upload: Upload, question: Question) -> dict[str, Any]:
        """Return the JSON object for one image: its prediction, or its error."""
        began, model = time.perf_counter(), question.model
        pool = self._decoders if upload.data is not None else self._fetchers
        try:
            image = await _of(pool.submit(partial(self._decode, upload, model)))
        except ImageError as error:
            self.counters.count_image(model.name, "unreadable")
            return {"name": upload.name, "error": str(error)}
        prediction = await _of(self._batchers[model.name].submit(image))
        if prediction.error is not None:  # the network's outputs aren't finite
            self.counters.count_image(model.name, "failed")
            return {"name": upload.name, "error": str(prediction.error)}
        answer = _as_json(prediction, question)
        if question.saliency:
            answer["saliency"] = await _of(self._explainer.submit(partial(model.explain, prediction)))
        self.counters.count_image(model.name, "predicted")
        return {"name": upload.name, **answer, "seconds": round(time.perf_counter() - began, 6)}

    def _decode(self, upload: Upload, model: ServedModel) -> Decoded:
        data = upload.content(self.settings, min(20.0, self.settings.timeout_seconds))
        if len(data) > self.settings.max_bytes:
            raise ImageError(f"{upload.name}: has more than {self.settings.max_bytes:,} bytes; save it smaller")
        with self._decoding:
            return model.read(data, upload.name)

    async def metadata(self, request: Request) -> Response:
        """`GET /metadata`: the models, their classes and limits."""
        facts = [await _of(self._explainer.submit(partial(m.facts, i))) for i, m in enumerate(self.models)]
        settings = self.settings
        whole = {"version": version(), "threshold": settings.threshold, "max_bytes": settings.max_bytes}
        return json_answer({**whole, "models": facts})

    async def sample(self, request: Request) -> Response:
        """`GET /samples/{model}/{class}`: a training image of a class."""
        model, index = request.path_params["model"], request.path_params["class"]
        jpeg = None
        if model < len(self.models) and index < len(self.models[model].classes):
            jpeg = await _of(self._decoders.submit(partial(self.models[model].samples.read, index)))
        if jpeg is None:
            raise Refusal(404, "no sample of this class; /metadata lists those that there are")
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether the service answers."""
        return json_answer({"status": "ok", "models": [model.name for model in self.models]})

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: figures for Prometheus."""
        return Response(self.counters.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`: the description of this interface."""
        return json_answer(openapi(self.settings))

    async def docs(self, request: Request) -> Response:
        """`GET /docs`: the same for people."""
        return Response(docs_page(openapi(self.settings)), media_type="text/html")


async def page(request: Request) -> Response:
    """`GET /`: the page on which people try a model."""
    return _page_file("index.html", "the page isn't part of this installation; POST /predict answers, /docs says how")


async def static(request: Request) -> Response:
    """`GET /static/{file}`: a file of the page."""
    return _page_file(request.path_params["file"], "no such file of the page")


def _page_file(name: str, missing: str) -> Response:
    """Return a file that lies in the page's folder itself; raises `Refusal` 404."""
    kind = _TYPES.get(Path(name).suffix)
    names = {path.name for path in PAGE.iterdir() if path.is_file()} if PAGE.is_dir() else set()
    if kind is None or name not in names:
        raise Refusal(404, missing)
    return FileResponse(PAGE / name, headers={"content-type": kind, "cache-control": "no-cache"})


def _as_json(prediction: "Prediction", question: Question) -> dict[str, Any]:
    """Return what is said of a prediction: class, probability and the most probable classes."""
    best = [(name, round(value, 6)) for name, value in _top(prediction, question.top)]
    name, probability = best[0]
    return {
        "predicted": name if float(prediction.probabilities.max()) >= question.threshold else UNSURE,
        "probability": probability,
        "top": [{"class": name, "probability": probability} for name, probability in best],
    }


def _top(prediction: "Prediction", count: int) -> list[tuple[str, float]]:
    return replace(prediction, top_count=count).top


async def _of(future: "Future[Result]") -> Result:
    return await asyncio.wrap_future(future)


async def _refused(request: Request, error: Exception) -> Response:
    """Return the answer of the router for a path or a method that there isn't, as JSON."""
    assert isinstance(error, HTTPException)
    path = printable(request.url.path)[:80]
    lines = {
        404: f"{path}: no such path; /docs lists them",
        405: f"{path}: another method is expected; /docs lists them",
    }
    answer = json_answer({"error": lines.get(error.status_code, str(error.detail))}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def build_app(service: Service) -> Starlette:
    """Return the ASGI application of a service."""
    routes = [
        Route("/", page),
        Route("/static/{file}", static),
        Route("/samples/{model:int}/{class:int}", service.sample),
        Route("/health", service.health),
        Route("/metadata", service.metadata),
        Route("/metrics", service.metrics),
        Route("/openapi.json", service.openapi),
        Route("/docs", service.docs),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    plain = {route.path for route in routes}

    def name(path: str) -> str:
        first = f"/{path.split('/')[1]}" if path.startswith("/") else ""
        return path if path in plain else first if first in ("/static", "/samples") else "other"

    middleware = [Middleware(Guard, settings=service.settings, counters=service.counters, name=name)]
    if service.settings.cors:
        methods, headers = ["GET", "POST"], ["content-type"]
        cors = Middleware(
            CORSMiddleware, allow_origins=service.settings.cors, allow_methods=methods, allow_headers=headers
        )
        middleware.insert(0, cors)
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _refused})
