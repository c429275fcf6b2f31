"""check.html: nothing is loaded, names stay text, and a real browser shows all of it on a phone and on a desktop."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.browser import NASTY, browse, needs_browser
from support.checks import check, save, tree
from support.fabricate import structured

from imgclf.quality.findings import KINDS, Finding, Group, Report
from imgclf.quality.page import Shown, check_page, shown_images
from imgclf.quality.quick import SHOWN, ClassSamples

LONG = "a_file_name_of_a_camera_without_any_place_to_break_it_0000000001.jpg"


class _Page(HTMLParser):
    """Tags of a page, and the targets of its references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    clean = tree(tmp_path / "data")
    for number in range(60):
        pixels = structured(5000 + number, 24)
        save(pixels, clean / "train" / "<b>x" / f"a{number}.png")
        save(pixels, clean / "train" / "<b>x" / f"b{number}&<i>.png")
    (clean / "train" / "<b>x" / "<script>.jpg").write_bytes(b"")
    check(clean, tmp_path / "out")
    text = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == [] and not {"b>x", "i", "script", "link", "iframe"} & set(page.tags)
    images = [target for target in page.targets if not target.startswith("#")]
    assert len(images) == 80 + 3 * 8 and all(target.startswith("data:image/jpeg;base64,") for target in images)
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(re.findall(r'id="(\w+)"', text))
    assert "&lt;b&gt;x" in text and "<b>x" not in text and "and 20 more groups" in text
    assert not re.search(r"https?://|@import|url\(", text)


def fabricate(classes: int, quick: bool = False) -> str:
    """Return the page of a check of so many classes, with findings of every kind and names of every length."""
    names = [NASTY, "wheelchair basketball on a very long court", *(f"class {n}" for n in range(2, classes))]
    counts = {split: {name: 100 - n % 97 for n, name in enumerate(names)} for split in ("train", "val", "test")}
    findings: list[Finding] = []
    for kind, (title, action, _) in KINDS.items():
        pair: Group = {
            "images": [
                {"split": "train", "path": f"train/{names[1]}/{LONG}", "class": names[1], "excluded": True},
                {"split": "val", "path": f"valid/{NASTY}/1.jpg", "class": names[0]},
            ]
        }
        if kind in ("unreadable", "empty", "stray", "range"):
            pair = {"images": pair["images"][:1], "message": "is empty (0 bytes): copy or download it again"}
        size = len(pair["images"])
        findings.append(
            Finding(kind=kind, title=title, action=action, images=3 * size, excluded=3, groups=[pair, pair, pair])
        )
    report: Report = {
        "format": "imgclf check 2",
        "name": NASTY,
        "root": f"/data/{LONG}/{LONG}",
        "classes": names,
        "quick": quick,
        "not_checked": ["near duplicates"] if quick else [],
        "clean": False,
        "counts": counts,
        "expected": {"train": 7624, "val": 265, "test": 265},
        "files": {
            "images": 2182,
            "readable": 2178,
            "formats": {"JPEG": 2000, "PNG": 178},
            "modes": {"RGB": 2178},
            "different_sizes": 30,
            "sizes": [{"width": 4000, "height": 3000, "images": 2178}],
        },
        "findings": findings[:-1],
        "near": findings[-1:],
        "notes": [{"kind": "size", "text": f"1 of 2,182 images: of a single colour: train/{NASTY}/{LONG}"}],
        "exclude": [{"split": "train", "path": LONG, "why": "unreadable"}] * 16,
    }
    many, side = next((count, side) for most, count, side in SHOWN if classes <= most)
    images = [structured(seed, side) for seed in range(many)]
    samples = ClassSamples([[(f"train/{name}/{LONG}", image) for image in images] for name in names], side)
    command = f"imgclf train dataset=folders dataset.exclude=/runs/{LONG}/check.json"
    return check_page(report, Shown(dict.fromkeys(shown_images(report), images[0]), samples, command))


SCRIPT = """
  const width = document.documentElement.clientWidth;
  const box = element => element.getBoundingClientRect();
  out.wide = document.documentElement.scrollWidth - width;
  const texts = [...document.querySelectorAll("h1, h2, h3, p, pre, td, th, li, b, span, img")];
  out.outside = texts.filter(e => box(e).right > width + 1 || box(e).left < 0).map(e => e.outerHTML.slice(0, 80));
  out.cut = texts.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline"
    && (getComputedStyle(e).textOverflow !== "ellipsis" || !e.closest("[title]"))).map(e => e.outerHTML.slice(0, 80));
  out.broken = [...document.images].filter(image => !image.naturalWidth).length;
  out.apart = [...document.querySelectorAll(".group")].filter(group =>
    box(group.children[0]).top !== box(group.children[1]).top).length;
  out.pairs = document.querySelectorAll(".group").length;
  out.rows = [...document.querySelectorAll(".class .row")].map(row => row.children.length);
  out.lines = new Set([...document.querySelector(".row").children].map(image => box(image).top)).size;
  out.smallest = Math.min(...[...document.images].map(image => box(image).width));
  out.beside = new Set([...document.querySelectorAll(".class")].map(block => box(block).left)).size;
  const light = colour => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  out.paper = light(getComputedStyle(document.body).backgroundColor);
  const panel = light(getComputedStyle(document.querySelector(".group")).backgroundColor);
  const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  out.contrast = Math.min(...[...document.querySelectorAll(".verdict, .quiet, .group b, .path, .wrong, a, .copy")].map(e =>
    contrast(light(getComputedStyle(e).color), e.closest(".group, .copy") ? panel : out.paper)));
  out.order = [...document.querySelectorAll("main > section")].map(section => section.id);
  out.first = document.querySelector("main").firstElementChild.textContent;
  out.title = document.title;
  const quick = document.querySelector("p.quick");
  out.quick = quick ? quick.textContent : null;
"""


@needs_browser
@pytest.mark.parametrize("classes", [3, 15, 53, 100])
def test_a_browser_shows_all_of_the_page_on_a_phone_and_a_desktop(tmp_path: Path, classes: int) -> None:
    page = fabricate(classes)
    assert len(page) < 4e6
    for width in (390, 1280):
        for dark in (False, True):
            result, console = browse(page, SCRIPT, tmp_path, width, dark=dark)
            assert result["errors"] == [] and console == "" and result["wide"] <= 0 and result["broken"] == 0
            assert result["outside"] == [] and result["cut"] == []
            assert result["pairs"] == 18 and result["apart"] == 0, "a pair is not side by side"
            assert result["rows"] == [8 if classes <= 60 else 4] * classes
            assert result["lines"] == (1 if width == 1280 or classes == 100 else 2) and result["smallest"] >= 60
            assert result["beside"] == (1 if width == 390 or classes <= 15 else 2 if classes == 53 else 4)
            assert result["contrast"] >= 3.5 and (result["paper"] < 0.05) is dark
            assert result["first"].startswith(
                "3 files can't be read, 3 classes without training images, 3 unused files in class folders, 3 duplicate pairs"
            )
            assert result["order"] == [*(kind for kind in KINDS if kind != "near"), "samples", "near", "notes", "files"]
            assert result["title"] == f"Check of {NASTY}" and result["quick"] is None


@needs_browser
def test_a_browser_prints_the_page_with_whole_names(tmp_path: Path) -> None:
    script = """
      out.cut = [...document.querySelectorAll(".path span, .class h3")].filter(e => e.scrollWidth > e.clientWidth + 1
        && getComputedStyle(e).display !== "inline").length;
      out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      const [head, tail] = document.querySelectorAll(".group .path span");
      out.joined = head.getClientRects().length > 1 && tail.getClientRects()[0].top >= [...head.getClientRects()].at(-1).top;
    """
    result, _ = browse(fabricate(3, quick=True), script, tmp_path, 720, media="print")
    assert result["cut"] == 0 and result["wide"] <= 0 and result["joined"]


@needs_browser
def test_the_page_of_a_quick_check_says_so(tmp_path: Path) -> None:
    result, _ = browse(fabricate(3, quick=True), SCRIPT, tmp_path, 390)
    assert "A quick check. Not checked: near duplicates." in result["quick"] and result["wide"] <= 0


def test_small_images_are_drawn_as_squares_and_grey_ones_too(tmp_path: Path) -> None:
    rows = [",".join(map(str, [row % 3, *np.full(64, 40 * (row % 3))])) for row in range(30)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    layout = "dataset.splits.train.files=[train.csv]", "dataset.splits.test={kind:pixels,files:[test.csv]}"
    code, report = check(tmp_path, tmp_path / "out", "dataset=pixel_csv", *layout, "quick=true")
    text = (tmp_path / "out" / "check.html").read_text()
    assert code == 1 and [finding["kind"] for finding in report["findings"]] == ["leaks"]
    assert text.count('<img class="pixels"') == text.count("<img") >= 3 * 8
