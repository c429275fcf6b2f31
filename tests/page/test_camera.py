"""The camera on the page: a browser whose camera shows a film of plain colours, live answers, and what can go wrong."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.browser import _Browser, _start, needs_browser
from support.page_site import (
    Answers,
    LivePage,
    camera_browser,
    colour_model,
    runtime_or_skip,
    static_host,
    stub_server,
    write_film,
)

from imgclf.exporting.static_page import PageModel, write_page
from imgclf.preprocess import Preprocess

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Browser]:
    """A browser whose camera shows a second of red and a second of blue, again and again."""
    frames = [np.full((96, 96, 3), colour, np.uint8) for colour in ((200, 40, 40), (40, 60, 200))]
    browser = camera_browser(write_film(tmp_path_factory.mktemp("film") / "film.y4m", frames))
    yield browser
    browser.close()


def test_camera_answers_live_in_the_browser(browser: _Browser, tmp_path: Path) -> None:
    runtime_or_skip()
    facts = colour_model(tmp_path / "m.onnx", Preprocess(size=96), ["blue", "green", "red"])
    page = write_page(tmp_path / "page", [PageModel("colours", tmp_path / "m.onnx", facts)])
    with static_host(page) as address:
        live = LivePage(browser.open(), address)
        live.run("camera.click()")
        label = "document.querySelector('#models .label').textContent === '%s'"
        live.tab.wait_for(label % "red")
        live.tab.wait_for(label % "blue")
        rate = live.tab.wait_for("document.querySelector('.time').textContent.match(/^(\\d+) answers a second$/)?.[1]")
        assert int(rate) >= 3
        assert live.text("#camera") == "Stop the camera"
        live.run("document.getElementById('snap').click()")
        live.tab.wait_for("document.querySelectorAll('#history li').length === 1")
        assert live.text("#history .tile-detail").startswith("camera, ")
        assert live.run("return video.srcObject") is None, "the camera is let go"
        assert live.strangers() == [] and live.tab.console == []
        live.tab.close()


def test_camera_sends_frames_one_by_one_to_the_server(browser: _Browser) -> None:
    model = {"name": "cards", "network": "n", "size": 96, "classes": ["ace of clubs"], "metrics": {}, "saliency": True}
    answers = Answers([model])
    with stub_server(answers) as address:
        live = LivePage(browser.open(), address)
        live.run("camera.click()")
        assert live.answer() == "ace of clubs"
        live.tab.wait_for("document.querySelector('.time').textContent")
        assert {asked["type"] for asked in answers.seen} == {"image/jpeg"}
        answers.status, answers.headers = 429, {"Retry-After": "1"}
        assert live.error() == "The server has too many images waiting; try again in 1 s."
        answers.status = 200
        live.tab.wait_for("document.getElementById('error').hidden")
        answers.status = 503
        live.tab.wait_for("!document.getElementById('error').hidden")
        live.run("camera.click()")
        assert live.text("#camera") == "Use the camera" and live.run("return video.srcObject") is None
        count = len(answers.seen)
        live.run("await new Promise(done => setTimeout(done, 300))")
        assert len(answers.seen) <= count + 1, "nothing is sent any more"
        answers.status = 200
        live.run("camera.click()")
        assert live.answer() == "ace of clubs"
    assert live.error() == "The server does not answer; start it again, then repeat this."
    assert live.text("#camera") == "Use the camera" and live.run("return video.srcObject") is None
    live.tab.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };",
            "The camera was refused; allow it for this page in the browser, then start it again.",
        ),
        ("", "No camera was found; connect one, or choose an image."),
        (
            "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });",
            "The browser offers no camera here; open this page through https or from 127.0.0.1.",
        ),
    ],
)
def test_camera_that_does_not_start_is_one_sentence(script: str, said: str) -> None:
    with stub_server(Answers([{"name": "m", "classes": ["a"]}])) as address:
        live = LivePage(_start().open(), address)
        live.run(f"{script} camera.click()")
        assert live.error() == said
        assert (
            live.text("#camera") == "Use the camera"
            and live.run("return document.getElementById('empty').hidden") is False
        )
        live.tab.close()
