"""`imgclf check --quick`: what it finds without decoding, what it says that it left out, and the samples of each class."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.checks import CLASSES, check, paths, save, tree
from support.fabricate import composed, structured

from imgclf.data.datamodule import ImageDataModule
from imgclf.quality import check_data
from imgclf.quality.quick import draw_samples, quick_scan
from imgclf.training.build import data_of


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return tree(tmp_path / "data")


def data_in(root: Path, *overrides: str) -> ImageDataModule:
    data: ImageDataModule = data_of(composed("dataset=folders", f"data_dir='{root}'", *overrides))
    data.setup()
    return data


def test_quick_check_decodes_the_samples_alone(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded: list[str] = []
    image = ImageDataModule.image

    def count(data: ImageDataModule, split: str, index: int) -> np.ndarray:
        decoded.append(data.samples[split].items[index])
        return image(data, split, index)

    monkeypatch.setattr(ImageDataModule, "image", count)
    monkeypatch.setattr("imgclf.quality.scan.decode", lambda item: pytest.fail(f"decoded {item}"))
    code, _ = check(clean, tmp_path / "out", "quick=true")
    assert code == 0 and len(decoded) == len(set(decoded)) == 3 * 8
    printed = capsys.readouterr().out
    assert "No problems found in 48 images by a quick check" in printed and "not checked: " in printed


def test_quick_check_is_no_proof_of_clean_data(clean: Path, tmp_path: Path) -> None:
    _, report = check(clean, tmp_path / "out", "quick=true")
    assert report["quick"] is True and report["clean"] is None and len(report["not_checked"]) >= 3
    _, report = check(clean, tmp_path / "full")
    assert report["quick"] is False and report["clean"] is True and report["not_checked"] == []


def test_quick_check_finds_bad_starts_and_equal_files(clean: Path, tmp_path: Path) -> None:
    train = clean / "train"
    (train / "cat" / "empty.jpg").write_bytes(b"")
    (train / "cat" / "page.jpg").write_text("<!DOCTYPE html><p>not found")
    save(structured(3, 40), train / "cat" / "truly.bmp").rename(train / "cat" / "called.png")
    (train / "dog" / "notes.txt").write_text("hello")
    shutil.copy(clean / "valid" / "cat" / "00.png", train / "cat" / "leak.png")
    shutil.copy(train / "cat" / "00.png", train / "dog" / "label.png")
    start = (train / "dog" / "00.png").read_bytes().ljust(9000, b"a")
    for number in range(2):  # equal in size and in the first bytes, and yet different
        (train / "dog" / f"alike{number}.png").write_bytes(start[:-1] + bytes([number]))
    code, report = check(clean, tmp_path / "out", "quick=true")
    assert code == 1 and report["clean"] is False
    assert paths(report, "unreadable") == [["train/cat/empty.jpg"], ["train/cat/page.jpg"]]
    assert paths(report, "leaks") == [["train/cat/leak.png", "valid/cat/00.png"]]
    assert paths(report, "labels") == [["train/cat/00.png", "train/dog/label.png"]]
    assert paths(report, "stray") == [["train/dog/notes.txt"]] and paths(report, "repeats") == []
    assert [note["files"] for note in report["notes"] if "files" in note] == [["train/cat/called.png"]]
    assert report["notes"][0]["text"] == "not used: 1 other file (train/dog/notes.txt)"
    left = data_in(clean, f"dataset.exclude='{tmp_path / 'out' / 'check.json'}'").samples["train"]
    assert len(left) == 43 - 5 and not any("empty" in item or "leak" in item for item in left.items)


def test_the_full_check_of_what_a_quick_one_excludes_excludes_both(clean: Path, tmp_path: Path) -> None:
    (clean / "train" / "cat" / "empty.jpg").write_bytes(b"")
    check(clean, tmp_path / "quick", "quick=true")
    (clean / "test" / "dog" / "cut.png").write_bytes((clean / "test" / "dog" / "00.png").read_bytes()[:-40])
    exclude = f"dataset.exclude='{tmp_path / 'quick' / 'check.json'}'"
    code, report = check(clean, tmp_path / "full", exclude)
    assert code == 1 and paths(report, "unreadable") == [["test/dog/cut.png"]]
    assert [entry["path"] for entry in report["exclude"]] == ["test/dog/cut.png", "train/cat/empty.jpg"]
    assert check(clean, tmp_path / "again", exclude.replace("quick", "full"))[0] == 0


def test_samples_skip_unreadable_images_and_name_them(tmp_path: Path) -> None:
    root = tree(tmp_path / "data")
    whole = (root / "train" / "cat" / "00.png").read_bytes()
    for number in range(12, 30):
        (root / "train" / "cat" / f"{number}.png").write_bytes(whole[:-50])
    data = data_in(root)
    samples, scan = draw_samples(data, quick_scan(list(data.samples.values())))
    assert [len(row) for row in samples.rows] == [8, 8, 8]
    assert all(0 <= int(Path(path).stem) < 12 for path, _ in samples.rows[CLASSES.index("cat")])
    assert 0 < (~scan.readable).sum() <= 18, "the bad files that were met are named"
    again, _ = draw_samples(data, scan)
    assert [[path for path, _ in row] for row in again.rows] == [[path for path, _ in row] for row in samples.rows]
    other = data_in(root, "seed=5")
    drawn, _ = draw_samples(other, quick_scan(list(other.samples.values())))
    assert [path for path, _ in drawn.rows[0]] != [path for path, _ in samples.rows[0]]


def test_samples_of_a_class_without_readable_images_are_none(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", train=3)
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    data = data_in(root)
    samples, _ = draw_samples(data, quick_scan(list(data.samples.values())))
    assert [len(row) for row in samples.rows] == [3, 3, 0]
    check(root, tmp_path / "out", "quick=true")
    assert "no readable image" in (tmp_path / "out" / "check.html").read_text()


def test_rgba_samples_are_blended(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", train=2)
    for number in range(2):
        clear = np.dstack([structured(number, 40), np.zeros((40, 40), np.uint8)])
        save(clear, root / "train" / "cat" / f"{number:02}.png")
    data = data_in(root)
    samples, _ = draw_samples(data, quick_scan(list(data.samples.values())))
    assert all((pixels == 255).all() and pixels.shape == (40, 40, 3) for _, pixels in samples.rows[1])


def test_the_last_lines_name_the_page_and_a_command_that_excludes(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clean / "train" / "cat" / "bad.jpg").write_bytes(b"")
    folder = tmp_path / "a folder, with 'quotes'"
    words = ["dataset=folders", f"data_dir={clean}"]
    assert check_data(composed(*words, "quick=true", config="check"), folder, words) == 1
    page, exclude = capsys.readouterr().out.splitlines()[-2:]
    assert page == f"page     {(folder / 'check.html').as_uri()}"
    command = exclude.removeprefix("exclude  ")
    assert command.startswith("imgclf train dataset=folders ")
    assert len(data_of(composed(*shlex.split(command)[2:])).samples["train"]) == 36
    text = (folder / "check.html").read_text()
    assert re.search(r'<pre class="copy">imgclf train dataset=folders ', text) and "1 image is left out" in text


def test_a_check_without_findings_offers_nothing_to_exclude(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(clean, tmp_path / "out", "quick=true")
    printed = capsys.readouterr().out
    assert (
        printed.splitlines()[-1] == f"page  {(tmp_path / 'out' / 'check.html').as_uri()}" and "exclude" not in printed
    )
