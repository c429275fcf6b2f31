"""The page of `imgclf serve`, against a stand-in for its server: questions, answers, errors, keyboard and screen readers."""

import base64
import io
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image
from support.browser import NASTY, _start, needs_browser
from support.page_site import Answers, LivePage, stub_server

import imgclf.page

CARDS = ["ace of clubs", "ace of spades", "joker"]


def _png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 60), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def answers() -> Answers:
    """One model, of cards, with a saliency map."""
    model = {"name": "cards", "network": "mobilenetv3_small_100", "size": 224, "classes": CARDS, "data": "cards"}
    model |= {"metrics": {"test": {"accuracy": 0.936, "count": 265}}, "licence": None, "saliency": True}
    found = Answers([{**model, "samples": {"joker": "/samples/0/2"}}], _png("orange"))
    found.map = "data:image/png;base64," + base64.b64encode(_png("purple")).decode()
    return found


@pytest.fixture
def live(answers: Answers) -> Iterator[LivePage]:
    """The page of the stand-in; nothing may be asked of others, and nothing may be blocked."""
    with stub_server(answers) as address:
        shown = LivePage(_start().open(), address)
        yield shown
        strangers = shown.strangers()
        blocked = [line for line in shown.tab.console if "Content Security" in line or "exception" in line.lower()]
        shown.tab.close()
    assert strangers == [] and blocked == []


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """An image file whose name is hostile."""
    path = tmp_path / "<b>card<b>.png"
    path.write_bytes(_png("green"))
    return path


@needs_browser
def test_image_is_sent_as_it_is_and_the_answer_is_text(live: LivePage, answers: Answers, card: Path) -> None:
    answers.top = [(NASTY, 0.91), ("joker", 0.05)]
    live.choose(card)
    assert live.answer() == NASTY and live.text("#models .value") == "91.0 %"
    assert live.text("#history .tile-detail") == card.name
    assert live.run("return document.querySelectorAll('#answer b, #answer script, #history b').length") == 0
    (asked,) = answers.seen
    assert asked["query"] == {"model": ["cards"], "top": ["5"], "threshold": ["0"], "saliency": ["0"]}
    assert asked["type"] == "image/png" and asked["body"] == card.read_bytes()
    assert live.text("#status") == f"{NASTY}, 91.0 %."


@needs_browser
def test_link_is_fetched_by_the_server(live: LivePage, answers: Answers) -> None:
    live.run("link.value = 'https://example.org/a/card.jpg'; document.getElementById('link-go').click()")
    assert live.answer() == "ace of clubs"
    (asked,) = answers.seen
    assert asked["type"] == "application/json" and json.loads(asked["body"]) == {
        "urls": ["https://example.org/a/card.jpg"]
    }
    assert live.text("#linked") == "example.org/a/card.jpg"


@needs_browser
def test_saliency_map_comes_and_goes(live: LivePage, answers: Answers, card: Path) -> None:
    assert live.run("return map.hidden")
    live.choose(card)
    live.answer()
    live.run("map.click()")
    assert live.tab.wait_for("preview.src.startsWith('data:image/png') && preview.alt").startswith("Saliency map of ")
    assert [asked["query"]["saliency"] for asked in answers.seen] == [["0"], ["1"]]
    assert live.run("return map.getAttribute('aria-pressed')") == "true"
    live.run("map.click()")
    live.tab.wait_for("preview.src.startsWith('blob:')")
    live.run("map.click()")
    live.tab.wait_for("preview.src.startsWith('data:image/png')")
    assert len(answers.seen) == 2, "a map is asked for once"


@needs_browser
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, "The server has too many images waiting; try again in 7 s."),
        (413, "<b>card<b>.png is refused: one line."),
        (422, "one line"),
        (503, "The server took too long; try again."),
        (500, "one line"),
    ],
)
def test_refusal_of_the_server_is_one_sentence(
    status: int, said: str, live: LivePage, answers: Answers, card: Path
) -> None:
    answers.status, answers.headers = status, {"Retry-After": "7"}
    live.choose(card)
    assert live.error() == said
    answers.status = 200
    live.choose(card)
    assert live.answer() == "ace of clubs"
    assert live.run("return document.getElementById('error').hidden")


@needs_browser
def test_server_that_is_gone(answers: Answers, card: Path) -> None:
    with stub_server(answers) as address:
        live = LivePage(_start().open(), address)
    live.choose(card)
    assert live.error() == "The server does not answer; start it again, then repeat this."
    live.tab.close()


@needs_browser
def test_late_answer_does_not_replace_a_newer_one(live: LivePage, answers: Answers, card: Path, tmp_path: Path) -> None:
    answers.pause_seconds = 0.6
    live.choose(card)
    live.tab.wait_for("document.querySelector('#models .note').textContent === 'One moment.'")
    answers.pause_seconds, answers.top = 0.0, [("joker", 0.8)]
    (tmp_path / "second.png").write_bytes(_png("red"))
    live.choose(tmp_path / "second.png")
    live.tab.wait_for("document.querySelectorAll('#history li').length === 2")
    assert live.text("#preview") == "" and live.run("return preview.alt") == "second.png"
    assert live.answer() == "joker"


@needs_browser
def test_everything_is_reached_by_the_keyboard(live: LivePage, answers: Answers) -> None:
    order = []
    for _ in range(7):
        live.press("Tab", 9)
        order.append(live.run("const a = document.activeElement; return a.id || a.className || a.localName"))
    assert order == ["file", "camera", "threshold", "link", "link-go", "summary", "tile"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert live.run(outline) == "solid", "the focus is visible"
    live.press("Enter", 13, "\r")
    assert live.answer() == "ace of clubs" and live.text("#history .tile-detail") == "sample of joker"
    live.run("threshold.focus()")
    live.press("End", 35)
    assert live.answer() == "unsure"
    live.run("link.focus()")
    live.tab.call("Input.insertText", text="nothing")
    live.press("Enter", 13, "\r")
    assert live.error().startswith("This is no link to an image")


@needs_browser
def test_every_control_and_image_has_a_name(live: LivePage, card: Path) -> None:
    live.choose(card)
    live.answer()
    live.tab.call("Accessibility.enable")
    nodes = live.tab.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "textbox", "slider", "image", "region", "article", "heading"):
        assert roles[role] and all(roles[role]), (role, roles[role])
    assert "alert" not in roles, "there is no error"
    assert set(roles["region"]) == {"Give an image", "Answer", "Asked so far", "An image of each class", "About"}
    assert "status" in roles and roles["main"]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen(width: int, answers: Answers, card: Path, tmp_path: Path) -> None:
    answers.models *= 2
    answers.models[1] = {**answers.models[1], "name": "another-model-with-a-very-long-name-of-one-word"}
    answers.top = [
        ("a class with a name that is much too long for one line of a phone's narrow screen", 0.5),
        ("joker", 0.4),
    ]
    with stub_server(answers) as address:
        live = LivePage(_start().open(), address, width)
        live.choose(card)
        live.answer()
        assert live.run("return document.documentElement.scrollWidth") <= width
        small = live.run(
            "return [...document.querySelectorAll('button, input, .button')]"
            ".filter(node => node.offsetParent && node.offsetHeight < 44)"
            ".map(node => node.id)"
        )
        assert small == [], "large enough for a finger"
        live.tab.close()


def test_colours_have_the_contrast_that_eyes_need() -> None:
    style = files(imgclf.page).joinpath("style.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2])
    texts = [("ink", "paper"), ("ink", "panel"), ("quiet", "paper"), ("quiet", "panel"), ("warn", "panel")]
    texts += [
        ("warn", "warn-soft"),
        ("accent", "panel"),
        ("accent", "paper"),
        ("accent", "soft"),
        ("on-accent", "accent"),
    ]
    shapes = [("edge", "panel"), ("edge", "paper"), ("fill", "track"), ("focus", "paper"), ("focus", "panel")]
    for colours in (light, dark):
        for pairs, least in ((texts, 4.5), (shapes, 2.9 if colours is light else 3.0)):
            for front, back in pairs:
                assert _contrast(colours[front], colours[back]) >= min(least, 4.5), (front, back)


def _contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
