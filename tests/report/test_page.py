"""report.html: its content, and that a real browser opens, sorts, points and clicks without an error."""

import html
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from imgclf.data.samples import Samples
from imgclf.evaluation.calibration import accuracy_interval
from imgclf.evaluation.evaluate import Evaluation
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.models.image_model import load_image_model
from imgclf.models.network import Network
from imgclf.report.facts import measuring_notes
from imgclf.report.page import results_page
from imgclf.report.run_report import _choose_images
from imgclf.report.summary import network_rows

from support.browser import BROWSER, NASTY, Tags, browse, needs_browser  # isort: skip
from support.fabricate import composed  # isort: skip


def page_data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert match
    return dict(json.loads(match[1]))


@pytest.fixture(scope="module")
def page(tiny_run: Path) -> str:
    return (tiny_run / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_the_metrics_of_the_run(page: str, tiny_run: Path) -> None:
    data, metrics = page_data_of(page), json.loads((tiny_run / "metrics.json").read_text())
    assert data["classes"] == ["blue", "green", "red"] and data["split"] == "test"
    for split in ("train", "val", "test"):
        for key in ("accuracy", "loss", "correct", "count"):
            assert data["splits"][split][key] == pytest.approx(metrics[split][key])
    assert data["splits"]["test"]["interval"] == pytest.approx(accuracy_interval(metrics["test"]["correct"], 15))
    assert sum(many for *_, many in data["matrix"]) == 15 and len(data["images"]) == 15
    assert len(data["history"]) == 3 and data["counts"]["train"] == [12, 12, 12]
    for image in data["images"]:
        assert data["classes"][image["true"]] in image["file"] and image["src"].startswith("data:image/jpeg;base64,")
        assert image["top"][0] == [image["predicted"], image["probability"]]
    assert len(data["samples"]) == 3 and len(data["saliency"]) >= 3
    assert "imgclf" in dict(map(tuple, data["environment"]))["versions"]


def test_the_page_shows_the_network_of_the_console_and_the_files_of_the_run(page: str, tiny_run: Path) -> None:
    data, model = page_data_of(page), load_image_model(tiny_run / "checkpoints" / "best.ckpt")
    assert isinstance(model.network, Network)
    assert data["network"] == network_rows(model.network, model.preprocess)
    assert data["listed"] == "predictions_test.csv" and (tiny_run / data["listed"]).exists()
    assert data["averages"][0][:3] == ["accuracy", "", ""] and data["averages"][0][4] == "15"
    assert data["best_epoch"] in (1, 2, 3)
    epochs = f"epoch {data['best_epoch']} of 3, the best by val_accuracy"
    assert data["notes"] == [
        "train: measured during the last epoch, while the weights changed.",
        f"val and test: measured with the weights of {epochs}.",
    ]


def test_notes_are_true_of_the_run() -> None:
    samples = Samples(tuple("123456789"), np.zeros(9, np.int64), ("a", "b"))
    part = replace(fabricated_evaluation(6, 2, 1.0), samples=samples)
    config = {"dataset": {"augment": {"horizontal_flip": True}}, "mixing": {"mixup": 0.2}, "ema_decay": 0.9}
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    notes = list(measuring_notes(network, {"test": part}, config, 5, 5, with_train=True))
    how = "with augmented images, with mixed images, with dropout"
    assert notes == [
        f"train: measured during the last epoch, while the weights changed, {how}.",
        "test: measured with the weights of the last epoch; without validation none is known to be better.",
        "test: measured with the moving average of the weights.",
        "test: measured on a sample of 6 of its 9 images.",
    ]
    network.requires_grad_(False)
    calibrated = replace(part, order=np.arange(9), metrics={"temperature": 2.0})
    notes = list(measuring_notes(network, {"val": calibrated}, {}, 5, None, with_train=True))
    assert notes == [
        "train: measured during the last epoch, while the weights changed.",
        "The probabilities on this page are those with temperature, which was fitted on validation.",
    ]
    whole = replace(calibrated, metrics={})
    assert list(measuring_notes(network, {"val": whole}, {}, 0, None, with_train=False)) == []


def test_the_page_makes_no_network_requests(page: str) -> None:
    tags = Tags(page)
    assert tags.loads == [] and "link" not in tags.tags and "iframe" not in tags.tags
    assert "default-src 'none'" in page and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_names_that_are_markup_stay_text(page: str) -> None:
    data = {**page_data_of(page), "classes": [NASTY, "b", "c"], "title": NASTY}
    made = results_page(data)
    assert "<img src=x" not in made and page_data_of(made)["classes"][0] == NASTY
    assert made.count("</script>") == 2 and html.escape(NASTY) in made


def test_evaluate_writes_a_report_too(tiny_run: Path, tmp_path: Path) -> None:
    settings = composed(f"checkpoint='{tiny_run / 'checkpoints' / 'best.ckpt'}'", "split=val", config="evaluate")
    evaluate_checkpoint(settings, tmp_path / "out")
    data = page_data_of((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert data["split"] == "val" and data["splits"]["val"]["count"] == 12
    assert data["listed"] == "predictions_val.csv" and data["best_epoch"] is None and data["augmented"] == []
    assert len(data["samples"]) == 3, "the checkpoint was trained on them"


def test_the_page_shows_the_epochs_after_the_best_one(run_tiny: Callable[..., Path]) -> None:
    folder = run_tiny(
        "trainer.max_epochs=3", "report=true", "optimizer.lr=0"
    )  # epochs equal to the best don't replace it
    data = page_data_of((folder / "report.html").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["epoch"] for row in data["history"]] == [1, 2, 3]
    assert data["splits"]["train"]["loss"] == metrics["train"]["loss"]


def test_report_false_writes_no_page_and_no_plots(run_tiny: Callable[..., Path]) -> None:
    folder = run_tiny("trainer.max_epochs=1", "report=false")
    assert not list(folder.glob("*.html")) and not list(folder.glob("*.png"))


def fabricated_evaluation(count: int, classes: int, accuracy: float) -> Evaluation:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, classes, count)
    probabilities = generator.dirichlet(np.ones(classes), count).astype(np.float32)
    for row in np.flatnonzero(generator.random(count) < accuracy):
        best = probabilities[row].argmax()
        probabilities[row, [best, targets[row]]] = probabilities[row, [targets[row], best]]
    return Evaluation(None, np.arange(count), probabilities, probabilities, targets, {}, np.zeros((1, 1), np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.98, 1.0])
def test_the_page_chooses_from_thousands_of_images(accuracy: float) -> None:
    evaluation = fabricated_evaluation(8700, 29, accuracy)
    chosen = _choose_images(evaluation)
    predicted = evaluation.probabilities.argmax(axis=1)
    wrong = set(np.flatnonzero(predicted != evaluation.targets).tolist())
    assert len(set(chosen)) == len(chosen) <= 400
    assert sum(position in wrong for position in chosen) == min(250, len(wrong))
    right = set(range(8700)) - wrong
    if len(right) > 1000:  # an image in every cell of the diagonal
        assert {int(predicted[position]) for position in chosen if position in right} == set(range(29))


SCRIPT = """
  const cells = [...document.querySelectorAll(".cell")];
  out.cells = cells.length;
  cells[0].dispatchEvent(new PointerEvent("pointerenter"));
  out.hover = document.querySelector("p.readout").textContent;
  cells[0].dispatchEvent(new MouseEvent("click", {bubbles: true}));
  const cell = cells[0].dataset.cell.split(",").map(Number);
  out.cell = cell;
  out.below = document.querySelectorAll(".chosen-images figure").length;
  const head = [...document.querySelectorAll("table.classes th button")];
  const column = index => [...document.querySelectorAll("table.classes tbody tr")].map(row => row.children[index].textContent);
  out.names = column(0);
  head[0].click(); out.reversed = column(0);
  head[2].click(); out.recall = column(2);
  head[2].click(); out.recall_down = column(2);
  out.sort = head[2].parentElement.getAttribute("aria-sort");
  out.images = [...document.images].length;
  out.broken = [...document.images].filter(image => image.complete && !image.naturalWidth).length;
  out.charts = document.querySelectorAll(".charts svg polyline").length;
  out.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
"""


@needs_browser
def test_a_browser_opens_points_at_clicks_and_sorts_the_page(page: str, tmp_path: Path) -> None:
    result, console = browse(page, SCRIPT, tmp_path)
    data = page_data_of(page)
    assert result["errors"] == [] and console == ""
    assert result["cells"] == len(data["matrix"]) and result["charts"] == 4
    row, column = result["cell"]
    many = next(count for r, c, count in data["matrix"] if (r, c) == (row, column))
    assert result["below"] == many and f": {many} of 5 " in result["hover"]
    assert result["names"] == data["classes"] and result["reversed"] == data["classes"][::-1]
    recall = [float(value) for value in result["recall"]]
    assert recall == sorted(recall) and [float(v) for v in result["recall_down"]] == recall[::-1]
    assert result["sort"] == "descending" and result["images"] >= 15 and result["broken"] == 0


@needs_browser
def test_a_browser_runs_the_page_under_its_own_policy(page: str, tmp_path: Path) -> None:
    """The page as it is written: its policy allows its own script alone."""
    assert BROWSER
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr and "<h2>Environment</h2>" in done.stdout


@pytest.mark.exhaustive
def test_a_page_of_three_hundred_real_images_is_below_five_megabytes(shared: Path, tmp_path: Path) -> None:
    from imgclf.training.run import train

    weights = shared / "weights" / "mobilenetv2_100_tfslim_in1k.safetensors"
    folder = tmp_path / "run"
    overrides = [
        "dataset=sports",
        "model=mobilenetv2",
        "model.freeze=all",
        f"model.weights='{weights}'",
        "report=true",
        f"data_dir='{shared / 'data' / 'sports'}'",
        "dataset.test_fraction=0.5",
        "trainer.max_epochs=1",
        "dataset.augment=null",
    ]
    train(composed(*overrides), folder, [])
    data = page_data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert data["splits"]["test"]["count"] >= 300 and len(data["images"]) >= 300
    assert (folder / "report.html").stat().st_size < 5e6
    assert json.loads((folder / "environment.json").read_text())["seconds"]["report"] < 20
