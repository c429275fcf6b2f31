"""What a service answers: predictions for each kind of body, facts of the models, samples, figures, its description."""

import base64
import json
import re
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.routing import Route
from support.http_site import Handler, Site
from support.image_files import encoded
from support.odd_names import NAMES
from support.service import JPEG, Asked, form

from imgclf.images import decode
from imgclf.serving import app
from imgclf.serving.models import ServedModel, choose_names, split_name
from imgclf.serving.settings import ServeSettings


def test_image_gets_the_probabilities_of_the_predictor(asked: Asked, tiny_model: ServedModel, red: bytes) -> None:
    answer = asked.ask("/predict?top=3", red, {"Content-Type": "image/png"})
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert answer.json["model"] == "colours"
    (prediction,) = answer.json["predictions"]
    (expected,) = tiny_model.predictor.predict_proba([red])
    assert prediction["predicted"] == prediction["top"][0]["class"] == "red"
    shown = {entry["class"]: entry["probability"] for entry in prediction["top"]}
    assert [shown[name] for name in tiny_model.classes] == pytest.approx(expected.tolist(), abs=1e-6)
    assert prediction["probability"] == prediction["top"][0]["probability"] and 0 < prediction["seconds"] < 10
    assert prediction["name"] == "image" and "saliency" not in prediction


@pytest.mark.parametrize("kind", ["image/webp", "application/octet-stream", None])
def test_type_of_an_image_may_be_any(asked: Asked, red: bytes, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert asked.ask("/predict", red, headers).json["predictions"][0]["predicted"] == "red"


def test_form_gets_one_prediction_per_file_in_order(asked: Asked, colours: Path, red: bytes) -> None:
    blue = (colours / "test" / "blue" / "000.png").read_bytes()
    body, headers = form(("images", "r.png", red), ("images", "none.png", b"no image"), ("images", "b.png", blue))
    answer = asked.ask("/predict?model=second&top=1", body, headers)
    assert answer.status == 200 and answer.json["model"] == "second"
    first, second, third = answer.json["predictions"]
    assert (first["name"], first["predicted"], len(first["top"])) == ("r.png", "red", 1)
    assert (
        second["name"] == "none.png" and second["error"].startswith("none.png: ") and set(second) == {"name", "error"}
    )
    assert (third["name"], third["predicted"]) == ("b.png", "blue")


def test_addresses_are_fetched(asked: Asked, red: bytes) -> None:
    site = Site(body=red)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handled", (Handler,), {"site": site}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/red.png?secret=1"
    try:
        body = json.dumps({"urls": [url, "file:///etc/passwd", "ftp://127.0.0.1/x"]}).encode()
        answer = asked.ask("/predict", body, {"Content-Type": "application/json"})
    finally:
        server.shutdown()
        server.server_close()
    assert answer.status == 200
    first, *others = answer.json["predictions"]
    assert (first["name"], first["predicted"]) == (url, "red") and len(site.seen) == 1
    assert ["expected an address like https" in other["error"] for other in others] == [True, True]


def test_threshold_of_the_request_comes_before_that_of_the_service(asked: Asked, red: bytes) -> None:
    assert asked.ask("/predict?threshold=1", red, JPEG).json["predictions"][0]["predicted"] == "unsure"
    assert asked.ask("/predict?threshold=0", red, JPEG).json["predictions"][0]["predicted"] == "red"


def test_saliency_map_has_the_size_of_the_network(asked: Asked, red: bytes) -> None:
    (prediction,) = asked.ask("/predict?saliency=1", red, JPEG).json["predictions"]
    kind, _, data = prediction["saliency"].partition(",")
    assert kind == "data:image/png;base64" and decode(base64.b64decode(data)).shape == (16, 16, 3)


@pytest.mark.parametrize("name", NAMES)
def test_odd_name_of_a_file_comes_back_as_json(asked: Asked, red: bytes, name: str) -> None:
    if re.search(r'["\r\n\\]|^ | $', name):
        pytest.skip("a form can't hold the name without escapes of its own")
    body, headers = form(("images", name, red))
    answer = asked.ask("/predict?top=1", body, headers)
    assert answer.status == 200, answer.body
    text = answer.body.decode()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    given = answer.json["predictions"][0]["name"]
    raw = name.encode("utf-8", "surrogateescape")
    # Bytes that aren't UTF-8 can only be read as Latin-1, which gives each of them a character.
    assert given in (name.rpartition("\\")[2], raw.decode("latin-1"))


def test_metadata_has_what_the_page_needs(asked: Asked, tiny_model: ServedModel) -> None:
    answer = asked.ask("/metadata").json
    assert (answer["threshold"], answer["max_bytes"]) == (0.1, 2**20)
    assert [model["name"] for model in answer["models"]] == ["colours", "second"]
    model = answer["models"][1]
    assert model["classes"] == ["blue", "green", "red"] and model["size"] == 16 and model["saliency"] is True
    assert model["network"] == "small_cnn" and model["data"] == "folders" and model["licence"] is None
    assert model["metrics"]["test"]["accuracy"] == tiny_model.predictor.metrics["test"]["accuracy"]
    assert model["samples"] == {"blue": "/samples/1/0", "green": "/samples/1/1", "red": "/samples/1/2"}


def test_sample_is_a_training_image_of_its_class(asked: Asked, tiny_model: ServedModel) -> None:
    for index, name in enumerate(tiny_model.classes):
        answer = asked.ask(f"/samples/0/{index}")
        assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg"
        mean = decode(answer.body).mean(axis=(0, 1))
        assert np.argmax(mean) == {"red": 0, "green": 1, "blue": 2}[name]
    for path in ("/samples/0/3", "/samples/2/0", "/samples/0/-1", "/samples/0/x"):
        assert asked.ask(path).status == 404


def test_model_whose_data_are_gone_has_no_samples(tiny_model: ServedModel) -> None:
    from dataclasses import replace

    from imgclf.serving.samples import ClassSamples

    metadata = tiny_model.predictor.model.metadata
    gone = replace(metadata, data=replace(metadata.data, root="/nowhere/at/all"))
    assert ClassSamples(tiny_model.classes, gone).available() == []
    other = ClassSamples(("cyan",), metadata)
    assert other.available() == [] and other.read(0) is None


def test_health_and_figures(asked: Asked, red: bytes) -> None:
    assert asked.ask("/health").json == {"status": "ok", "models": ["colours", "second"]}
    before, labels = figures(asked), '{path="/predict",status="200"}'
    asked.ask("/predict", red, JPEG)
    asked.ask("/predict", b"nothing", JPEG)
    asked.ask("/never/heard/of/it")
    after = figures(asked)
    assert after[f"imgclf_requests_total{labels}"] == before.get(f"imgclf_requests_total{labels}", 0) + 1
    assert after['imgclf_images_total{model="colours",outcome="unreadable"}'] >= 1
    assert after['imgclf_requests_total{path="other",status="404"}'] >= 1
    assert after["imgclf_places_taken"] == after["imgclf_held_bytes"] == 0
    assert not any("never" in name for name in after)


def figures(asked: Asked) -> dict[str, float]:
    """Return the figures of the service by name and labels."""
    answer = asked.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_description_has_the_real_routes_and_statuses(asked: Asked) -> None:
    document = asked.ask("/openapi.json").json
    assert asked.service is not None
    routes = [route for route in app.build_app(asked.service).routes if isinstance(route, Route)]
    real = {(re.sub(r":\w+", "", route.path), method) for route in routes for method in route.methods or ()}
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == {(path, method) for path, method in real if method != "HEAD"}
    operation = document["paths"]["/predict"]["post"]
    assert [item["name"] for item in operation["parameters"]] == ["model", "top", "threshold", "saliency"]
    source = "".join(path.read_text() for path in Path(app.__file__).parent.glob("*.py"))
    raised = set(re.findall(r"Refusal\((\d{3})", source)) | {"200", "422"}
    assert set(operation["responses"]) == raised


def test_description_has_the_keys_of_real_answers(asked: Asked, red: bytes) -> None:
    paths = asked.ask("/openapi.json").json["paths"]

    def schema(operation: dict) -> dict:
        return operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]

    answer = asked.ask("/predict?saliency=1", red, JPEG).json
    described = schema(paths["/predict"]["post"])
    assert set(described) == set(answer)
    assert set(described["predictions"]["items"]["properties"]) == {*answer["predictions"][0], "error"}
    facts, described = asked.ask("/metadata").json, schema(paths["/metadata"]["get"])
    assert set(described) == set(facts) and set(described["models"]["items"]["properties"]) == set(facts["models"][0])


def test_page_of_the_description_asks_nothing_of_other_sites(asked: Asked) -> None:
    answer = asked.ask("/docs")
    text = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html") and "POST /predict" in text
    assert "//" not in text.replace("http://www.w3.org", "") and "<script" not in text


def test_files_of_the_page_are_served_from_its_folder_alone(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    (folder / "inner").mkdir(parents=True)
    for name in ("index.html", "app.js", "notes.txt", "../secret.js", "inner/deep.js"):
        (folder / name).write_text("some text")
    monkeypatch.setattr(app, "PAGE", folder)
    page, script = asked.ask("/"), asked.ask("/static/app.js")
    assert page.headers["content-type"].startswith("text/html") and page.body == b"some text"
    assert script.headers["content-type"].startswith("text/javascript")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    wrong = ("../secret.js", "..%2fsecret.js", "%2e%2e/secret.js", "..%5csecret.js", "inner/deep.js", "inner%2fdeep.js")
    for name in (*wrong, "notes.txt", "", ".", "app.js%00", "/app.js", str(folder / "app.js")):
        assert asked.ask(f"/static/{name}").status == 404, name
    monkeypatch.setattr(app, "PAGE", tmp_path / "none")
    assert asked.ask("/").status == 404 and "POST /predict" in asked.ask("/").error


def test_head_has_no_body(asked: Asked) -> None:
    answer = asked.ask("/health", method="HEAD")
    assert answer.status == 200 and answer.body == b""


def test_modules_load_no_torch() -> None:
    modules = "imgclf.serving.app, imgclf.serving.server, imgclf.serving.models"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_of_models_are_given_or_derived(tiny_model: ServedModel, tmp_path: Path) -> None:
    predictor, file = tiny_model.predictor, tmp_path / "hands.ckpt"
    file.write_bytes(b"")
    (tmp_path / "a=b").write_bytes(b"")
    assert split_name("cards=outputs/x") == ("cards", "outputs/x") and split_name("outputs/x") == (None, "outputs/x")
    assert split_name(str(tmp_path / "a=b")) == (None, str(tmp_path / "a=b"))
    names = choose_names([None, None, "own", None], [str(file), "run", "run", "run"], [predictor] * 4)
    assert names == ["hands", "folders", "own", "folders-2"]


def test_large_photo_is_shrunk(asked: Asked) -> None:
    photo = encoded(Image.new("RGB", (3000, 2000), (200, 40, 40)), "JPEG")
    assert asked.ask("/predict", photo, JPEG).json["predictions"][0]["predicted"] == "red"


def test_settings_refuse_an_origin_with_a_path() -> None:
    from imgclf.errors import ConfigError

    with pytest.raises(ConfigError, match="expected an origin"):
        ServeSettings(cors=("https://example.org/page",))
