"""CheckpointCallback on disk: under its final name a file is whole, whatever interrupts the writing of it."""

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
from imgclf.files.atomic import sweep_leftovers
from imgclf.files.run_folder import create_run_folder
from imgclf.models.checkpoint import read_checkpoint, update_metadata, write_checkpoint

CUTS, KILLS = 200, 14
Record = Callable[[str, object], None]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")


def contents(number: int, size: int = 50_000) -> dict[str, Any]:
    """What a checkpoint of imgclf must have, with `size` numbers that say which one it is."""
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


@pytest.mark.trust("checkpoint writes cut by the kernel", "a torn file, a lost one, or a leftover")
def test_cut_at_every_offset(tmp_path: Path, record_property: Record) -> None:
    """The kernel refuses to write beyond a limit, which stands at 200 places from the first byte to the last but one."""
    import resource  # POSIX only

    path = tmp_path / "last.ckpt"
    write_checkpoint(contents(0), path)
    before, size = path.read_bytes(), path.stat().st_size
    offsets = [round(step * (size - 1) / (CUTS - 1)) for step in range(CUTS)]
    assert len(set(offsets)) == CUTS

    def write_all() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then `write` fails, as on a full disk
        said = []
        for offset in offsets:
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, resource.RLIM_INFINITY))
            try:
                write_checkpoint(contents(1), path)
                said.append("written")
            except RunError as error:
                said.append(str(error))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            said.append("intact" if path.read_bytes() == before else "torn")
            said.append(str(len(list(tmp_path.iterdir()))))
        (tmp_path / "said.json").write_text(json.dumps(said))

    assert os.waitpid(in_child(write_all), 0)[1] == 0
    said = json.loads((tmp_path / "said.json").read_text())
    record_property("tried", len(said) // 3)
    assert len(said) == 3 * CUTS
    assert all("couldn't be written" in line and "\n" not in line for line in said[0::3])
    assert set(said[1::3]) == {"intact"}
    assert set(said[2::3]) == {"1"}  # no temporary file is left


@pytest.mark.trust("SIGKILL while a checkpoint is written, TMPDIR elsewhere", "a torn file under its final name")
def test_killed_in_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    """With TMPDIR on another file system, where a library that moves its file into place would tear it."""
    elsewhere = Path("/dev/shm")
    if elsewhere.is_dir() and elsewhere.stat().st_dev != tmp_path.stat().st_dev:
        monkeypatch.setenv("TMPDIR", str(elsewhere))
    place = tmp_path / "checkpoints"
    place.mkdir()
    path, numbers = place / "last.ckpt", set(range(10_000))
    write_checkpoint(contents(0, 2_000_000), path)
    generator, torn, left = random.Random(0), 0, 0

    def write_on_and_on() -> None:
        for number in range(1, 10_000):
            write_checkpoint(contents(number, 2_000_000), path)

    for number in range(KILLS):
        sweep_leftovers(place)
        child = in_child(write_on_and_on)
        deadline = time.monotonic() + 20  # on a busy machine it takes its time to begin
        while len(list(place.iterdir())) == 1 and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, 0.1) * (number % 2))  # every other one as soon as there is something to tear
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += not is_whole(path, numbers)
        left += len(list(place.iterdir())) > 1
    record_property("tried", KILLS)
    assert torn == 0
    assert left > 0  # some were killed in the middle, else this shows nothing
    (place / f".imgclf-last.ckpt-{2**22}.tmp").write_bytes(b"torn")  # whatever the last one left
    create_run_folder(tmp_path, {}, [], resuming=True)  # the next start sweeps what they left
    assert [file.name for file in place.iterdir()] == ["last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"a small file system can't be mounted here ({os.strerror(ctypes.get_errno())})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def check_full(path: Path) -> None:
    with pytest.raises(
        RunError, match=r"last\.ckpt: the checkpoint of [\d,]+ bytes couldn't be written \(No space left on dev"
    ):
        write_checkpoint(contents(1, 500_000), path)
    assert is_whole(path, {0})
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.trust("checkpoints written to a full disk", "a torn file, a lost one, or a leftover")
def test_the_disk_is_full(small_disk: Path) -> None:
    write_checkpoint(contents(0), small_disk / "last.ckpt")
    check_full(small_disk / "last.ckpt")


@pytest.mark.trust("checkpoints written to a full disk", "a torn file, a lost one, or a leftover")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Some file systems say so only when the data is synced."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_checkpoint(contents(0), tmp_path / "last.ckpt")
    monkeypatch.setattr(os, call, full)
    check_full(tmp_path / "last.ckpt")


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_what_a_checkpoint_carries(tiny_run: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = read_checkpoint(tiny_run / "checkpoints" / name)
        extra, hparams = checkpoint["imgclf"], checkpoint["hyper_parameters"]
        assert hparams["classes"] == ["blue", "green", "red"]
        assert hparams["preprocess"]["size"] == 16
        assert extra["config"]["dataset"]["batch_size"] == 8
        assert {split: {k: v[0] for k, v in prints.items()} for split, prints in extra["fingerprint"].items()} == {
            "train": dict.fromkeys(hparams["classes"], 12), "val": dict.fromkeys(hparams["classes"], 4),
            "test": dict.fromkeys(hparams["classes"], 5),
        }  # fmt: skip
        assert len(extra["history"]) == checkpoint["epoch"] + 1
        assert plain(extra) and plain(dict(checkpoint["hyper_parameters"]))
    assert extra["history"][0]["epoch"] == 0


def test_adding_metrics_keeps_the_rest(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    path.write_bytes((tiny_run / "checkpoints" / "last.ckpt").read_bytes())
    before = read_checkpoint(path)
    update_metadata(path, metrics={"test": {"accuracy": 0.5}})
    after = read_checkpoint(path)
    assert after["imgclf"].pop("metrics") == {"test": {"accuracy": 0.5}}
    before["imgclf"].pop("metrics", None)
    assert after["imgclf"] == before["imgclf"]
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
