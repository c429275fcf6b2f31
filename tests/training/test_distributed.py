"""Two processes train as one does: the same results, each image counted once, one run folder, one output."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.fabricate import TINY, composed, draw_tree
from support.run_files import read_json

from imgclf.files.row_store import list_stores
from imgclf.files.trial_record import find_trials
from imgclf.inference.evaluate_checkpoint import evaluate_checkpoint
from imgclf.models.checkpoint import read_checkpoint
from imgclf.training.run import train

PAIR = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
# 19 images per class in batches of 11: neither number is even, nor is the size of the last batch.
ODD = ("dataset.batch_size=11", "callbacks=none", "loss.class_weights=balanced", "model.head.l2=0.001")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19, 3 and 5 images of each of three colours; fewer of one colour, so that class weights differ."""
    root = draw_tree(tmp_path_factory.mktemp("odd"), {"train": 19, "valid": 3, "test": 5})
    for path in sorted((root / "train" / "red").iterdir())[:8]:
        path.unlink()
    return root


def environment(cache: Path) -> dict[str, str]:
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "IMGCLF_STAMP")
    others = {name: value for name, value in os.environ.items() if name not in names}
    return {**others, "IMGCLF_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def run(data: Path, place: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Train by the command line in the folder `place`; assert that it succeeds."""
    given = {text.partition("=")[0] for text in overrides}
    settings = [text for text in (*TINY, *ODD) if text.partition("=")[0] not in given]
    place.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "imgclf.train", *settings, f"data_dir='{data}'", *overrides]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, cwd=place, env=environment(place / "cache")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def assert_same_training(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    rows, others = (read_json(folder / "history.json") for folder in (one, two))
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[key] == pytest.approx(other[key], abs=tolerance), (row["epoch"], key)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (read_checkpoint(folder / "checkpoints" / name)["state_dict"] for folder in (one, two))
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def single(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_alone(odd, tmp_path_factory.mktemp("single") / "run")


def train_alone(data: Path, folder: Path, *overrides: str) -> Path:
    """Train in this process; return the run folder."""
    train(composed(*TINY, *ODD, f"data_dir='{data}'", *overrides), folder, [])
    return folder


@pytest.fixture(scope="module")
def pair(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    place = tmp_path_factory.mktemp("pair")
    return place, run(odd, place, *PAIR)


def test_two_processes_give_the_weights_and_metrics_of_one(
    single: Path, pair: tuple[Path, subprocess.CompletedProcess[str]], odd: Path, tmp_path: Path
) -> None:
    place, _ = pair
    (folder,) = (path.parent for path in place.glob("outputs/**/metrics.json"))
    assert_same_training(single, folder)
    ours, theirs = read_json(folder / "metrics.json"), read_json(single / "metrics.json")
    assert [ours[split]["count"] for split in ("train", "val", "test")] == [49, 9, 15]
    for split in ("val", "test"):
        assert ours[split]["correct"] == theirs[split]["correct"]
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-5)
    evaluate_checkpoint(
        composed(f"checkpoint='{folder}/checkpoints/best.ckpt'", "device=cpu", config="evaluate"), tmp_path / "again"
    )
    assert read_json(tmp_path / "again" / "metrics.json")["test"] == ours["test"]


def test_two_processes_write_one_run_folder_and_print_each_line_once(
    pair: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = pair
    runs = [path.parent for path in place.glob("outputs/**/config.yaml")]
    assert len(runs) == 1 and len(list(runs[0].parent.iterdir())) == 1, "one run folder and no other"
    for line in ("epoch   1/2", "best epoch", "run folder", "done in"):
        assert done.stdout.count(line) == 1, done.stdout
    assert not done.stderr.strip(), done.stderr


@pytest.mark.exhaustive
def test_resume_command_starts_both_processes_again(
    pair: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (run_folder,) = (path.parent for path in pair[0].glob("outputs/**/metrics.json"))
    folder = tmp_path / "it's a b=c"
    shutil.copytree(run_folder, folder)
    words = [sys.executable, "-m", "imgclf.resume", folder.name, "trainer.max_epochs=3"]
    environ = environment(tmp_path / "cache")
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   3/3") == 1 and len(read_json(folder / "history.json")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", folder.name, "outputs"]


def test_two_processes_decode_each_image_once(pair: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = pair
    (pixels,) = [size for folder, about, size in list_stores(place / "cache") if about["kind"] == "pixels"]
    rows = 16 * 16 * 3 * (49 + 9)  # test images are read once and not cached
    assert rows <= pixels < rows + 2000, "one row per image, and the index"


@pytest.mark.exhaustive
def test_two_processes_compute_each_feature_once(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLF_CACHE", str(tmp_path / "one" / "cache"))
    one = train_alone(odd, tmp_path / "one" / "run", "model.freeze=all")
    done = run(odd, tmp_path / "two", "model.freeze=all", "hydra.run.dir=run", *PAIR)
    assert done.stdout.count("training on features") == 1
    assert_same_training(one, tmp_path / "two" / "run")
    sizes = [
        sum(size for _, about, size in list_stores(tmp_path / name / "cache") if about["kind"] == "features")
        for name in ("one", "two")
    ]
    assert sizes[0] == sizes[1] > 0


@pytest.mark.exhaustive
def test_two_processes_resume_exactly_after_sigterm(
    odd: Path, tmp_path: Path, pair: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    """The signal arrives within an epoch; the metrics of that epoch include both processes."""
    import signal
    import time

    given = (*TINY, *ODD, *PAIR, "checkpoint.every_n_steps=1")
    settings = [text for text in given if not text.startswith(("dataset.batch_size=8",))]
    place = (f"data_dir='{odd}'", "hydra.run.dir=run")
    words = [sys.executable, "-m", "imgclf.train", *settings, *place, "trainer.max_epochs=40"]
    environ = environment(tmp_path / "cache")
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    last, end = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 120
    while not last.is_file() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    resumed = [*words, "ckpt_path=last"]
    subprocess.run(resumed, check=True, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, timeout=200)
    run(odd, tmp_path / "whole", "hydra.run.dir=run", "trainer.max_epochs=40", *PAIR)
    assert_same_training(tmp_path / "whole" / "run", tmp_path / "run", tolerance=0)


KILLER = """
import os, runpy, signal, sys

victim, operation, name = os.environ["KILL"].split()

def audit(event, arguments):
    if event != operation or not any(os.path.basename(str(one)) == name for one in arguments[:2]):
        return
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    os.kill(int(children[0]) if victim == "1" else os.getpid(), signal.SIGKILL)

if "LOCAL_RANK" not in os.environ:
    sys.addaudithook(audit)
runpy.run_module("imgclf.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.trust(
    "ranks of two killed at a file operation, then resumed", "a result that differs from the uninterrupted run's"
)
@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other rank in /proc")
@pytest.mark.parametrize(
    ("victim", "operation", "name"),
    [
        (victim, *place)
        for victim in (0, 1)
        for place in (
            ("os.rename", "history.csv"),
            ("os.rename", "last.ckpt"),
            ("os.rename", "best.ckpt"),
            ("os.rename", "metrics.json"),
            ("os.rename", "environment.json"),
        )
    ],
)
def test_run_with_a_killed_rank_resumes_to_the_same_result(
    odd: Path,
    tmp_path: Path,
    pair: tuple[Path, subprocess.CompletedProcess[str]],
    victim: int,
    operation: str,
    name: str,
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    settings = [text for text in (*TINY, *ODD) if text != "dataset.batch_size=8"]
    words = [*settings, *PAIR, f"data_dir='{odd}'", "hydra.run.dir=run"]
    environ = environment(tmp_path / "cache") | {"KILL": f"{victim} {operation} {name}"}
    killed = subprocess.run(
        [sys.executable, "killer.py", *words], capture_output=True, timeout=200, cwd=tmp_path, env=environ, text=True
    )
    # The first rank finishes alone what needs no other one.
    assert killed.returncode == (-9 if victim == 0 else 0 if name in ("metrics.json", "environment.json") else 2), (
        killed
    )
    resume = [sys.executable, "-m", "imgclf.resume", "run"]
    done = subprocess.run(resume, capture_output=True, timeout=200, cwd=tmp_path, env=environ, text=True)
    assert done.returncode == 0, done.stderr
    (whole,) = (path.parent for path in pair[0].glob("outputs/**/metrics.json"))
    assert_same_training(whole, tmp_path / "run", tolerance=0)
    for file in ("metrics.json", "predictions_test.csv"):
        assert (whole / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


@pytest.mark.exhaustive
def test_failure_of_one_process_ends_both_with_one_line(odd: Path, tmp_path: Path) -> None:
    """Only one of the two processes reads the damaged image."""
    data = shutil.copytree(odd, tmp_path / "data")
    broken = sorted((data / "train" / "blue").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    words = [sys.executable, "-m", "imgclf.train", *TINY, *PAIR, f"data_dir='{data}'", "hydra.run.dir=run"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment(tmp_path / "cache")
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and broken.name in done.stderr, done.stderr


@pytest.mark.exhaustive
def test_sweep_of_two_process_runs_lists_only_its_trials(odd: Path, tmp_path: Path) -> None:
    run(odd, tmp_path, *PAIR, "seed=0,1", "trainer.max_epochs=1", "-m")
    sweeps = list((tmp_path / "outputs" / "multirun").iterdir())
    assert len(sweeps) == 1 and [record.state for _, record in find_trials(sweeps[0])] == ["finished"] * 2
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"multirun", "latest"}  # the latter: its winner


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.exhaustive
def test_two_nodes_by_torchrun_train_as_one_process(odd: Path, tmp_path: Path, single: Path, port: int) -> None:
    """Two process groups on the loopback interface stand for two nodes."""
    given = [text for text in (*TINY, *ODD) if not text.startswith(("dataset.batch_size=8", "trainer=cpu"))]
    cluster = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2")
    words = ["imgclf.train", *given, *cluster, f"data_dir='{odd}'", "hydra.run.dir=run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    address = ("--master_addr=127.0.0.1", f"--master_port={port}")
    nodes = [
        subprocess.Popen(
            [*torchrun, f"--node_rank={rank}", *address, "-m", *words],
            cwd=tmp_path,
            env=environment(tmp_path / "cache"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [out.count("best epoch") for out, _ in outputs] == [1, 0]
    assert_same_training(single, tmp_path / "run")


# A run of two processes with a short patience, which says in files how far each of them has come.
WATCHED = """
import os, sys, time
from datetime import timedelta
from pathlib import Path

rank, patience, slow = os.environ.get("LOCAL_RANK", "0"), os.environ["PATIENCE"], os.environ["SLOW"]

def come_to(moment):
    Path(f"{moment} {rank}").write_text(str(os.getpid()))
    if moment == slow:
        time.sleep(5)

come_to("start")
from imgclf.cli.hydra_app import run_app
from imgclf.data import pixel_cache
from imgclf.train import main
from imgclf.training import ranks
from imgclf.training.classifier import ImageClassifier

ranks.SILENCE = timedelta(seconds=float(patience))
fill, step = pixel_cache.CachedRows._fill, ImageClassifier.training_step
pixel_cache.CachedRows._fill = lambda *given: (come_to("filling"), fill(*given))[1]
ImageClassifier.training_step = lambda *given: (come_to("training"), step(*given))[1]
run_app("train", main)
"""


def wait_for(path: Path, seconds: float = 300) -> int:
    """Return the process id in the file, as soon as it is there."""
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    return int(path.read_text())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def watched_pair(data: Path, place: Path, slow: str, patience: float) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of the run, in the folder `place`."""
    (place / "watched.py").write_text(WATCHED)
    words = [
        *TINY,
        *PAIR,
        "trainer.max_epochs=100",
        "checkpoint.every_n_steps=1",
        f"dataset.timeout_seconds={patience / 2}",
        f"data_dir='{data}'",
        "hydra.run.dir=run",
    ]
    return [sys.executable, "watched.py", *words], {
        **environment(place / "cache"),
        "PATIENCE": str(patience),
        "SLOW": slow,
    }


def apart(port: int, rank: int) -> dict[str, str]:
    """Return what a cluster's own launcher tells one of the two processes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    return {**place, "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}


@pytest.mark.trust(
    "the first of two processes of a run, killed at any time", "another that waits for more than minutes"
)
def test_process_that_is_left_alone_at_the_start_ends_in_time_with_one_line(
    odd: Path, tmp_path: Path, port: int
) -> None:
    words, environ = watched_pair(odd, tmp_path, "", patience=3)
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=tmp_path, env={**environ, **apart(port, 1)}, capture_output=True, text=True, timeout=200
    )
    assert time.monotonic() - began < 100
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    reached = f"the first process of the run, at 127.0.0.1:{port}, could not be reached for 3 s"
    assert done.stderr == f"imgclf: {reached}; see whether it has ended, and start all processes again\n"
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.exhaustive
@pytest.mark.trust(
    "the first of two processes of a run, killed at any time", "another that waits for more than minutes"
)
@pytest.mark.parametrize("started", ["by Lightning", "apart"])
@pytest.mark.parametrize("moment", ["start 1", "filling 0", "filling 1", "training 0", "training 1"])
def test_killed_first_process_ends_the_other_with_one_line(
    odd: Path, tmp_path: Path, port: int, moment: str, started: str
) -> None:
    slow = moment.partition(" ")[0]
    words, environ = watched_pair(odd, tmp_path, slow, patience=20 if slow == "start" else 240)
    with (tmp_path / "stderr").open("w") as stderr:
        places = [apart(port, rank) for rank in (0, 1)] if started == "apart" else [{}]
        processes = [
            subprocess.Popen(words, cwd=tmp_path, env={**environ, **place}, stderr=stderr, stdout=subprocess.DEVNULL)
            for place in places
        ]
        try:
            other = wait_for(tmp_path / "start 1")
            wait_for(tmp_path / moment)
        finally:
            processes[0].kill()
        killed = time.monotonic()
        while is_running(other) and time.monotonic() - killed < 150:
            time.sleep(0.1)
        for process in processes:
            process.wait(timeout=10)
    seconds, text = time.monotonic() - killed, (tmp_path / "stderr").read_text()
    print(f"{started}, {moment}: {seconds:.0f} s, {text}")
    assert seconds < 100 and not is_running(other), text
    assert text.count("\n") == 1 and text.startswith("imgclf: "), text


def test_torchrun_without_hydra_run_dir_is_refused(odd: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "imgclf.train", *TINY, f"data_dir='{odd}'"]
    environ = {**environment(tmp_path), "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 2 and "hydra.run.dir" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.exhaustive
def test_check_exclude_checks_in_one_of_two_processes_and_both_leave_the_files_out(odd: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(odd, data)
    (data / "train" / "blue" / "000.png").write_bytes(b"nothing")
    done = run(data, tmp_path / "place", *PAIR, "check=exclude", "trainer.max_epochs=1")
    assert done.stdout.count("check: 1 file can't be read and is left out: train/blue/000.png") == 1
    (folder,) = (path.parent for path in (tmp_path / "place").glob("outputs/**/metrics.json"))
    assert read_json(folder / "metrics.json")["train"]["count"] == 48
