"""Runs on data with files that can't be read: the error that ends them, and `check=true` and `check=exclude`."""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from support.fabricate import composed

from imgclf.cli.compose import CONF
from imgclf.cli.data_words import check_commands
from imgclf.errors import DataError, ImageError
from imgclf.files.trial_record import TrialRecord, write_record
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.inference.run import open_run
from imgclf.quality import check_before_training
from imgclf.quality.scan import scan
from imgclf.sweeps.comparison import compare_runs
from imgclf.training.build import data_of
from imgclf.training.run import train

Run = Callable[..., Path]
BAD = ("train/red/003.png", "test/blue/001.png")


@pytest.fixture(scope="module")
def damaged(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of which one training and one test image are truncated."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(colours, folder)
    for name in BAD:
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def excluding(damaged: Path, run_tiny: Run) -> Path:
    """Folder of a run that leaves these files out, and another that the user has chosen."""
    own = damaged.parent / "own.json"
    report = {"format": "imgclf check 2", "name": "folders", "classes": ["blue", "green", "red"]}
    own.write_text(json.dumps({**report, "exclude": [{"split": "train", "path": "train/red/000.png"}]}))
    folder = run_tiny(f"data_dir='{damaged}'", "check=exclude", f"dataset.exclude='{own}'", "trainer.max_epochs=1")
    own.unlink()  # the run has what it needs of it
    return folder


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_an_unreadable_image_ends_the_run_with_its_name_and_the_ways_out(
    damaged: Path, run_tiny: Run, cache: str
) -> None:
    with pytest.raises(ImageError) as raised:
        run_tiny(f"data_dir='{damaged}'", "+dataset.split_seed=1", f"cache={cache}")
    text = str(raised.value)
    assert text.startswith("train/red/003.png: ") and "\n" not in text
    command = (
        f"imgclf check dataset=folders dataset.split_seed=1 data_dir={damaged} hydra.run.dir=outputs/check_folders"
    )
    exclude = "dataset.exclude=outputs/check_folders/check.json"
    assert text.endswith(f"; run `{command}` and train with `{exclude}`, or pass check=exclude")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["experiment=cards_best"], ["dataset=cards"]),
        (["experiment=sports_best", "seed=3", "dataset.fraction=0.5"], None),
        (["dataset=folders", "dataset.name=my flowers", "~dataset.val_fraction", "dataset.val_fraction=0.3"], None),
        (["dataset=list", "dataset.name=mine", "dataset.classes=[N,'a b']", "++dataset.exclude=x.json"], None),
        (
            [
                "dataset=flat",
                "dataset.name=odd",
                "dataset.splits.train={kind:flat,names:['a b'],pattern:'(?P<label>x)'}",
            ],
            None,
        ),
        (["--config-dir", "CONF", "dataset=mine"], ["--config-dir", "CONF", "dataset=mine"]),
    ],
)
def test_the_command_of_the_message_checks_the_data_that_were_trained_on(
    words: list[str], expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    (conf / "dataset").mkdir(parents=True)
    splits = "{train: {kind: flat, names: [images], pattern: '(?P<label>[a-z]+)_'}, val: null, test: null}"
    (conf / "dataset" / "mine.yaml").write_text(f"defaults: [base]\nname: mushrooms\nsplits: {splits}\n")

    def compose(words: list[str], command: str) -> Any:
        flags = {"--config-dir": f"hydra.searchpath=[{conf.as_uri()}]", str(conf): None}
        return composed(*filter(None, (flags.get(word, word) for word in words)), config=command)

    words = [str(conf) if word == "CONF" else word for word in words if not word.startswith("~")]
    monkeypatch.setattr("sys.argv", ["imgclf", *words])
    trained = compose([*words, f"data_dir='{tmp_path}/my data'"], "train")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # as in a command's task
        command, exclude = check_commands(trained.dataset, trained.data_dir, trained.seed)
    imgclf, check, *typed, place = shlex.split(command)
    assert (imgclf, check) == ("imgclf", "check") and exclude == f"dataset.exclude={place.partition('=')[2]}/check.json"
    if expected:
        assert typed == [str(conf) if word == "CONF" else word for word in expected] + [
            f"data_dir='{tmp_path}/my data'"
        ]
    checked = compose(typed, "check")
    for name in ("name", "splits", "classes", "holdout", "val_fraction", "test_fraction", "split_seed", "exclude"):
        assert getattr(checked.dataset, name) == getattr(trained.dataset, name)
    assert checked.data_dir == trained.data_dir
    assert trained.dataset.fraction == checked.dataset.fraction == 1 or checked.seed == trained.seed


def test_check_true_stops_before_training_and_names_check_exclude(damaged: Path, run_tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^check: 2 files can't be read: .*; pass check=exclude") as raised:
        run_tiny(f"data_dir='{damaged}'", "check=true", folder=tmp_path / "run")
    assert all(name in str(raised.value) for name in BAD)
    assert {path.name for path in (tmp_path / "run").glob("[!.]*")} == {"check.json", "check.html"}, (
        "no run, to be repeated"
    )


def test_check_true_only_warns_of_what_can_be_trained_on(
    colours: Path, run_tiny: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_tiny(f"data_dir='{colours}'", "check=true", "trainer.max_epochs=1")
    printed = capsys.readouterr().out
    found = len(json.loads((folder / "check.json").read_text())["exclude"])
    assert "check: duplicates in several splits" in printed and f"{found} of these would be left out by" in printed
    assert found > 0 and json.loads((folder / "metrics.json").read_text())["train"]["count"] == 36


def test_check_exclude_trains_without_the_files_and_says_how_many(
    damaged: Path, run_tiny: Run, excluding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((excluding / "metrics.json").read_text())
    assert [metrics[split]["count"] for split in ("train", "val", "test")] == [34, 12, 14]
    assert {"check.json", "check.html"} <= {path.name for path in excluding.iterdir()}
    settings = yaml.safe_load((excluding / "config.yaml").read_text())
    left_out = ["test:test/blue/001.png", "train:train/red/000.png", "train:train/red/003.png"]
    assert settings["dataset"]["exclude"] == left_out, "no path that may move"
    run_tiny(f"data_dir='{damaged}'", "check=exclude", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert f"check: 2 files can't be read and are left out: {', '.join(BAD)}\n" in capsys.readouterr().out


def test_resume_and_evaluate_use_the_same_files_without_another_check_or_its_file(
    excluding: Path, run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgclf.quality.run.scan", lambda *_: pytest.fail("checked again"))
    folder, alone = tmp_path / "moved", tmp_path / "alone.ckpt"
    shutil.copytree(excluding, folder)
    (folder / "check.json").unlink()
    shutil.copy(folder / "checkpoints" / "best.ckpt", alone)
    words = [f"resume='{folder}'", "trainer.max_epochs=2"]
    train(composed(*words), folder, words)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [metrics[split]["count"] for split in ("train", "val", "test")] == [34, 12, 14]
    assert [len(open_run(folder).data.samples[split]) for split in ("train", "val", "test")] == [34, 12, 14]
    for name, checkpoint in {"folder": folder, "file": alone}.items():
        evaluate_checkpoint(composed(f"checkpoint='{checkpoint}'", "report=false", config="evaluate"), tmp_path / name)
        assert json.loads((tmp_path / name / "metrics.json").read_text())["test"]["count"] == 14


def test_runs_without_the_same_files_do_not_differ_in_them(excluding: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in ("config.yaml", "metrics.json", "history.csv", "predictions_test.csv"):
        shutil.copy(excluding / name, tmp_path / "other" / name)
    config = tmp_path / "other" / "config.yaml"
    (comparison,) = compare_runs([excluding, tmp_path / "other"])
    assert "dataset.exclude" not in comparison.keys
    config.write_text(config.read_text().replace("  - train:train/red/000.png\n", ""))
    (comparison,) = compare_runs([excluding, tmp_path / "other"])
    values = next(row[1:] for row in comparison.settings if row[0] == "dataset.exclude")
    assert sorted(values) == ["2 images", "3 images"]


def test_trials_of_a_sweep_check_their_data_once_and_again_after_a_change(
    damaged: Path, run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scanned = []

    def counted(*args: Any) -> Any:
        scanned.append(args)
        return scan(*args)

    monkeypatch.setattr("imgclf.quality.run.scan", counted)
    data = tmp_path / "data"
    shutil.copytree(damaged, data)
    whole = (data / "train" / "red" / "004.png").read_bytes()
    words = (f"data_dir='{data}'", "check=exclude", "trainer.max_epochs=1", "trainer.limit_train_batches=1")

    def trial(number: int) -> int:
        folder = tmp_path / "sweep" / str(number)
        write_record(folder, TrialRecord([], {}))
        run_tiny(*words, f"seed={number}", folder=folder)
        assert len(yaml.safe_load((folder / "config.yaml").read_text())["dataset"]["exclude"]) == 2
        return len(scanned)

    assert [trial(0), trial(1)] == [1, 1]
    assert capsys.readouterr().out.count("check: 2 files can't be read and are left out") == 2
    (data / "train" / "red" / "003.png").write_bytes(whole)
    (data / "train" / "red" / "004.png").write_bytes(whole[:200])
    assert trial(2) == 2


def test_processes_of_a_run_check_once_and_go_on_where_the_first_fails(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def scan_of(*args: Any) -> Any:
        calls.append("scan")
        if len(calls) == 1:
            raise DataError("the disk was full")
        time.sleep(0.3)  # the others have come by then
        return scan(*args)

    monkeypatch.setattr("imgclf.quality.run.scan", scan_of)
    config = composed("dataset=folders", f"data_dir='{damaged}'")
    with ThreadPoolExecutor() as pool:
        checks = [
            pool.submit(check_before_training, data_of(config), tmp_path / "run", True, rank == 0) for rank in range(3)
        ]
        results = [check.exception() or check.result() for check in checks]
    assert sorted(map(str, results)) == ["['train:train/red/003.png', 'test:test/blue/001.png']"] * 2 + [
        "the disk was full"
    ]
    assert len(calls) == 2 and capsys.readouterr().out.count("left out:") <= 1


def test_check_that_a_failed_disk_spoilt_is_made_again(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(composed("dataset=folders", f"data_dir='{colours}'"))

    def failing(item: str, **_: Any) -> Any:
        raise ImageError(f"{item}: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("imgclf.quality.scan.decode", failing)
        patch.setattr("imgclf.quality.quick.SHOWN", ((20, 0, 96),))
        assert len(check_before_training(data, tmp_path / "run", True) or []) == 63
    assert check_before_training(data, tmp_path / "run", True) is None
