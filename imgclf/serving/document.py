"""The interface of a service as an OpenAPI document, and as a plain page that asks nothing of other sites."""

from html import escape
from importlib.metadata import version as version_of
from typing import Any

from imgclf.serving.settings import IMAGES_PER_REQUEST, ServeSettings

__all__ = ["docs_page", "openapi", "version"]

_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_STATUSES = {
    "400": "A parameter, or the body, isn't as described.",
    "403": "A page of another site asked, which `--cors` doesn't permit.",
    "404": "No model of that name.",
    "408": "The body arrived too slowly.",
    "413": "The body is too large.",
    "415": "The body is of another type.",
    "421": "The request names a host that the service isn't known by.",
    "422": "The one image of the request can't be read.",
    "429": "The queue is full; `Retry-After` says when to ask again.",
    "503": "No answer in time.",
}


def version() -> str:
    """Return imgclf's version."""
    return version_of("imgclf")


def openapi(settings: ServeSettings) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a service with these settings."""
    health = _object(status=_TEXT, models=_list(_TEXT))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imgclf",
            "version": version(),
            "description": "Classes of images, by the models of this service.",
        },
        "paths": {
            "/predict": {"post": _predict(settings)},
            "/metadata": _get("The models and the limits of the service.", "application/json", _metadata()),
            "/health": _get("Whether the service answers.", "application/json", health),
            "/metrics": _get("Figures for Prometheus.", "text/plain", _TEXT),
            "/samples/{model}/{class}": _get("A training image of a class.", "image/jpeg", _TEXT, "model", "class"),
            "/": _get("The page on which people try a model.", "text/html", _TEXT),
            "/static/{file}": _get("A file of that page.", "*/*", _TEXT, "file"),
            "/openapi.json": _get("This description.", "application/json", {"type": "object"}),
            "/docs": _get("This description for people.", "text/html", _TEXT),
        },
    }


def _predict(settings: ServeSettings) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    bodies = {
        "image/*": binary,
        "application/octet-stream": binary,
        "multipart/form-data": _object(images=_list(binary)),
        "application/json": _object(urls=_list({"type": "string", "format": "uri"})),
    }
    top = _list({"type": "object", "properties": {"class": _TEXT, "probability": _NUMBER}})
    prediction = _object(
        name=_TEXT, predicted=_TEXT, probability=_NUMBER, top=top, seconds=_NUMBER, saliency=_TEXT, error=_TEXT
    )
    prediction["required"] = ["name"]
    answer = _content("application/json", _object(model=_TEXT, predictions=_list(prediction)))
    refused = {
        status: {"description": text, "content": _content("application/json", _object(error=_TEXT))}
        for status, text in _STATUSES.items()
    }
    return {
        "summary": "Classify images.",
        "description": (
            f"The body is an image, a form with up to {IMAGES_PER_REQUEST} files in the field images, or JSON with up to "
            f"{IMAGES_PER_REQUEST} addresses; at most {settings.max_bytes:,} bytes in all. Of several images, one that can't "
            "be read has an error in its place."
        ),
        "parameters": [
            _parameter("model", _TEXT, "Name of the model; the first one by default."),
            _parameter("top", {"type": "integer", "minimum": 1, "default": 5}, "Number of classes in the answer."),
            _parameter(
                "threshold",
                {**_NUMBER, "minimum": 0, "maximum": 1, "default": settings.threshold},
                "Answer unsure where the largest probability is lower.",
            ),
            _parameter("saliency", {"type": "integer", "enum": [0, 1], "default": 0}, "Add a saliency map."),
        ],
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in bodies.items()}},
        "responses": {"200": {"description": "Predictions, in the order of the images.", "content": answer}, **refused},
    }


def _metadata() -> dict[str, Any]:
    model = _object(
        name=_TEXT,
        network=_TEXT,
        size={"type": "integer"},
        classes=_list(_TEXT),
        data=_TEXT,
        metrics={"type": "object"},
        licence={"type": ["string", "null"]},
        saliency={"type": "boolean"},
        samples={"type": "object", "additionalProperties": _TEXT},
    )
    return _object(version=_TEXT, threshold=_NUMBER, max_bytes={"type": "integer"}, models=_list(model))


def _get(summary: str, kind: str, schema: dict[str, Any], *path: str) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in path]
    answers = {"200": {"description": summary, "content": _content(kind, schema)}}
    return {"get": {"summary": summary, **({"parameters": parameters} if path else {}), "responses": answers}}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def docs_page(document: dict[str, Any]) -> str:
    """Return HTML without scripts and styles of other sites: each path with its parameters, bodies and answers."""
    parts = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>" * ("description" in operation))
            parameters = {
                item["name"]: item.get("description", "part of the path") for item in operation.get("parameters", [])
            }
            bodies = dict.fromkeys(operation.get("requestBody", {}).get("content", {}), "")
            answers = {status: answer["description"] for status, answer in operation["responses"].items()}
            for title, rows in (("Parameters", parameters), ("Body", bodies), ("Answers", answers)):
                lines = "".join(
                    f"<li><code>{escape(name)}</code> {escape(text.replace('`', ''))}</li>"
                    for name, text in rows.items()
                )
                parts.append(f"<h3>{title}</h3><ul>{lines}</ul>" * bool(rows))
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title></head>\n<body>'
        f"<h1>{escape(title)}</h1><p>{escape(document['info']['description'])} "
        f'The same as <a href="openapi.json">OpenAPI</a>.</p>\n{"".join(parts)}</body></html>\n'
    )
