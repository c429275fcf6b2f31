"""report.html and sweep.html: results as one page that asks nothing of any other place. What it shows is a JSON object
inside it, which a script draws; names and paths get into the page as text alone.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

__all__ = ["results_page", "sweep_page"]


def results_page(facts: Mapping[str, Any]) -> str:
    """The HTML for the facts that `imgclf.report.run_report` has gathered: plain data, pictures as data: addresses."""
    return _page(facts, "results.js")


def sweep_page(facts: Mapping[str, Any]) -> str:
    """The HTML for the facts that `imgclf.sweeps.leaderboard` has gathered."""
    return _page(facts, "sweep.js")


def _page(facts: Mapping[str, Any], drawn_by: str) -> str:
    here = files("imgclf.report")
    style, *scripts = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "draw.js", drawn_by))
    script = "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    # "<" can't end the element that holds the data, whatever a class or a file is called; NaN is no JSON.
    data = json.dumps(facts, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    title = escape(str(facts["title"]))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>\n'
        f"<style>\n{style}</style></head>\n<body>\n<header><h1>{title}</h1></header>\n<main></main>\n"
        f"<noscript>This page is drawn by a script inside it, which this browser doesn't run; metrics.json has the "
        f'numbers.</noscript>\n<script type="application/json" id="facts">{data}</script>\n'
        f"<script>{script}</script>\n</body></html>\n"
    )
