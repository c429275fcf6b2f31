"""report.html in a browser: on a desktop and a phone, light and dark, on paper, with 3 to 100 classes."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.browser import browse, needs_browser  # isort: skip
from support.results_page import class_names, page_of  # isort: skip

pytestmark = needs_browser

# What every test reads: rectangles of the matrix and its names, and what lies outside the window or its own box.
LAYOUT = """
  const rect = element => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const all = (selector, read) => [...document.querySelectorAll(selector)].map(read);
  const window_width = document.documentElement.clientWidth;
  out.window = window_width;
  out.wide = document.documentElement.scrollWidth - window_width;
  const elements = all("main *", element => element);
  out.outside = elements.filter(element => !element.closest(".box.scrolls"))
    .filter(element => { const [left, , right] = rect(element); return left < -0.5 || right > window_width + 0.5; })
    .map(element => element.outerHTML.slice(0, 80));
  out.scrolling = elements.filter(element => !element.matches(".box, .cut") && !element.closest("svg"))
    .filter(element => element.scrollWidth > element.clientWidth + 1)
    .filter(element => getComputedStyle(element).overflowX !== "visible").map(element => element.className);
  out.scrolls = document.querySelector(".box").classList.contains("scrolls");
  out.box = rect(document.querySelector(".box"));
  out.matrix = rect(document.querySelector(".matrix"));
  out.rows = all(".rows .name", rect);
  out.heads = all(".heads .name", rect);
  out.titles = all(".matrix .title", element => element.textContent);
  out.names = all(".rows .name title", element => element.textContent);
  out.shown = all(".rows .name", element => element.firstChild.textContent);
  out.key = document.querySelector(".key").textContent;
  out.columns = new Set(all(".columns > div", element => Math.round(rect(element)[0]))).size;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("count", [3, 15, 53, 100])
def test_the_report_fits_its_window_with_all_names(count: int, width: int, dark: bool, tmp_path: Path) -> None:
    colours = (
        "const {color, backgroundColor} = getComputedStyle(document.body); out.colours = [color, backgroundColor];"
    )
    script = LAYOUT + colours
    result, console = browse(page_of(count), script, tmp_path, width, dark=dark)
    assert result["errors"] == [] and console == ""
    assert result["wide"] <= 0 and result["outside"] == [] and result["scrolling"] == []
    assert result["columns"] == (2 if width == 1280 else 1)
    assert result["titles"] == ["Predicted", "True"] and "correct" in result["key"] and "wrong" in result["key"]
    assert result["names"] == class_names(count)
    for shown, name in zip(result["shown"], result["names"], strict=True):
        assert shown == name or ("…" in shown and len(shown) > 9)
    assert all(one[3] <= other[1] + 0.6 for one, other in pairwise(result["rows"])), "names lie below one another"
    assert all(one[2] <= other[0] + 0.6 for one, other in pairwise(result["heads"])), "names stand beside one another"
    assert result["scrolls"] == (width == 390 and count > 24), "a hundred names of a phone would be unreadable"
    if not result["scrolls"]:
        left, _, right, _ = result["matrix"]
        assert left >= 0 and right <= result["window"]
        assert all(name[0] >= 0 and name[2] <= result["window"] for name in result["rows"] + result["heads"])
    assert min(name[3] - name[1] for name in result["rows"]) >= 8.5, "pixels of a line of text"
    ink, paper = result["colours"]
    assert contrast(ink, paper) > 12 and (luminance(paper) < 0.1) == dark


def luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)", as WCAG 2 defines it."""
    values = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def blend(colour: str, paper: str) -> str:
    """Return the colour "rgba(r, g, b, a)" as it looks on the paper."""
    *values, alpha = [float(value) for value in re.findall(r"[\d.]+", colour)] + (
        [1.0] if colour.startswith("rgb(") else []
    )
    below = [float(value) for value in re.findall(r"\d+", paper)[:3]]
    mixed = [round(alpha * value + (1 - alpha) * other) for value, other in zip(values, below, strict=True)]
    return f"rgb({mixed[0]}, {mixed[1]}, {mixed[2]})"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_contrasts_with_what_it_stands_on(dark: bool, tmp_path: Path) -> None:
    script = """
      const of = (element, key) => getComputedStyle(element)[key], first = selector => document.querySelector(selector);
      out.paper = of(document.body, "backgroundColor"), out.panel = of(first(".panel"), "backgroundColor");
      const names = [".quiet", "figcaption .correct", "figcaption .wrong", "tfoot td", ".notes"];
      out.text = names.map(name => of(first(name), "color"));
      out.lines = [...document.querySelectorAll(".panel .readout span")].map(element => of(element, "color"));
      out.counts = [...document.querySelectorAll(".count")].map(text => [of(text, "fill"), of(text.previousSibling, "fill")]);
    """
    result, _ = browse(page_of(15), script, tmp_path, 1280, dark=dark)
    assert [colour for colour in result["text"] if contrast(colour, result["paper"]) < 4.5] == []
    assert [colour for colour in result["lines"] if contrast(colour, result["panel"]) < 4.5] == []
    assert len(result["counts"]) > 20
    assert min(contrast(text, blend(cell, result["paper"])) for text, cell in result["counts"]) > 3.5


@pytest.mark.parametrize("count", [3, 15])
def test_tables_have_equal_digits_and_top5_only_of_more_than_five_classes(count: int, tmp_path: Path) -> None:
    script = """
      const texts = (selector, root = document) => [...root.querySelectorAll(selector)].map(element => element.textContent);
      out.tables = [...document.querySelectorAll("table")].map(table => [...table.rows].map(row => texts("th, td", row)));
      out.captions = texts("figcaption .line span:first-child"), out.headings = texts("h2");
      out.ticks = [...document.querySelectorAll(".charts svg")].map(svg => texts("text[text-anchor=middle]", svg));
    """
    result, _ = browse(page_of(count), script, tmp_path)
    words = ("macro F1", "recall", "frozen")
    results, classes, network = (next(t for t in result["tables"] if any(word in row for row in t)) for word in words)
    for row in results[1:]:
        assert len({len(cell.partition(".")[2]) for cell in row[1:]}) == 1, row
    assert [row[0] for row in results].count("top-5") == (count > 5)
    for row in classes[1:]:
        assert all(re.fullmatch(r"\d\.\d{3}|", cell) for cell in row[1:4]), row
    assert [row[0] for row in classes[-3:]] == ["accuracy", "macro avg", "weighted avg"] and classes[-3][1:3] == [
        "",
        "",
    ]
    assert all(re.fullmatch(r"(> )?\d+\.\d %", text) for text in result["captions"]) and result["captions"]
    assert network[0] == ["part", "kind", "output", "trainable", "frozen"] and network[1][2] == "24×112×112"
    assert network[-1] == ["all", "2,277,199 parameters", "2,243,087", "34,112"]
    assert result["headings"][:3] == ["Results", "Training curves", "Confusion matrix"]
    assert all(ticks[:4] == ["1", "2", "3", "4"] for ticks in result["ticks"][:2]), "epochs count from 1"


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_end_in_an_ellipsis_and_rows_of_images_are_full(width: int, tmp_path: Path) -> None:
    script = """
      out.cut = [...document.querySelectorAll("main .cut")].filter(element => !element.querySelector(".cut")).map(element => ({
        text: element.textContent, title: element.title, lines: element.getClientRects().length,
        long: element.scrollWidth > element.clientWidth, style: getComputedStyle(element).textOverflow}));
      const top = figure => Math.round(figure.getBoundingClientRect().top);
      out.galleries = [...document.querySelectorAll(".gallery")].map(gallery => [...gallery.children].map(top));
    """
    result, _ = browse(page_of(15), script, tmp_path, width)
    long = [one for one in result["cut"] if one["long"]]
    assert any("wheelchair" in one["text"] for one in long) and any("ultimatefrisbee" in one["text"] for one in long)
    for one in result["cut"]:
        assert one["lines"] == 1 and one["style"] == "ellipsis"
        assert one["title"].endswith(one["text"]), "the whole text, of a file with its folder"
    for tops in result["galleries"]:
        counts = [tops.count(top) for top in sorted(set(tops))]
        assert len(set(counts[:-1])) <= 1 and 2 * counts[-1] > counts[0], counts


def test_names_of_a_large_matrix_stay_in_sight_while_it_scrolls(tmp_path: Path) -> None:
    script = """
      const top = selector => document.querySelector(selector).getBoundingClientRect().top;
      scrollTo(0, scrollY + top(".matrix") + 700);
      await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
      out.heads = top(".heads"), out.rows = top(".rows"), out.readout = top("p.readout");
      document.querySelectorAll(".cell")[90].dispatchEvent(new MouseEvent("click", {bubbles: true}));
      const images = document.querySelector(".chosen-images").getBoundingClientRect();
      out.images = [images.top, images.bottom, innerHeight];
    """
    result, _ = browse(page_of(100), script, tmp_path, 1280)
    assert abs(result["heads"]) < 1 and result["rows"] < -400 and 0 < result["readout"] < 800
    top, bottom, height = result["images"]
    assert top >= 0 and bottom <= height + 1, "the images of a chosen cell are in sight"
    script = """
      const box = document.querySelector(".box"), left = element => element.getBoundingClientRect().left;
      box.scrollTo(600, 600);
      out.rows = left(document.querySelector(".rows")) - left(box);
      out.cells = left(document.querySelector(".cells")) - left(box);
      out.heads = document.querySelector(".heads").getBoundingClientRect().top - box.getBoundingClientRect().top;
      out.tall = box.clientHeight / innerHeight;
    """
    result, _ = browse(page_of(100), script, tmp_path, 390)
    assert 0 <= result["rows"] <= 2 and 0 <= result["heads"] <= 2 and result["cells"] < -300 and result["tall"] < 0.9


def test_paper_is_light_with_nothing_sticky_and_nothing_cut_across_pages(tmp_path: Path) -> None:
    script = """
      const all = selector => [...document.querySelectorAll(selector)];
      const of = (selector, key) => [...new Set(all(selector).map(element => getComputedStyle(element)[key]))];
      out.paper = of("body", "backgroundColor")[0], out.ink = of("body", "color")[0];
      out.position = of("main *:not(p.readout)", "position"), out.hidden = of("p.readout, .hint", "display");
      out.inside = of("tr, figure, .panel, .matrix", "breakInside"), out.after = of("h2", "breakAfter");
      out.overflow = of(".box", "overflowX"), out.window = document.documentElement.clientWidth;
      out.page = document.documentElement.scrollWidth, out.matrix = all(".matrix")[0].getBoundingClientRect().width;
    """
    for width in (390, 718):  # a page printed from a phone is that of A4 too: 718 pixels between its margins
        result, _ = browse(page_of(100), script, tmp_path, width, dark=True, media="print")
        assert luminance(result["paper"]) == 1 and luminance(result["ink"]) < 0.1
        assert "sticky" not in result["position"] and result["hidden"] == ["none"] and result["overflow"] == ["visible"]
        assert result["inside"] == ["avoid"] and result["after"] == ["avoid"]
        assert result["page"] <= result["window"] and result["matrix"] <= result["window"]


def test_the_page_says_nothing_that_was_not_done(tmp_path: Path) -> None:
    def text_of(**changes: Any) -> str:
        result, _ = browse(page_of(3, **changes), "out.text = document.querySelector('main').innerText", tmp_path)
        return str(result["text"])

    full = text_of()
    for word in ("HiResCAM", "augmented", "validation", "Dotted", "Samples", "Network"):
        assert word in full
    assert "temperature" not in full and "epoch 3 of 4" in full
    bare = {
        "saliency": [],
        "augmented": [],
        "samples": [],
        "notes": [],
        "network": [],
        "best_epoch": None,
        "listed": None,
    }
    missing = {"val_loss": None, "val_accuracy": None}
    rows = [{"epoch": k + 1, "train_loss": 0.5, "train_accuracy": 0.5, **missing} for k in range(2)]
    text = text_of(**bare, history=rows)
    for word in ("HiResCAM", "augmented", "validation", "Dotted", "Samples", "Network", "predictions_test.csv"):
        assert word not in text
    assert "Training curves" in text and "Training curves" not in text_of(**bare, history=[])


def test_a_chosen_cell_stays_marked_when_the_window_changes(tmp_path: Path) -> None:
    script = """
      const marked = () => [...document.querySelectorAll(".chosen")].map(cell => cell.dataset.cell);
      const width = () => document.querySelector(".matrix").getBoundingClientRect().width;
      document.querySelectorAll(".cell")[7].dispatchEvent(new MouseEvent("click", {bubbles: true}));
      out.before = marked(), out.wide = width();
      document.querySelector("main").style.width = "400px";
      dispatchEvent(new Event("resize"));
      out.after = marked(), out.narrow = width();
    """
    result, _ = browse(page_of(15), script, tmp_path, 800)
    assert len(result["before"]) == 1 and result["after"] == result["before"]
    assert result["narrow"] <= 400 < result["wide"]
