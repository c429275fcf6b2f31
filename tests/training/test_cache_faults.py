"""Cache files that other programs clear, delete, truncate or overwrite while a run uses them: its result stays the same."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.compare import first_difference
from support.run_files import read_json, read_rows, without_seconds

from imgclf.cache import main as cache_command
from imgclf.data.loader import Loader
from imgclf.files.atomic import cache_folder
from imgclf.models.checkpoint import read_checkpoint

Run = Callable[..., Path]
KINDS = {"pixels": ("model.head.dropout=0.3",), "features": ("model.freeze=all", "model.head.dropout=0.3")}
# The moments at which a cache file is damaged: when a split's batches are asked for the n-th time, or a batch of it has come.
MOMENTS = {
    "before the first epoch": ("train", 1, 0),
    "within the first epoch": ("train", 1, 2),
    "before the first validation": ("val", 1, 0),
    "within the first validation": ("val", 1, 1),
    "before the second epoch": ("train", 2, 0),
    "within the second epoch": ("train", 2, 3),
    "before the final evaluation": ("val", 3, 0),
    "within the final evaluation": ("val", 3, 1),
}


def clear() -> None:
    assert cache_command(["clear"]) == 0


def delete_all() -> None:
    shutil.rmtree(cache_folder())


def on_files(pattern: str, change: Callable[[Path], object]) -> Callable[[], None]:
    """Return a function that changes each file of the cache that has the pattern."""

    def disturb() -> None:
        files = list(cache_folder().glob(f"*/*/{pattern}"))
        assert files
        for path in files:
            change(path)

    return disturb


def write_in_place(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def flip_bits(path: Path) -> None:
    """Flip a bit in each 100 bytes, in place."""
    data = bytearray(path.read_bytes())
    data[7::100] = bytes(value ^ 4 for value in data[7::100])
    write_in_place(path, data)


def overwrite(path: Path) -> None:
    """Write other rows, in place: those of the file in reverse order."""
    write_in_place(path, path.read_bytes()[::-1])


def replace(path: Path) -> None:
    """Put another file of the same size under the name."""
    other = path.with_suffix(".new")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


FAULTS: dict[str, Callable[[], None]] = {
    "cleared": clear,
    "all deleted": delete_all,
    "rows deleted": on_files("rows-*.bin", Path.unlink),
    "index deleted": on_files("index.bin", Path.unlink),
    "rows emptied": on_files("rows-*.bin", lambda path: os.truncate(path, 0)),
    "rows cut in half": on_files("rows-*.bin", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "rows extended": on_files("rows-*.bin", lambda path: os.truncate(path, path.stat().st_size + 999)),
    "rows with flipped bits": on_files("rows-*.bin", flip_bits),
    "rows overwritten": on_files("rows-*.bin", overwrite),
    "rows replaced": on_files("rows-*.bin", replace),
    "index emptied": on_files("index.bin", lambda path: os.truncate(path, 0)),
    "index with flipped bits": on_files("index.bin", flip_bits),
    "about.json deleted": on_files("about.json", Path.unlink),
}
# What is cached, the number of workers, whether an earlier run has filled the cache, what happens, and when.
Case = tuple[str, int, bool, str, str]
EACH_RUN: list[Case] = [
    ("pixels", 2, False, "cleared", "before the final evaluation"),
    ("pixels", 2, True, "rows emptied", "within the second epoch"),
    ("pixels", 2, False, "all deleted", "before the second epoch"),
    ("pixels", 0, False, "cleared", "before the final evaluation"),
    ("pixels", 0, True, "rows overwritten", "within the first validation"),
    ("features", 0, False, "cleared", "before the final evaluation"),
    ("features", 0, False, "rows emptied", "within the first epoch"),
    ("features", 0, True, "rows with flipped bits", "before the second epoch"),
]
ALL: list[Case] = [
    (kind, workers, filled, fault, moment)
    for kind, workers in (("pixels", 0), ("pixels", 2), ("features", 0))  # features are read without workers
    for filled in (False, True)
    for fault in FAULTS
    for moment in MOMENTS
    if filled or moment != "before the first epoch"  # else there is no file yet
]


def on_moment(monkeypatch: pytest.MonkeyPatch, moment: str, action: Callable[[], None], done: list[str]) -> None:
    """Call `action` once, at the moment."""
    split, time, batches = MOMENTS[moment]
    iterate, times = Loader.__iter__, []

    def watched(self: Loader) -> Any:
        # 36 images in no random order are those that the statistics of the pixels are taken of.
        mine = self.options.shuffle == "epoch" if split == "train" else len(self.samples) == 12
        times.append(mine)
        now = mine and sum(times) == time

        def act() -> None:
            action()
            done.append(moment)

        if now and not batches:
            act()
        for count, batch in enumerate(iterate(self), 1):
            if now and count == batches:
                act()
            yield batch

    monkeypatch.setattr(Loader, "__iter__", watched)


@pytest.fixture(scope="module")
def whole_runs(run_tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Folders of the runs that nobody disturbed, and the caches that they have filled, by kind."""
    runs = {}
    for kind, settings in KINDS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IMGCLF_CACHE", str(tmp_path_factory.mktemp(kind)))
            runs[kind] = run_tiny(*settings), cache_folder()
    return runs


def assert_same_results(ours: Path, theirs: Path) -> None:
    assert without_seconds(read_rows(ours / "history.csv")) == without_seconds(read_rows(theirs / "history.csv"))
    assert read_json(ours / "metrics.json") == read_json(theirs / "metrics.json")
    assert (ours / "predictions_test.csv").read_bytes() == (theirs / "predictions_test.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(folder / "checkpoints" / name)["state_dict"] for folder in (ours, theirs))
        assert first_difference(one, other) is None


@pytest.mark.trust(
    "cache files that are cleared, deleted, truncated or overwritten while a run uses them",
    "a run that ends, or a result that differs",
)
@pytest.mark.parametrize(
    ("kind", "workers", "filled", "fault", "moment"),
    [*EACH_RUN, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ALL if case not in EACH_RUN)],
)
def test_cache_file_that_is_damaged_during_a_run_changes_no_result(
    run_tiny: Run,
    whole_runs: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    workers: int,
    filled: bool,
    fault: str,
    moment: str,
) -> None:
    whole, cache = whole_runs[kind]
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "cache"))
    if filled:
        shutil.copytree(cache, tmp_path / "cache")
    done: list[str] = []
    on_moment(monkeypatch, moment, FAULTS[fault], done)
    folder = run_tiny(*KINDS[kind], f"dataset.num_workers={workers}", folder=tmp_path / "run")
    assert done == [moment]
    assert_same_results(folder, whole)
