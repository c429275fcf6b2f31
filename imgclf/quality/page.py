"""check.html: the content of check.json as one page with small pictures, that asks nothing of any other place."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgclf.report import data_uri

__all__ = ["check_page", "shown_images"]

GROUPS, PICTURES, LINES = 40, 6, 200  # shown of a finding, of a group, of a finding that has no pictures to show
SIDE = 112  # pixels of the longer side
PICTURELESS = ("unreadable", "stray")

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .8em 0 } td, th { padding: .2em .8em .2em 0; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
.group { display: flex; flex-wrap: wrap; gap: 12px; border-left: 4px solid #c8d2dc; padding: 6px 10px; margin: 10px 0 }
figure { margin: 0; width: 150px; font-size: 12px; overflow-wrap: anywhere } img { max-width: 112px; display: block }
.out { color: #a40000 } .quiet { color: #666 } li { overflow-wrap: anywhere }
"""
# A name that slipped through the escaping could still load nothing and run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Images = Mapping[tuple[str, str], NDArray[np.uint8]]


def shown_images(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(split, path) of the pictures that `check_page` shows: a bounded number, whatever was found."""
    for finding in (*report["findings"], *report["near"]):
        if finding["kind"] not in PICTURELESS:
            for group in finding["groups"][:GROUPS]:
                yield from ((picture["split"], picture["path"]) for picture in group["pictures"][:PICTURES])


def check_page(report: Mapping[str, Any], images: Images) -> str:
    """The HTML of a report; `images`: uint8 [H, W, 3 or 1] for (split, path), of any size."""
    title = escape(f"Check of {report['name']}")
    body = [f"<h1>{title}</h1>", f"<p>{escape(report['root'])}</p>", _overview(report)]
    body += [_section(finding, images) for finding in (*report["findings"], *report["near"])]
    if report["notes"]:
        body.append(
            "<h2>Good to know</h2><ul>" + "".join(f"<li>{escape(note['text'])}" for note in report["notes"]) + "</ul>"
        )
    body += [_files(report["files"]), _classes(report)]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return (f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(body) + "\n</body></html>\n")  # fmt: skip


def _overview(report: Mapping[str, Any]) -> str:
    if report["clean"]:
        verdict = "<p><b>Clean.</b> Nothing was found that needs mending.</p>"
    else:
        verdict = (f"<p><b>{len(report['exclude']):,} pictures</b> are left out when training with "
                   "<code>dataset.exclude=</code>check.json of this folder.</p>")  # fmt: skip
    rows = [
        [finding["title"], len(finding["groups"]), finding["pictures"], finding["action"]]
        for finding in (*report["findings"], *report["near"])
    ]
    return verdict + (_table(["found", "groups", "pictures", "with dataset.exclude"], rows) if rows else "")


def _section(finding: Mapping[str, Any], images: Images) -> str:
    groups, head = (
        finding["groups"],
        f"<h2>{escape(finding['title'])}</h2><p class=quiet>{escape(finding['action'])}</p>",
    )
    if finding["kind"] in PICTURELESS:
        lines = [
            f"<li>{escape(group['pictures'][0]['path'])}: {escape(group['message'])}" for group in islice(groups, LINES)
        ]
        return f"{head}<ul>{''.join(lines)}</ul>{_more(len(groups) - LINES, 'files')}"
    return head + "".join(_group(group, images) for group in groups[:GROUPS]) + _more(len(groups) - GROUPS, "groups")


def _group(group: Mapping[str, Any], images: Images) -> str:
    pictures = group["pictures"]
    figures = "".join(_figure(picture, images) for picture in pictures[:PICTURES])
    return f"<div class=group>{figures}{_more(len(pictures) - PICTURES, 'pictures')}</div>"


def _figure(picture: Mapping[str, Any], images: Images) -> str:
    image = images.get((picture["split"], picture["path"]))
    shown = f'<img alt="" src="{data_uri(image, SIDE)}">' if image is not None else ""
    out = "<br><span class=out>excluded</span>" if picture.get("excluded") else ""
    caption = f"<b>{escape(picture['class'])}</b>, {escape(picture['split'])}<br>{escape(picture['path'])}{out}"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _files(files: Mapping[str, Any]) -> str:
    sizes = [[f"{size['width']} x {size['height']}", size["pictures"]] for size in files["sizes"]]
    kinds = [[f"{name} ({what})", count] for what in ("format", "mode") for name, count in files[f"{what}s"].items()]
    more = _more(files["different_sizes"] - len(sizes), "sizes")
    return f"<h2>Sizes, formats and modes</h2>{_table(['', 'pictures'], [*sizes, *kinds])}{more}"


def _classes(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    rows: list[Sequence[Any]] = [[name, *(counts[split][name] for split in counts)] for name in report["classes"]]
    total = ["all", *(sum(values.values()) for values in counts.values())]
    expected = [["expected", *report["expected"].values()]] if report["expected"] else []
    return f"<h2>Classes</h2>{_table(['class', *counts], [total, *expected, *rows])}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    for row in rows:
        cells = (f"<td class=number>{x:,}</td>" if isinstance(x, int) else f"<td>{escape(str(x))}</td>" for x in row)
        lines.append("".join(cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _more(count: int, what: str) -> str:
    return f"<p class=quiet>and {count:,} more {what}</p>" if count > 0 else ""
