"""Self-contained HTML pages: report.html, sweep.html and check.html, with images inside and no network requests.

The first two hold their content as a JSON object, which a script draws; names and paths get into a page as text alone.
"""

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from imgclf.names import as_json, printable
from imgclf.report.tables import finite

__all__ = ["data_uri", "results_page", "shrunk", "static_page", "sweep_page"]

_STATIC = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def results_page(page_data: Mapping[str, object]) -> str:
    """Return the HTML that shows the page data of `imgclf.report.run_report`."""
    return _drawn(page_data, "page.css", "results.css", "draw.js", "matrix.js", "results.js")


def sweep_page(page_data: Mapping[str, object]) -> str:
    """Return the HTML that shows the page data of `imgclf.sweeps.leaderboard`."""
    return _drawn(page_data, "page.css", "sweep.css", "draw.js", "sweep.js")


def static_page(title: str, body: str) -> str:
    """Return the HTML of `imgclf.quality`'s page without a script; `body` is HTML, in which names are escaped already."""
    return _shell(title, _STATIC, _read("page.css", "check.css"), body)


def _drawn(page_data: Mapping[str, object], *names: str) -> str:
    """Return a page that scripts draw; `names` are the files of its styles and scripts."""
    script = _read(*(name for name in names if name.endswith(".js")))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # "<" could end the element that holds the data, in the name of a class or a file.
    data = as_json(_shown(finite(page_data)), allow_nan=False).replace("<", "\\u003c")
    title = str(page_data["title"])
    body = (
        f"<header><h1>{escape(title)}</h1></header>\n<main></main>\n"
        f"<noscript>This page needs JavaScript, which is inside it; metrics.json has the numbers.</noscript>\n"
        f'<script type="application/json" id="page-data">{data}</script>\n'
        f"<script>{script}</script>\n"
    )
    style = _read(*(name for name in names if name.endswith(".css")))
    return _shell(title, f"{_STATIC}; script-src 'sha256-{digest}'", style, body)


def _shell(title: str, policy: str, style: str, body: str) -> str:
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>\n'
        f"<style>\n{style}</style></head>\n<body>\n{body}</body></html>\n"
    )
    return printable(page, lines=True)


def _shown(value: Any) -> Any:
    """Return plain data with its names, and all other text, as a page shows them."""
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _read(*names: str) -> str:
    folder = files("imgclf.report")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 1 or 3] with the longer side at most `side` pixels; smaller images stay as they are."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small: NDArray[Any] = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], -1)


def data_uri(image: NDArray[np.uint8], side: int, quality: int = 80) -> str:
    """Return `data:image/jpeg;base64,...` of uint8 [H, W, 1 or 3], shrunk to `side` pixels."""
    small = shrunk(image, side)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
