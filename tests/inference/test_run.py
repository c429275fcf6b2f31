"""A run in Python: from words to a `Run`, and what it reads from the files of its folder."""

import html
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from support.fabricate import COLOURS, ROOT, TINY
from support.run_files import read_json, read_rows

import imgclf
from imgclf.cli.python_call import compose_run
from imgclf.inference import predictor as predictor_module
from imgclf.training.classifier import ImageClassifier


@pytest.fixture(scope="module")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> imgclf.Run:
    """A run that `imgclf.train` made, in a folder that a word names."""
    folder = tmp_path_factory.mktemp("runs") / "with 'quotes' = and spaces"
    escaped = str(folder).replace("'", "\\'")
    return imgclf.train(*TINY, f"hydra.run.dir='{escaped}'", "report=true", data_dir=colours, seed=3)


def test_train_takes_words_and_keywords_and_returns_the_finished_run(trained: imgclf.Run, colours: Path) -> None:
    assert trained.folder.name == "with 'quotes' = and spaces"
    assert (trained.config.seed, trained.config.data_dir) == (3, str(colours))
    assert trained.config.dataset.batch_size == 8
    assert trained.metrics == read_json(trained.folder / "metrics.json")
    assert [row["epoch"] for row in trained.history] == [1, 2]


def test_runs_without_a_named_folder_have_folders_of_their_own(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_test_batches=1")
    first, second = (imgclf.train(*TINY, *quick, data_dir=colours) for _ in range(2))
    assert first.folder != second.folder
    assert {first.folder.parent, second.folder.parent} == {tmp_path / "outputs" / "folders" / "small_cnn"}
    assert imgclf.open_run("latest").folder == second.folder
    resumed = imgclf.train("trainer.max_epochs=2", resume=first.folder)
    assert (resumed.folder, len(resumed.history)) == (first.folder, 2)
    with pytest.raises(imgclf.RunError, match=r"has no report; it was trained with report=false$"):
        _ = first.report


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (("dataset=crds",), {}, "dataset=crds: no such choice; did you mean cards"),
        (("cards",), {}, r"imgclf\.train\('cards'\): expected words such as 'dataset=cards'"),
        (("-m", "seed=1,2"), {}, r"sweeps \(-m\) and other flags are for the command line"),
        (("find=lr",), {}, "find=lr trains no run"),
        (("trainer.max_epochs=many",), {}, "trainer.max_epochs=many: expected"),
        ((), {"data_dir": "/nowhere"}, "/nowhere, which doesn't exist"),
        ((), {"image_sice": 3}, "image_sice: unknown key"),
        ((), {"seed": object()}, "expected a number, a text, a path, a list or None"),
    ],
)
def test_mistake_raises_an_imgclf_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(imgclf.ImgclfError, match=message) as raised:
        imgclf.train(*words, **settings)
    assert "\n" not in str(raised.value)
    assert raised.value._render_traceback_() == [f"{type(raised.value).__name__}: {raised.value}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", ["/a/${x}", "a\\\\${b'\\", "a 'b'\\", "C:\\new\\'x", "[1, 2]", "null", "a=b", "1e-3", 'say "hi"']
)
def test_text_of_a_keyword_reaches_the_run_unchanged(value: str) -> None:
    config, _, overrides = compose_run(["dataset=folders", "hydra.run.dir=x"], {"data_dir": value})
    assert config.data_dir == value
    assert len(overrides) == 2, "hydra.run.dir isn't a setting of the run"


def test_keywords_may_be_lists_flags_and_nothing() -> None:
    settings = {"report": False, "image_size": None, "cache_gb": 0.5, "model": "vgg16"}
    config, _, _ = compose_run(["dataset.classes=[a,b]"], settings)
    assert (config.report, config.image_size, config.cache_gb, config.model.name) == (False, None, 0.5, "vgg16")


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.array(0.5)])
def test_numbers_and_arrays_of_numpy_are_numbers_and_lists(number: object) -> None:
    settings = {"cache_gb": number, "seed": np.int64(7), "report": np.bool_(False), "image_size": np.array([64, 32])[0]}
    config, _, overrides = compose_run(["dataset=folders", "data_dir=x"], settings)
    assert (config.cache_gb, config.seed, config.report, config.image_size) == (0.5, 7, False, 64)
    assert overrides[2:] == ["cache_gb=0.5", "seed=7", "report=false", "image_size=64"]


def test_values_inside_lists_and_mappings_are_read_as_they_are_written() -> None:
    labels = {"kind": "pixels", "files": ["a.csv"], "label_names": {"1": "one, two", "a, b": PurePosixPath("c")}}
    settings = {"dataset.classes": ["1", PurePosixPath("a/b"), "${x}"], "dataset.splits.train": labels}
    config, _, _ = compose_run(["dataset=folders"], {**settings, "+optimizer.options.betas": np.array([1, 2])})
    assert config.dataset.classes == ["1", "a/b", "${x}"]
    assert config.optimizer.options == {"betas": [1, 2]}
    layout = config.dataset.splits["train"]
    assert layout and layout.label_names == {"1": "one, two", "a, b": "c"}
    for key in ("1e3", "null", "it's"):
        with pytest.raises(imgclf.ConfigError, match=f"^['\"]{key}['\"]: can't be a key of a mapping"):
            compose_run(["dataset=folders"], {"+optimizer.options.x": {key: 1}})


def test_module_train_and_function_train_are_one_in_any_order() -> None:
    code = """
import imgclf
first = imgclf.train
import imgclf.train
from imgclf.train import main
from imgclf import train
assert first is imgclf.train is train and callable(train) and callable(main)
try:
    imgclf.train("dataset=crds")
except imgclf.ConfigError as error:
    print(error)
"""
    for lines in (code, code.replace("first = imgclf.train\n", "", 1).replace("first is ", "")):
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("dataset=crds: no such choice"), done.stderr


def test_run_reads_its_results_from_files_alone(trained: imgclf.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "load", lambda *_: pytest.fail("loads the classifier"))
    monkeypatch.setattr(imgclf.Run, "data", property(lambda _: pytest.fail("looks for the data")))
    run = imgclf.open_run(trained.folder / "checkpoints" / "best.ckpt")
    assert run.folder == trained.folder
    titles = [axes.get_title() for axes in run.plot_curves().axes]
    assert titles == ["Loss", "Accuracy"]
    test = run.metrics["test"]
    assert run.plot_confusion().axes[0].get_title().startswith(f"{test['correct']:.0f} of {test['count']:.0f}")
    assert run.plot_confusion("val").axes[0].get_title().startswith(f"{run.metrics['val']['correct']:.0f} of 12")
    lines = repr(run).splitlines()
    assert lines[0] == f"Run in {run.folder}" and lines[1] == "  folders, small_cnn, 2 epochs"
    assert lines[-1].startswith(f"  test  {test['correct']:.0f} of 15, ")


def test_top_losses_are_the_test_images_with_the_least_probability_of_their_class(trained: imgclf.Run) -> None:
    rows = read_rows(trained.folder / "predictions_test.csv")
    own = np.array([float(row[f"p({row['true']})"]) for row in rows])
    top = trained.top_losses(4)
    assert [row.path for row in top] == [rows[index]["file"] for index in np.argsort(own, kind="stable")[:4]]
    assert [row.loss for row in top] == pytest.approx(sorted(-np.log(own))[:-5:-1], rel=1e-5)
    first = next(row for row in rows if row["file"] == top[0].path)
    assert (top[0].actual, top[0].predicted) == (first["true"], first["predicted"])
    assert top[0].probability == pytest.approx(max(float(first[f"p({name})"]) for name in COLOURS))
    texts = [text.get_text() for text in top.figure.texts]
    assert len(texts) == 4 and f"loss {top[0].loss:.2f}" in texts[0]
    assert repr(top).count("\n") == 3 and top[0].path in repr(top)
    assert len(trained.top_losses(99)) == 15
    for n in (-1, 0):
        with pytest.raises(imgclf.ConfigError, match=f"^n={n}: expected the number of images to show, at least 1$"):
            trained.top_losses(n)


def test_figures_show_themselves_in_a_notebook_as_one_png(trained: imgclf.Run) -> None:
    for shown in (trained.plot_curves(), trained.plot_confusion(), trained.top_losses(2)):
        png, size = shown._repr_png_()
        assert png.startswith(b"\x89PNG") and 100 < size["width"] < 1000


def test_report_is_a_path_and_a_frame_with_the_page(trained: imgclf.Run) -> None:
    page = Path(trained.report).read_text(encoding="utf-8")
    assert os.fspath(trained.report) == str(trained.folder / "report.html") == str(trained.report)
    frame = trained.report._repr_html_()
    match = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', frame, re.DOTALL)
    assert match and html.unescape(match[1]) == page


def test_classifier_and_predict_are_those_of_the_best_epoch(trained: imgclf.Run, colours: Path) -> None:
    assert Path(trained.classifier.path) == trained.folder / "checkpoints" / "best.ckpt"
    rows = read_rows(trained.folder / "predictions_test.csv")
    assert trained.predict(colours / "test") == [row["predicted"] for row in rows]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
def test_interrupt_saves_and_raises_keyboard_interrupt_and_a_second_one_ends_the_run_alone(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # as in a notebook
    step, handler, calls = ImageClassifier.training_step, signal.getsignal(signal.SIGINT), []

    def interrupted(self: ImageClassifier, *args: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 5, 6):
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(ImageClassifier, "training_step", interrupted)
    words = (*TINY, f"hydra.run.dir={tmp_path / 'run'}")
    with pytest.raises(KeyboardInterrupt, match=f"interrupted by SIGINT; .*{tmp_path / 'run'}"):
        imgclf.train(*words, data_dir=colours)
    assert len(calls) == 2 and signal.getsignal(signal.SIGINT) is handler
    stopped = imgclf.open_run(tmp_path / "run")
    assert repr(stopped).endswith("not finished")
    with pytest.raises(imgclf.RunError, match=r"the run isn't finished; imgclf\.train\(resume='.*'\) continues it$"):
        _ = stopped.metrics
    with pytest.raises(KeyboardInterrupt):
        imgclf.train(resume=tmp_path / "run")
    assert len(calls) == 5, "the second signal didn't wait for the end of the step"


def test_train_works_outside_the_main_thread(colours: Path, tmp_path: Path) -> None:
    words = (*TINY, f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    runs: list[imgclf.Run] = []
    thread = threading.Thread(target=lambda: runs.append(imgclf.train(*words, data_dir=colours)))
    thread.start()
    thread.join()
    assert runs[0].metrics["test"]["count"] == 15


def test_damaged_or_foreign_folder_raises_one_line(trained: imgclf.Run, tmp_path: Path) -> None:
    with pytest.raises(imgclf.RunError, match="holds no run; pass a run's folder, one of its checkpoints, or latest"):
        imgclf.open_run(tmp_path)
    with pytest.raises(imgclf.CheckpointError, match="no such file or folder"):
        imgclf.open_run(tmp_path / "nothing")
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    for name in ("predictions_test.csv", "confusion_test.csv", "metrics.json", "config.yaml"):
        (copy / name).write_text("file,true,predicted,red\nx.png,green\n{")
    run = imgclf.open_run(copy)
    for read in (run.top_losses, run.plot_confusion, lambda: run.metrics, lambda: run.config):
        with pytest.raises(imgclf.ImgclfError, match=r"can't be read") as raised:
            read()
        assert "\n" not in str(raised.value)
    (copy / "history.csv").unlink()
    with pytest.raises(imgclf.RunError, match=r"history\.csv: no such file; it has been deleted"):
        run.plot_curves()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
def test_request_to_end_the_process_saves_the_run_and_is_passed_on(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, received = ImageClassifier.training_step, []

    def ended(self: ImageClassifier, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(ImageClassifier, "training_step", ended)
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.raises(KeyboardInterrupt, match="interrupted by SIGTERM"):
            imgclf.train(*TINY, f"hydra.run.dir={tmp_path / 'run'}", data_dir=colours)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert capsys.readouterr().err.startswith("imgclf: interrupted by SIGTERM; ")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
