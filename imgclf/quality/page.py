"""check.html: check.json as one self-contained page with images (no script, no network requests)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from imgclf.quality.findings import FileSummary, Finding, Group, ImageEntry, Report, verdict
from imgclf.quality.notes import TINY
from imgclf.quality.quick import ClassSamples
from imgclf.report import data_uri
from imgclf.report.page import static_page

__all__ = ["SIDE", "Shown", "check_page", "shown_images"]

# Groups per finding, images per group, and lines per finding without images, that the page shows.
GROUPS, IMAGES, LINES = 40, 6, 200
# Longer side of an image of a group in pixels.
SIDE = 152
# Below this side, pixels are drawn as squares.
FEW_PIXELS = 48
# Classes up to which a name stands beside its images where the window is wide.
BESIDE = 20
# Characters of a file name that stay in sight, or else the last ones of the path.
NAME, TAIL = 14, 10

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """What a page shows besides the report.

    `images`: those of `shown_images` by (split, path), of any size; `command`: how to train without the excluded images.
    """

    images: Mapping[tuple[str, str], Pixels]
    samples: ClassSamples
    command: str


def shown_images(report: Report) -> Iterator[tuple[str, str]]:
    """(split, path) of the images that `check_page` shows in groups; their number is bounded."""
    for finding in (*report["findings"], *report["near"]):
        if "message" not in finding["groups"][0]:
            for group in finding["groups"][:GROUPS]:
                yield from ((image["split"], image["path"]) for image in group["images"][:IMAGES])


def check_page(report: Report, shown: Shown) -> str:
    """Return the HTML of a report."""
    title = f"Check of {report['name']}"
    body = [f"<header><h1>{escape(title)}</h1></header>", "<main>", _verdict(report, shown.command), _overview(report)]
    body += [_section(finding, shown.images) for finding in report["findings"]]
    body.append(_samples(report, shown))
    body += [_section(finding, shown.images) for finding in report["near"]]
    if report["notes"]:
        notes = "".join(f"<li>{escape(note['text'])}</li>" for note in report["notes"])
        body.append(f'<section id="notes"><h2>Notes</h2><ul>{notes}</ul></section>')
    body += [_files(report["files"]), "</main>"]
    return static_page(title, "\n".join(body) + "\n")


def _verdict(report: Report, command: str) -> str:
    text, count, total = verdict(report), len(report["exclude"]), report["files"]["images"]
    parts = [f'<p class="verdict{" wrong" * bool(report["findings"])}">{escape(text[0].upper() + text[1:])}</p>']
    if count:
        one = "1 image is" if count == 1 else f"{count:,} images are"
        parts.append(f"<p>{one} left out of training by this command:</p>")
        parts.append(f'<pre class="copy">{escape(command)}</pre>')
    if report["quick"]:
        left_out = "; ".join(report["not_checked"])
        full = "<code>imgclf check</code> without <code>--quick</code> checks all of it"
        parts.append(f'<p class="quick"><b>A quick check.</b> Not checked: {escape(left_out)}. {full}.</p>')
    counts = ", ".join(f"{sum(values.values()):,} {split}" for split, values in report["counts"].items())
    expected = report["expected"]
    whole = f" (the whole data set has {', '.join(f'{n:,} {s}' for s, n in expected.items())})" if expected else ""
    about = f"{total:,} images: {counts}{whole}; {len(report['classes']):,} classes; from {report['root']}"
    return "\n".join([*parts, f'<p class="quiet from">{escape(about)}</p>'])


def _overview(report: Report) -> str:
    rows = [
        f'<tr><td><a href="#{finding["kind"]}">{escape(finding["title"])}</a></td>'
        f'<td class="n">{len(finding["groups"]):,}</td><td class="n">{finding["images"]:,}</td>'
        f'<td class="n">{finding["excluded"]:,}</td></tr>'
        for finding in (*report["findings"], *report["near"])
    ]
    head = '<tr><th>finding</th><th class="n">groups</th><th class="n">images</th><th class="n">excluded</th></tr>'
    table = f'<table class="findings">{head}{"".join(rows)}</table>' if rows else ""
    links = [("samples", "samples of each class"), *([("notes", "notes")] if report["notes"] else [])]
    links.append(("files", "sizes and formats"))
    line = ", ".join(f'<a href="#{name}">{text}</a>' for name, text in links)
    return f'{table}<p class="quiet links">On this page too: {line}.</p>' if rows else ""


def _section(finding: Finding, images: Mapping[tuple[str, str], Pixels]) -> str:
    groups, kind = finding["groups"], finding["kind"]
    action = f'<p class="quiet">With <code>dataset.exclude</code>: {escape(finding["action"])}.</p>'
    head = f'<section id="{kind}"><h2>{escape(finding["title"])}</h2>{action}'
    if "message" in groups[0]:
        lines = (
            f"<li>{_path(group['images'][0]['path'])}<span>{escape(group['message'])}</span></li>"
            for group in groups[:LINES]
        )
        return f'{head}<ul class="files">{"".join(lines)}</ul>{_more(len(groups) - LINES, "files")}</section>'
    shown = "".join(_group(group, images) for group in groups[:GROUPS])
    return f'{head}<div class="groups">{shown}</div>{_more(len(groups) - GROUPS, "groups")}</section>'


def _group(group: Group, images: Mapping[tuple[str, str], Pixels]) -> str:
    figures = "".join(_figure(image, images) for image in group["images"][:IMAGES])
    return f'<div class="group">{figures}{_more(len(group["images"]) - IMAGES, "images")}</div>'


def _figure(entry: ImageEntry, images: Mapping[tuple[str, str], Pixels]) -> str:
    pixels = images.get((entry["split"], entry["path"]))
    name = escape(entry["class"])
    image = _image(pixels, SIDE, name) if pixels is not None else ""
    excluded = ' · <span class="wrong">excluded</span>' if entry.get("excluded") else ""
    lines = f'<b title="{name}">{name}</b><span>{escape(entry["split"])}{excluded}</span>{_path(entry["path"])}'
    return f"<figure>{image}<figcaption>{lines}</figcaption></figure>"


def _path(path: str) -> str:
    """A path in one line: where room is short, its middle becomes an ellipsis, and the end stays in sight."""
    name = path.rpartition("/")[2]
    end = len(path) - (len(name) if len(name) <= NAME else TAIL)
    head, tail = path[:end], path[end:]
    return f'<span class="path" title="{escape(path)}"><span>{escape(head)}</span><span>{escape(tail)}</span></span>'


def _image(pixels: Pixels, side: int, name: str, title: str = "") -> str:
    squares = ' class="pixels"' if max(pixels.shape[:2]) < FEW_PIXELS else ""
    hint = f' title="{title}"' if title else ""
    return f'<img{squares} alt="{name}"{hint} src="{data_uri(pixels, side, 75)}">'


def _samples(report: Report, shown: Shown) -> str:
    """A block per class: its name, its images per split, a bar of those in train, and a row of samples."""
    samples, most = shown.samples, max(report["counts"]["train"].values())
    blocks = []
    for name, row in zip(report["classes"], samples.rows, strict=False):
        counts = {split: values[name] for split, values in report["counts"].items()}
        train, title = counts["train"], escape(name)
        few = ' class="wrong"' if train < TINY else ""
        texts = [f"<span{few}>{train:,} train</span>"]
        texts += [f"{count:,} {split}" for split, count in counts.items() if split != "train"]
        images = "".join(_image(pixels, samples.side, title, escape(path)) for path, pixels in row)
        blocks.append(
            f'<div class="class"><div><h3 title="{title}">{title}</h3><p class="quiet">{" · ".join(texts)}</p>'
            f'<div class="bar"><span style="width:{100 * train / most:.1f}%"></span></div></div>'
            f'<div class="row">{images or "<p>no readable image</p>"}</div></div>'
        )
    style = f"--side:{samples.side}px;--many:{max(map(len, samples.rows), default=0)}"
    beside = " beside" * (len(samples.rows) <= BESIDE)
    return (
        '<section id="samples"><h2>Samples of each class</h2><p class="quiet">Drawn from train by the seed. The bar '
        "compares the number of training images with that of the largest class.</p>"
        f'<div class="classes{beside}" style="{style}">{"".join(blocks)}</div>'
        f"{_more(len(report['classes']) - len(samples.rows), 'classes')}</section>"
    )


def _files(files: FileSummary) -> str:
    """Tables of sizes, formats and modes; a quick check knows the formats alone."""
    sizes = [(f"{size['width']} × {size['height']}", size["images"]) for size in files["sizes"]]
    tables = [("size in pixels", sizes), ("format", list(files["formats"].items()))]
    tables.append(("mode", list(files["modes"].items())))
    parts = [_table(name, rows) for name, rows in tables if rows]
    more = _more(files["different_sizes"] - len(sizes), "sizes")
    return (
        f'<section id="files"><h2>Sizes and formats</h2><div class="tables">{"".join(parts)}</div>{more}</section>'
        if parts
        else ""
    )


def _table(name: str, rows: Sequence[tuple[str, int]]) -> str:
    lines = "".join(f'<tr><td>{escape(text)}</td><td class="n">{count:,}</td></tr>' for text, count in rows)
    return f'<table><tr><th>{name}</th><th class="n">images</th></tr>{lines}</table>'


def _more(count: int, what: str) -> str:
    return f'<p class="quiet">and {count:,} more {what}</p>' if count > 0 else ""
