"""Checkpoint files on disk: whole under their final name, at whatever moment a write is interrupted."""

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imgclf.errors import RunError
from imgclf.files.atomic import delete_leftovers
from imgclf.files.run_folder import RunLock, create_run_folder
from imgclf.models.checkpoint import read_checkpoint, update_metadata, write_checkpoint

CUTS, KILLS = 200, 14
Record = Callable[[str, object], None]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")


def contents(number: int, size: int = 50_000) -> dict[str, Any]:
    """The parts that a checkpoint of imgclf must have, with `size` weights of the value `number`."""
    return {
        "state_dict": {"weight": torch.full((size,), float(number))},
        "hyper_parameters": {},
        "imgclf": {"number": number},
    }


def is_whole(path: Path, numbers: set[int]) -> bool:
    checkpoint = torch.load(path, weights_only=True)
    number = checkpoint["imgclf"]["number"]
    return number in numbers and bool((checkpoint["state_dict"]["weight"] == number).all())


def in_child(action: Callable[[], None]) -> int:
    """Fork, run `action`, and return the child's process id."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(70)
    return child


@pytest.mark.trust("checkpoint writes cut by the kernel", "a truncated file, a lost one, or a leftover")
def test_write_cut_at_any_offset_keeps_the_old_checkpoint(tmp_path: Path, record_property: Record) -> None:
    """A file size limit makes the kernel refuse the rest, at 200 offsets from the first byte to the last but one."""
    import resource  # POSIX only

    path = tmp_path / "last.ckpt"
    write_checkpoint(contents(0), path)
    before, size = path.read_bytes(), path.stat().st_size
    offsets = [round(step * (size - 1) / (CUTS - 1)) for step in range(CUTS)]
    assert len(set(offsets)) == CUTS

    def write_all() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then `write` fails, as on a full disk
        outcomes = []
        for offset in offsets:
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, resource.RLIM_INFINITY))
            try:
                write_checkpoint(contents(1), path)
                outcomes.append("written")
            except RunError as error:
                outcomes.append(str(error))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            outcomes.append("intact" if path.read_bytes() == before else "torn")
            outcomes.append(str(len(list(tmp_path.iterdir()))))
        (tmp_path / "outcomes.json").write_text(json.dumps(outcomes))

    assert os.waitpid(in_child(write_all), 0)[1] == 0
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    record_property("tried", len(outcomes) // 3)
    assert len(outcomes) == 3 * CUTS
    assert all("couldn't be written" in line and "\n" not in line for line in outcomes[0::3])
    assert set(outcomes[1::3]) == {"intact"}
    assert set(outcomes[2::3]) == {"1"}  # no temporary file is left


@pytest.mark.trust("SIGKILL while a checkpoint is written, TMPDIR elsewhere", "a truncated file under its final name")
def test_killed_write_leaves_a_whole_checkpoint_and_the_next_start_deletes_its_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """With TMPDIR on another file system, where a library that moves its temporary file into place is not atomic."""
    elsewhere = Path("/dev/shm")
    if elsewhere.is_dir() and elsewhere.stat().st_dev != tmp_path.stat().st_dev:
        monkeypatch.setenv("TMPDIR", str(elsewhere))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path, numbers = folder / "last.ckpt", set(range(10_000))
    write_checkpoint(contents(0, 2_000_000), path)
    generator, torn, left = random.Random(0), 0, 0

    def write_until_killed() -> None:
        for number in range(1, 10_000):
            write_checkpoint(contents(number, 2_000_000), path)

    for number in range(KILLS):
        delete_leftovers(folder)
        child = in_child(write_until_killed)
        deadline = time.monotonic() + 20  # a busy machine takes long to start
        while len(list(folder.iterdir())) == 1 and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, 0.1) * (number % 2))  # every other one as soon as a write has begun
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += not is_whole(path, numbers)
        left += len(list(folder.iterdir())) > 1
    record_property("tried", KILLS)
    assert torn == 0
    assert left > 0  # some were killed during a write, or the test shows nothing
    (folder / f".imgclf-last.ckpt-{2**22}.tmp").write_bytes(b"torn")  # at least one leftover
    with RunLock(tmp_path) as lock:
        create_run_folder(tmp_path, {}, [], lock, resuming=True)  # deletes leftovers
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"a small file system can't be mounted here ({os.strerror(ctypes.get_errno())})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_full_disk_keeps_the_old_checkpoint(path: Path) -> None:
    with pytest.raises(
        RunError, match=r"last\.ckpt: the checkpoint of [\d,]+ bytes couldn't be written \(No space left on dev"
    ):
        write_checkpoint(contents(1, 500_000), path)
    assert is_whole(path, {0})
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.trust("checkpoints written to a full disk", "a truncated file, a lost one, or a leftover")
def test_full_disk_is_one_line_and_keeps_the_old_checkpoint(small_disk: Path) -> None:
    write_checkpoint(contents(0), small_disk / "last.ckpt")
    assert_full_disk_keeps_the_old_checkpoint(small_disk / "last.ckpt")


@pytest.mark.trust("checkpoints written to a full disk", "a truncated file, a lost one, or a leftover")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_reported_late_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Some file systems report a full disk only when the data is synced."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_checkpoint(contents(0), tmp_path / "last.ckpt")
    monkeypatch.setattr(os, call, full)
    assert_full_disk_keeps_the_old_checkpoint(tmp_path / "last.ckpt")


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and is_plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_checkpoint_holds_classes_preprocessing_settings_and_history_as_plain_data(tiny_run: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = read_checkpoint(tiny_run / "checkpoints" / name)
        extra, hparams = checkpoint["imgclf"], checkpoint["hyper_parameters"]
        assert hparams["classes"] == ["blue", "green", "red"]
        assert hparams["preprocess"]["size"] == 16
        assert extra["config"]["dataset"]["batch_size"] == 8
        prints = extra["fingerprint"]
        counts = {split: {name: value[0] for name, value in prints[split].items()} for split in prints}
        expected = {"train": 12, "val": 4, "test": 5}
        assert counts == {split: dict.fromkeys(hparams["classes"], count) for split, count in expected.items()}
        assert len(extra["history"]) == checkpoint["epoch"] + 1
        assert is_plain(extra) and is_plain(dict(checkpoint["hyper_parameters"]))
    assert extra["history"][0]["epoch"] == 1


def test_update_metadata_keeps_the_rest_of_the_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes((tiny_run / "checkpoints" / "last.ckpt").read_bytes())
    before = read_checkpoint(path)
    update_metadata(path, metrics={"test": {"accuracy": 0.5}})
    after = read_checkpoint(path)
    assert after["imgclf"].pop("metrics") == {"test": {"accuracy": 0.5}}
    before["imgclf"].pop("metrics", None)
    assert after["imgclf"] == before["imgclf"]
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
