"""check.html: check.json as one self-contained page with thumbnails (no network requests)."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from imgclf.quality.findings import FileSummary, Finding, Group, ImageEntry, Report
from imgclf.report import data_uri

__all__ = ["check_page", "shown_images"]

# Groups per finding, images per group, and lines per finding without images, that the page shows.
GROUPS, IMAGES, LINES = 40, 6, 200
# Longer side of a thumbnail in pixels.
SIDE = 112
WITHOUT_IMAGES = ("unreadable", "stray")

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .8em 0 } td, th { padding: .2em .8em .2em 0; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
.group { display: flex; flex-wrap: wrap; gap: 12px; border-left: 4px solid #c8d2dc; padding: 6px 10px; margin: 10px 0 }
figure { margin: 0; width: 150px; font-size: 12px; overflow-wrap: anywhere } img { max-width: 112px; display: block }
.out { color: #a40000 } .quiet { color: #666 } li { overflow-wrap: anywhere }
"""
# A second defence after the escaping: no name can load or run anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Images = Mapping[tuple[str, str], NDArray[np.uint8]]


def shown_images(report: Report) -> Iterator[tuple[str, str]]:
    """(split, path) of the images that `check_page` shows; their number is bounded."""
    for finding in (*report["findings"], *report["near"]):
        if finding["kind"] not in WITHOUT_IMAGES:
            for group in finding["groups"][:GROUPS]:
                yield from ((image["split"], image["path"]) for image in group["images"][:IMAGES])


def check_page(report: Report, images: Images) -> str:
    """The HTML of a report; `images`: uint8 [H, W, 3 or 1] for (split, path), of any size."""
    title = escape(f"Check of {report['name']}")
    body = [f"<h1>{title}</h1>", f"<p>{escape(report['root'])}</p>", _overview(report)]
    body += [_section(finding, images) for finding in (*report["findings"], *report["near"])]
    if report["notes"]:
        notes = "".join(f"<li>{escape(note['text'])}" for note in report["notes"])
        body.append(f"<h2>Notes</h2><ul>{notes}</ul>")
    body += [_files(report["files"]), _classes(report)]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f"<title>{title}</title><style>{STYLE}</style>"
    text = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'


def _overview(report: Report) -> str:
    count = len(report["exclude"])
    verdict = "<p><b>Clean.</b> No problems found.</p>"
    if not report["clean"]:
        option = "<code>dataset.exclude=</code> and the path of check.json in this folder"
        verdict = f"<p><b>{count:,} images</b> are left out of training with {option}.</p>"
    rows = [
        [finding["title"], len(finding["groups"]), finding["images"], finding["action"]]
        for finding in (*report["findings"], *report["near"])
    ]
    return verdict + (_table(["finding", "groups", "images", "with dataset.exclude"], rows) if rows else "")


def _section(finding: Finding, images: Images) -> str:
    groups = finding["groups"]
    head = f"<h2>{escape(finding['title'])}</h2><p class=quiet>{escape(finding['action'])}</p>"
    if finding["kind"] in WITHOUT_IMAGES:
        lines = (f"<li>{escape(group['images'][0]['path'])}: {escape(group['message'])}" for group in groups[:LINES])
        return f"{head}<ul>{''.join(lines)}</ul>{_more(len(groups) - LINES, 'files')}"
    return head + "".join(_group(group, images) for group in groups[:GROUPS]) + _more(len(groups) - GROUPS, "groups")


def _group(group: Group, images: Images) -> str:
    figures = "".join(_figure(image, images) for image in group["images"][:IMAGES])
    return f"<div class=group>{figures}{_more(len(group['images']) - IMAGES, 'images')}</div>"


def _figure(entry: ImageEntry, images: Images) -> str:
    pixels = images.get((entry["split"], entry["path"]))
    thumbnail = f'<img alt="" src="{data_uri(pixels, SIDE)}">' if pixels is not None else ""
    excluded = "<br><span class=out>excluded</span>" if entry.get("excluded") else ""
    caption = f"<b>{escape(entry['class'])}</b>, {escape(entry['split'])}<br>{escape(entry['path'])}{excluded}"
    return f"<figure>{thumbnail}<figcaption>{caption}</figcaption></figure>"


def _files(files: FileSummary) -> str:
    rows = [[f"{size['width']} x {size['height']}", size["images"]] for size in files["sizes"]]
    more = _more(files["different_sizes"] - len(rows), "sizes")
    rows += [[f"{name} (format)", count] for name, count in files["formats"].items()]
    rows += [[f"{name} (mode)", count] for name, count in files["modes"].items()]
    return f"<h2>Sizes, formats and modes</h2>{_table(['', 'images'], rows)}{more}"


def _classes(report: Report) -> str:
    counts = report["counts"]
    total = ["all", *(sum(values.values()) for values in counts.values())]
    expected = [["expected", *report["expected"].values()]] if report["expected"] else []
    rows = [[name, *(counts[split][name] for split in counts)] for name in report["classes"]]
    return f"<h2>Classes</h2>{_table(['class', *counts], [total, *expected, *rows])}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    for row in rows:
        cells = (f"<td class=number>{x:,}</td>" if isinstance(x, int) else f"<td>{escape(str(x))}</td>" for x in row)
        lines.append("".join(cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _more(count: int, what: str) -> str:
    return f"<p class=quiet>and {count:,} more {what}</p>" if count > 0 else ""
