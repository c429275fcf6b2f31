"""`imgclf check`: every planted problem is found and named, no file is changed, and training can exclude what it names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.checks import CLASSES, check, paths, save, tree
from support.fabricate import as_jpeg, composed, resized, structured

from imgclf.errors import ConfigError, DataError
from imgclf.quality import check_before_training, quick_notes
from imgclf.training.build import data_of


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return tree(tmp_path / "data")


def test_clean_data_has_no_findings(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = check(clean, tmp_path / "out")
    assert (code, report["clean"], report["findings"], report["near"], report["exclude"]) == (0, True, [], [], [])
    assert report["counts"]["train"] == {"<b>x": 12, "cat": 12, "dog": 12}
    assert report["files"] == {
        "images": 48,
        "readable": 48,
        "formats": {"PNG": 48},
        "modes": {"RGB": 48},
        "different_sizes": 1,
        "sizes": [{"width": 40, "height": 40, "images": 48}],
    }
    assert report["notes"] == [] and report["expected"] is None
    assert "\nNo problems found in 48 images\n" in capsys.readouterr().out


def test_every_unreadable_file_is_listed(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (clean / "train" / "cat" / f"bad{number}.jpg").write_bytes(b"" if number else b"\xff\xd8\xff\xe0 cut")
    (clean / "test" / "dog" / "bad.png").write_bytes((clean / "test" / "dog" / "00.png").read_bytes()[:200])
    code, report = check(clean, tmp_path / "out")
    assert code == 1 and len(paths(report, "unreadable")) == 31
    assert {entry["path"] for entry in report["exclude"]} == {path for (path,) in paths(report, "unreadable")}
    messages = [group["message"] for group in report["findings"][0]["groups"]]
    assert all(messages) and not any(str(clean) in message for message in messages)
    printed = capsys.readouterr().out
    assert (
        "\n  train/cat/bad0.jpg: " in printed and "and 11 more" in printed and "\n31 files can't be read\n" in printed
    )


def test_each_kind_of_duplicate_is_named_and_its_copies_excluded(clean: Path, tmp_path: Path) -> None:
    train = clean / "train"
    shutil.copy(train / "cat" / "00.png", train / "dog" / "labels.png")  # two labels
    shutil.copy(clean / "valid" / "cat" / "00.png", train / "cat" / "leak.png")
    shutil.copy(clean / "valid" / "cat" / "01.png", clean / "test" / "cat" / "leak.png")  # nothing in train to exclude
    for name in ("repeat1.png", "repeat2.png"):
        shutil.copy(train / "dog" / "05.png", train / "dog" / name)
    pixels = np.asarray(Image.open(clean / "test" / "dog" / "01.png"))
    save(as_jpeg(pixels, 75), train / "dog" / "near_leak.png")
    other = structured(77, 40)
    save(other, train / "cat" / "near_label.png")
    save(resized(other, 30, 30), train / "dog" / "near_label.png")
    save(resized(structured(78, 40), 64, 64), train / "dog" / "near1.png")
    save(structured(78, 40), train / "dog" / "near2.png")
    code, report = check(clean, tmp_path / "out")
    assert code == 1
    assert paths(report, "labels") == [["train/cat/00.png", "train/dog/labels.png"]]
    leaks = [["train/cat/leak.png", "valid/cat/00.png"], ["valid/cat/01.png", "test/cat/leak.png"]]
    assert paths(report, "leaks") == leaks
    assert paths(report, "repeats") == [["train/dog/05.png", "train/dog/repeat1.png", "train/dog/repeat2.png"]]
    assert paths(report, "near_leaks") == [["train/dog/near_leak.png", "test/dog/01.png"]]
    assert paths(report, "near_labels") == [["train/cat/near_label.png", "train/dog/near_label.png"]]
    assert paths(report, "near") == [["train/dog/near1.png", "train/dog/near2.png"]]
    assert [(entry["path"], entry["why"]) for entry in report["exclude"]] == [
        ("train/cat/00.png", "labels"),
        ("train/cat/leak.png", "leaks"),
        ("train/dog/labels.png", "labels"),
        ("train/dog/near_leak.png", "near_leaks"),
        ("train/dog/repeat1.png", "repeats"),
        ("train/dog/repeat2.png", "repeats"),
    ]
    excluded = {"labels": 2, "leaks": 1, "repeats": 2, "near_leaks": 1, "near_labels": 0}
    assert {finding["kind"]: finding["excluded"] for finding in report["findings"]} == excluded
    assert all(finding["action"] and finding["title"] for finding in report["findings"])


def test_exclude_drops_and_counts_the_named_images_and_leaves_clean_data(clean: Path, tmp_path: Path) -> None:
    shutil.copy(clean / "train" / "cat" / "00.png", clean / "train" / "dog" / "twin.png")
    (clean / "valid" / "cat" / "bad.jpg").write_bytes(b"")
    code, _ = check(clean, tmp_path / "out")
    moved = clean.rename(tmp_path / "elsewhere")
    exclude = f"dataset.exclude='{tmp_path / 'out' / 'check.json'}'"
    data = data_of(composed("dataset=folders", f"data_dir='{moved}'", exclude))
    assert code == 1 and [len(data.samples[split]) for split in ("train", "val", "test")] == [35, 6, 6]
    names = {Path(item).name for samples in data.samples.values() for item in samples.items}
    assert not names & {"twin.png", "bad.jpg"}
    assert str(moved / "train" / "cat" / "00.png") not in data.samples["train"].items
    assert f"excluded 3 images named by {tmp_path / 'out' / 'check.json'}" in data.notes
    assert check(moved, tmp_path / "again", exclude)[0] == 0


def test_exclude_drops_an_image_that_moved_to_another_split(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for target, name in enumerate(CLASSES):
        for number in range(20):
            save(structured(100 * target + number, 24), root / name / f"{number:02}.png")
    for name in CLASSES:
        for number in range(6):
            shutil.copy(root / name / f"{number:02}.png", root / name / f"copy{number}.png")
    code, report = check(root, tmp_path / "out", "dataset.split_seed=1")
    assert code == 1 and len(paths(report, "leaks")) > 3
    exclude = f"dataset.exclude='{tmp_path / 'out' / 'check.json'}'"
    data = data_of(composed("dataset=folders", f"data_dir='{root}'", "dataset.split_seed=2", exclude))
    left = [Path(item) for samples in data.samples.values() for item in samples.items]
    named = {str(root / entry["path"]) for entry in report["exclude"]}
    assert len(left) == 78 - len(named) and not named & {str(path) for path in left}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("{", "is no check.json"),
        ("[1]", "is no check.json"),
        ('{"format": "x"}', "is no check"),
        ({"format": "imgclf check 1"}, "is no check.json (format 'imgclf check 1')"),
        ({"name": "mushrooms"}, "is a check of mushrooms"),
        ({"classes": ["a", "b"]}, "with a, b, the data"),
        ({"exclude": [{"split": "train"}]}, "is no check.json"),
    ],
    ids=str,
)
def test_unusable_exclude_raises_config_error_of_one_line(
    clean: Path, tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "check.json"
    good = {"format": "imgclf check 2", "name": "folders", "classes": list(CLASSES), "exclude": []}
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps({**good, **content}))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        data_of(composed("dataset=folders", f"data_dir='{clean}'", f"dataset.exclude='{path}'"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_class_without_images_after_exclusion_raises_data_error(clean: Path, tmp_path: Path) -> None:
    entries = [{"split": "train", "path": f"train/cat/{number:02}.png"} for number in range(12)]
    report = {"format": "imgclf check 2", "name": "folders", "classes": list(CLASSES), "exclude": entries}
    (tmp_path / "check.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="no training images are left of cat"):
        data_of(composed("dataset=folders", f"data_dir='{clean}'", f"dataset.exclude='{tmp_path / 'check.json'}'"))


def test_image_listed_twice_is_dropped_once(tmp_path: Path) -> None:
    for number in range(8):
        save(structured(number, 24), tmp_path / "data" / f"{number}.png")
    lines = [f"{number}.png,{'ab'[number % 2]}" for number in range(6)]
    (tmp_path / "data" / "train.csv").write_text("\n".join([*lines, "2.png,a"]))
    (tmp_path / "data" / "test.csv").write_text("6.png,a\n7.png,b\n3.png,b\n")
    layout = [
        "dataset.splits.train.files=[train.csv]",
        "dataset.splits.val=null",
        "dataset.val_fraction=0",
        "dataset.splits.test={kind:list,files:[test.csv]}",
    ]
    code, report = check(tmp_path / "data", tmp_path / "out", "dataset=list", *layout)
    assert code == 1 and paths(report, "leaks") == [["3.png", "3.png"]] and paths(report, "repeats") == [["2.png"] * 2]
    exclude = f"dataset.exclude='{tmp_path / 'out' / 'check.json'}'"
    data = data_of(composed("dataset=list", *layout, exclude, f"data_dir='{tmp_path / 'data'}'"))
    assert [Path(item).name for item in data.samples["train"].items] == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert [Path(item).name for item in data.samples["test"].items] == ["6.png", "7.png", "3.png"]


def test_unusual_images_are_notes_and_stray_files_are_findings(clean: Path, tmp_path: Path) -> None:
    train = clean / "train"
    save(structured(1, 90), train / "cat" / "large.png")
    save(np.dstack([structured(2, 40), np.full((40, 40), 128, np.uint8)]), train / "cat" / "clear.png")
    save(structured(3, 40), train / "cat" / "truly.bmp").rename(train / "cat" / "called.png")
    save(np.full((40, 40, 3), 7, np.uint8), train / "cat" / "blank.png")
    code, report = check(clean, tmp_path / "out")
    notes = {note["kind"]: note for note in report["notes"]}
    assert code == 0 and sorted(notes) == ["blank", "decoding", "mode", "size", "suffix"]
    assert notes["size"]["files"] == ["train/cat/large.png (90 x 90)"]
    assert notes["mode"]["files"] == ["train/cat/clear.png (RGBA)"]
    assert notes["suffix"]["files"] == ["train/cat/called.png"] and notes["blank"]["files"] == ["train/cat/blank.png"]
    (train / "dog" / "notes.txt").write_text("hello")
    (train / "dog" / "Thumbs.db").write_text("litter")
    save(structured(4, 40), train / "dog" / "more" / "1.png")
    code, report = check(clean, tmp_path / "again")
    assert code == 1 and paths(report, "stray") == [["train/dog/more"], ["train/dog/notes.txt"]]
    assert report["exclude"] == []


@pytest.mark.parametrize("quick", [False, True])
def test_an_empty_class_is_a_finding_beside_all_others(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: bool
) -> None:
    (clean / "train" / "emu").mkdir()
    (clean / "train" / "yak" / "old").mkdir(parents=True)
    shutil.copy(clean / "train" / "cat" / "00.png", clean / "train" / "yak" / "old")
    (clean / "train" / "cat" / "bad.jpg").write_bytes(b"")
    shutil.copy(clean / "valid" / "cat" / "00.png", clean / "train" / "cat" / "leak.png")
    code, report = check(clean, tmp_path / "out", f"quick={quick}".lower())
    assert code == 1 and paths(report, "empty") == [["train/emu"], ["train/yak"]]
    assert paths(report, "unreadable") == [["train/cat/bad.jpg"]] and len(paths(report, "leaks")) == 1
    messages = [
        group["message"] for finding in report["findings"] for group in finding["groups"] if finding["kind"] == "empty"
    ]
    nested = "no images (its images are in old below it: classes are read one level deep)"
    assert messages == ["no images", nested] and report["counts"]["train"]["emu"] == 0
    printed = capsys.readouterr().out
    assert "\n  train/emu: no images\n" in printed and "2 classes without training images" in printed
    assert "note: not used: 1 image in folders inside a class folder (train/yak/old; " in printed
    assert "train/emu" in (tmp_path / "out" / "check.html").read_text()
    assert [entry["path"] for entry in report["exclude"]] == ["train/cat/bad.jpg", "train/cat/leak.png"]
    exclude = f"dataset.exclude='{tmp_path / 'out' / 'check.json'}'"
    code, report = check(clean, tmp_path / "again", exclude)
    assert code == 1 and [finding["kind"] for finding in report["findings"]] == ["empty", "stray"]


def test_quick_notes_name_small_and_unequal_classes_and_empty_files(clean: Path) -> None:
    for number in range(10):
        (clean / "train" / "dog" / f"{number:02}.png").unlink()
    (clean / "train" / "cat" / "11.png").write_bytes(b"")
    notes = quick_notes(data_of(composed("dataset=folders", f"data_dir='{clean}'")))
    assert len(notes) == 4
    assert notes[0] == "1 of 3 classes have fewer than 10 training images: dog (2)"
    assert notes[1].startswith("unequal classes: <b>x has 12 training images, dog 2")
    assert notes[2].startswith("1 files are empty or missing: ") and "cat/11.png" in notes[2]
    assert notes[3].startswith("38 image files, ")


def test_200_equal_blank_images_are_one_group(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", train=3)
    for number in range(200):
        save(np.full((30, 30, 3), 255, np.uint8), root / "train" / "cat" / f"blank{number:03}.png")
    save(np.full((50, 20, 3), 255, np.uint8), root / "train" / "cat" / "other_size.png")
    code, report = check(root, tmp_path / "out")
    assert code == 1 and [len(group) for group in paths(report, "repeats")] == [200]
    assert len(report["exclude"]) == 199 and [len(group) for group in paths(report, "near")] == [2]


def test_check_changes_no_file_of_the_data(clean: Path, tmp_path: Path) -> None:
    (clean / "train" / "cat" / "bad.png").write_bytes(b"bad")

    def state() -> dict[Path, tuple[int, bytes]]:
        files = [clean, *clean.rglob("*")]
        return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in files}

    before = state()
    check(clean, tmp_path / "out")
    assert state() == before


def test_file_name_that_is_not_valid_text_is_reported(clean: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        save(structured(9, 40), clean / "train" / "cat" / "x.png").rename(clean / "train" / "cat" / odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    shutil.copy(clean / "train" / "cat" / odd, clean / "train" / "cat" / "zz.png")
    _, report = check(clean, tmp_path / "out")
    assert sorted(paths(report, "repeats")[0]) == sorted([f"train/cat/{odd}", "train/cat/zz.png"])


def test_check_before_training_prints_findings_and_the_ready_override(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clean / "valid" / "cat" / "00.png", clean / "train" / "cat" / "leak.png")
    check_before_training(data_of(composed("dataset=folders", f"data_dir='{clean}'")), tmp_path / "run")
    assert capsys.readouterr().out.splitlines() == [
        "check: duplicates in several splits (2 images)",
        "check: 1 of these would be left out by",
        f"  dataset.exclude={tmp_path / 'run' / 'check.json'}",
    ]
    assert {path.name for path in (tmp_path / "run").glob("[!.]*")} == {"check.json", "check.html"}


def test_command_exits_with_1_for_findings_and_2_for_errors(clean: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "imgclf.check", "dataset=folders", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    (clean / "train" / "cat" / "bad.jpg").write_bytes(b"")
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    findings = run("--quick", f"data_dir={clean}", "hydra.run.dir=here", "--config-dir", "conf")
    assert (findings.returncode, findings.stderr) == (1, "") and (tmp_path / "here" / "check.html").is_file()
    page, exclude = findings.stdout.splitlines()[-2:]
    assert page == f"page     {(tmp_path / 'here' / 'check.html').as_uri()}"
    command = f"imgclf train --config-dir conf dataset=folders data_dir={clean} dataset.exclude=here/check.json"
    assert exclude == f"exclude  {command}" and "quick check; not checked: " in findings.stdout
    failed = run("workers.many=1")  # refused before torch is loaded
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and failed.stdout == ""
    with pytest.raises(DataError, match="/nowhere, which doesn't exist") as caught:
        check(Path("/nowhere"), tmp_path / "out")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="workers=-1"):
        check(clean, tmp_path / "out", "workers=-1")


def test_real_cards_have_one_card_with_two_labels(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "cards"
    for split in ("train", "valid"):
        for name in ("four of clubs", "four of spades", "ace of hearts"):
            shutil.copytree(shared / "data" / "cards" / split / name, root / split / name)
    code, report = check(root, tmp_path / "out", "dataset=cards")
    assert code == 1
    assert paths(report, "labels") == [["train/four of clubs/127.jpg", "train/four of spades/120.jpg"]]
    assert paths(report, "near") == [["train/ace of hearts/004.jpg", "train/ace of hearts/067.jpg"]]
