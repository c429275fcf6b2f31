"""The static page: what is written, and the page of a plain host in a real browser, with the model inside it."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.browser import NASTY, _start, needs_browser
from support.fabricate import COLOURS, draw_image
from support.http_site import Handler, Site, fail
from support.page_site import LivePage, colour_model, runtime_or_skip, serving, static_host

import imgclf
from imgclf.errors import ConfigError
from imgclf.exporting import export_checkpoint
from imgclf.exporting.static_page import PAGE_FILES, PageModel, write_page
from imgclf.exporting.web_runtime import RUNTIME_FILES, VARIABLE, runtime_files
from imgclf.images import decode
from imgclf.preprocess import Preprocess


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a blue.png, a green.png and a red.png, and what isn't an image."""
    folder = tmp_path_factory.mktemp("images")
    for name, colour in COLOURS.items():
        draw_image(folder / f"{name}.png", colour, 1, 64)
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff" + bytes(500))
    with (folder / "large.png").open("wb") as file:
        file.truncate(60_000_000)
    return folder


@pytest.fixture(scope="module")
def page(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models: of the colours' names, and of classes whose names are hostile."""
    runtime_or_skip()
    folder = tmp_path_factory.mktemp("page")
    models = []
    for name, classes in {"colours": ["blue", "green", "red"], "farben": ["blau", "grün", NASTY]}.items():
        facts = colour_model(folder / f"{name}.onnx", Preprocess(size=32), classes)
        samples = {classes[2]: images / "red.png", classes[0]: images / "blue.png"}
        models.append(PageModel(name, folder / f"{name}.onnx", facts, samples))
    return write_page(folder / "page", models)


def test_folder_holds_the_page_the_models_and_the_runtime(page: Path) -> None:
    files = {str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()}
    expected = {"index.html", "model.json", "model.onnx", "model-2.onnx", "runtime/LICENSE"}
    expected |= {f"static/{name}" for name in PAGE_FILES} | {f"runtime/{name}" for name in RUNTIME_FILES}
    expected |= {f"samples/{index}-{number}.jpg" for index in (0, 1) for number in (0, 1)}
    assert files - {"runtime/ThirdPartyNotices.txt"} == expected
    about = json.loads((page / "model.json").read_text())
    first = about["models"][0]
    assert (first["classes"], first["size"], first["file"]) == (["blue", "green", "red"], 32, "model.onnx")
    assert first["metrics"] == {"test": {"accuracy": 0.987, "count": 265}}, "JSON has no NaN"
    assert first["samples"] == {"red": "samples/0-0.jpg", "blue": "samples/0-1.jpg"}
    assert Preprocess.from_dict(first["preprocess"]) == Preprocess(size=32)


def test_every_file_of_the_page_is_listed() -> None:
    from importlib.resources import files

    import imgclf.page

    names = {item.name for item in files(imgclf.page).iterdir() if item.name.endswith((".css", ".js"))}
    assert names == set(PAGE_FILES)


def test_samples_are_small_and_hold_no_exif(images: Path, tmp_path: Path) -> None:
    runtime_or_skip()
    exif = Image.Exif()
    exif[271] = "A camera"
    photo = io.BytesIO()
    Image.new("RGB", (1200, 600), "red").save(photo, "JPEG", exif=exif.tobytes())
    facts = colour_model(tmp_path / "m.onnx", Preprocess(size=32), ["blue", "green", "red"])
    page = write_page(tmp_path / "page", [PageModel("m", tmp_path / "m.onnx", facts, {"red": photo.getvalue()})])
    assert decode(page / "samples" / "0-0.jpg").shape == (256, 512, 3)
    assert b"A camera" not in (page / "samples" / "0-0.jpg").read_bytes()
    write_page(page, [PageModel("m", tmp_path / "m.onnx", facts)])  # again, in the same folder
    assert not (page / "samples").exists(), "images of the former page are not published any more"


def test_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    facts = {"classes": ["a"], "preprocess": Preprocess().to_dict()}
    model = PageModel("m", tmp_path / "m.onnx", facts)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files; expected a new or empty folder"):
        write_page(tmp_path, [model])
    with pytest.raises(ConfigError, match=r"mine.txt: is a file; expected a folder"):
        write_page(tmp_path / "mine.txt", [model])
    with pytest.raises(ConfigError, match="at least one model"):
        write_page(tmp_path / "new", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_runtime_is_checked_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.tgz").write_bytes(b"not the package")
    fail(lambda: runtime_files(tmp_path / "other.tgz"), "other.tgz: isn't onnxruntime-web", "SHA-512 differs")
    fail(lambda: runtime_files(tmp_path / "absent.tgz"), "absent.tgz: can't be read")
    fail(lambda: runtime_files(tmp_path), "lacks ort.wasm.bundle.min.mjs")
    for name in RUNTIME_FILES:
        (tmp_path / name).write_bytes(b"changed")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    fail(runtime_files, "ort.wasm.bundle.min.mjs isn't that of onnxruntime-web", "SHA-512 differs")


@pytest.fixture
def live(page: Path) -> Iterator[LivePage]:
    """The page of a plain static host; nothing may be asked of others, and the console must stay empty."""
    with static_host(page) as address:
        shown = LivePage(_start().open(), address)
        yield shown
        strangers, console = shown.strangers(), shown.tab.console
        shown.tab.close()
    assert strangers == [] and console == []


@needs_browser
def test_chosen_image_is_classified_by_both_models(live: LivePage, images: Path) -> None:
    live.choose(images / "red.png")
    assert live.answer() == "red"
    labels = live.run("return [...document.querySelectorAll('#models .label')].map(node => node.textContent)")
    assert labels == ["red", NASTY], "a class's name is text"
    assert live.run("return document.querySelectorAll('#models img:not(.map)').length") == 0
    assert live.run("return document.title") == "colours, farben"
    assert "model.onnx" in " ".join(live.tab.requests), "the requests of the worker are watched"
    assert live.text("#history .tile-detail") == "red.png"
    assert live.run("return crossOriginIsolated") is False
    assert live.text("#made") == "Made with imgclf 0.1.0."


@needs_browser
def test_threads_are_used_where_the_host_allows_them(page: Path, images: Path) -> None:
    headers = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}
    with static_host(page, **headers) as address:
        live = LivePage(_start().open(), address, cores=4)
        live.choose(images / "green.png")
        assert live.answer() == "green"
        assert live.text("#made") == "Made with imgclf 0.1.0. The model uses 3 threads."
        assert live.run("return crossOriginIsolated") is True and live.tab.console == []
        live.tab.close()


@needs_browser
def test_paste_drop_and_samples(live: LivePage, images: Path) -> None:
    paste = """
        const data = new DataTransfer();
        if (%s) data.items.add(new File([await (await fetch("samples/0-1.jpg")).blob()], "copied.jpg", { type: "image/jpeg" }));
        else data.setData("text/plain", "only a text");
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    """
    live.run(paste % "true")
    assert live.answer() == "blue"
    live.run(paste % "false")
    assert live.error() == "The clipboard holds no image and no link to one; copy an image, then paste it here."
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(images / "green.png")], "dragOperationsMask": 1}
        live.tab.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)
    live.tab.wait_for("document.querySelector('#models .label').textContent === 'green'")
    assert live.run("return document.getElementById('error').hidden"), "the error is gone with the next image"
    live.run("document.querySelectorAll('#samples .tile')[1].click()")
    live.tab.wait_for("document.querySelector('#models .label').textContent === 'red'")
    names = live.run("return [...document.querySelectorAll('#history .tile-detail')].map(node => node.textContent)")
    assert names == ["sample of red", "green.png", "copied.jpg"]
    live.run("document.querySelectorAll('#history .tile')[1].click()")
    assert live.answer() == "green"
    live.run("document.getElementById('clear').click()")
    assert live.run("return document.getElementById('history').hidden")


@needs_browser
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.txt", "notes.txt is not an image; choose a JPEG, PNG, WebP or GIF file."),
        ("empty.png", "empty.png is empty; choose an image."),
        ("large.png", "large.png has 60 MB; at most 34 MB are read, choose a smaller image."),
        ("cut.jpg", "cut.jpg is damaged or cut off."),
    ],
)
def test_what_is_no_image_gets_one_sentence(name: str, said: str, live: LivePage, images: Path) -> None:
    live.choose(images / name)
    assert live.error() == said
    assert live.run("return document.getElementById('history').hidden")
    live.choose(images / "red.png")
    assert live.answer() == "red", "the page goes on"


@needs_browser
def test_threshold_makes_unsure(live: LivePage, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (120, 120, 110)).save(tmp_path / "grey.png")
    live.choose(tmp_path / "grey.png")
    assert live.answer() in COLOURS
    live.run("threshold.value = 90; threshold.dispatchEvent(new Event('input'))")
    assert live.answer() == "unsure"
    assert live.text("#models .note").startswith("Most likely ") and live.text("#history .tile-text") == "unsure"
    assert live.text("#threshold-value") == "90 %"


@needs_browser
def test_link_is_loaded_only_where_the_other_site_allows_it(page: Path, images: Path) -> None:
    site = Site(body=(images / "blue.png").read_bytes(), headers={"Content-Type": "image/png"})
    with static_host(page) as address, serving(type("Other", (Handler,), {"site": site})) as other:
        live = LivePage(_start().open(), address)
        ask = "link.value = %s; document.getElementById('link-go').click()"
        live.run(ask % json.dumps("ftp://somewhere/a.png"))
        assert live.error() == "This is no link to an image; it must begin with http:// or https://."
        live.run(ask % json.dumps(f"{other}a.png"))
        host = other.removeprefix("http://").rstrip("/")
        live.tab.wait_for(f"document.getElementById('error').textContent.startsWith({json.dumps(host)})")
        assert live.error() == (
            f"{host} does not let pages read this image, or does not answer; save the image, then choose the file."
        )
        assert live.strangers() == [f"{other}a.png"], "that address and no other"
        site.headers["Access-Control-Allow-Origin"] = "*"
        live.run(ask % json.dumps(f"{other}b.png"))
        assert live.answer() == "blue" and live.text("#history .tile-detail") == "b.png"
        assert "cookie" not in site.seen[-1][1] and "referer" not in site.seen[-1][1]
        live.tab.close()


@needs_browser
def test_missing_model_is_one_sentence(page: Path, tmp_path: Path) -> None:
    shutil.copytree(page, tmp_path / "page", ignore=shutil.ignore_patterns("model.json"))
    with static_host(tmp_path / "page") as address:
        tab = _start().open()
        tab.call("Page.enable")
        tab.call("Page.navigate", url=address)
        said = "!!document.getElementById('error')?.textContent && document.getElementById('error').textContent"
        assert tab.wait_for(said) == "model.json is not beside this page; copy the whole folder."
        tab.close()


@needs_browser
def test_exported_run_answers_in_the_browser_as_in_python(tiny_run: Path, colours: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime_or_skip()
    file = tmp_path / "tiny.onnx"
    export_checkpoint(str(tiny_run), file, half=False)
    facts = json.loads({entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}["imgclf"])
    image = colours / "test" / "green" / "000.png"
    page = write_page(tmp_path / "page", [PageModel("tiny", file, facts, {"green": image})])
    probabilities = dict(zip(facts["classes"], imgclf.load(file).predict_proba(image)[0], strict=True))
    with static_host(page) as address:
        live = LivePage(_start().open(), address)
        live.choose(image)
        assert live.answer() == max(probabilities, key=lambda name: float(probabilities[name]))
        best = max(float(value) for value in probabilities.values())
        assert abs(float(live.text("#models .value").removesuffix(" %")) - 100 * best) < 0.1
        assert "Accuracy, val\n100 % of 12 images" in live.text("#facts") and live.tab.console == []
        live.tab.close()
