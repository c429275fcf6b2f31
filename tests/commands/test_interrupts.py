"""Signals and faults during a run: finished steps are saved, the message is one line, and no process is left."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import compare
from support.fabricate import TINY, composed

from imgclf.cli.hydra_app import run_app
from imgclf.data import pixel_cache as cache_module
from imgclf.errors import ImageError, RunError
from imgclf.models.checkpoint import read_checkpoint
from imgclf.models.network import Head
from imgclf.signals import Signals
from imgclf.train import main
from imgclf.training import run as training
from imgclf.training.callbacks import first_non_finite
from imgclf.training.classifier import ImageClassifier
from imgclf.training.run import train

Run = Callable[..., Path]
Hook = Callable[[], None]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")


def on_call(owner: type, name: str, number: int, action: Hook) -> Hook:
    """Return a function that makes the `number`-th call of `owner.name` start with `action`."""

    def install() -> None:
        original, calls = getattr(owner, name), []

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == number:
                action()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    return install


def send(*numbers: int) -> Hook:
    """Return a function that sends these signals to its process."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def run_in_child(arguments: list[str], before: Hook, output: Path) -> tuple[int, str]:
    """Run `imgclf train` in a forked process, which saves the seconds of importing torch; return exit code and stderr."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with output.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr, sys.stdout = os.fdopen(2, "w", closefd=False), os.fdopen(1, "w", closefd=False)
            before()
            sys.argv = ["imgclf.train", *arguments]
            run_app("train", main)
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, output.read_text()


def arguments(colours: Path, folder: Path, *overrides: str) -> list[str]:
    """Return the command line of a tiny run with dropout."""
    return [*TINY, f"data_dir='{colours}'", f"hydra.run.dir={folder}", "model.head.dropout=0.3", *overrides]


@pytest.fixture(scope="module")
def whole(run_tiny: Run) -> dict[str, Any]:
    """Last checkpoint of the uninterrupted run: 2 epochs of 5 batches."""
    return read_checkpoint(run_tiny("model.head.dropout=0.3") / "checkpoints" / "last.ckpt")


STEP, VALIDATION = (ImageClassifier, "training_step"), (ImageClassifier, "validation_step")


@pytest.mark.trust(
    "SIGINT, SIGTERM and SIGHUP within an epoch, in its last step and in its validation",
    "a lost step, or a resumed run that differs from the uninterrupted one",
)
@pytest.mark.parametrize(
    ("signum", "place", "number", "steps"),
    [
        ("SIGINT", STEP, 3, 3),
        ("SIGTERM", STEP, 7, 7),
        ("SIGHUP", STEP, 1, 1),
        ("SIGTERM", STEP, 5, 5),
        ("SIGINT", VALIDATION, 1, 5),
        ("SIGTERM", VALIDATION, 2, 5),
        ("SIGHUP", VALIDATION, 4, 10),
        ("SIGINT", STEP, 10, 10),
    ],
)
def test_signal_saves_the_running_step_and_the_resumed_run_equals_the_uninterrupted_one(
    whole: dict[str, Any],
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: str,
    place: tuple[type, str],
    number: int,
    steps: int,
) -> None:
    folder = tmp_path / "run"
    sent = getattr(signal, signum)
    interrupt = on_call(*place, number, send(sent))
    code, stderr = run_in_child(arguments(colours, folder), interrupt, tmp_path / "stderr")
    assert code == 128 + sent
    assert stderr == f"imgclf: interrupted by {signum}; resume it with: imgclf resume {folder}\n"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == steps
    monkeypatch.setattr(training, "_evaluate_best", lambda run, _: (run.classifier, {}, []))
    resume = [f"resume='{folder}'"]
    train(composed(*resume), folder, resume)
    assert compare(whole, read_checkpoint(folder / "checkpoints" / "last.ckpt")) is None


def test_signal_while_gradients_accumulate_saves_after_the_update(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    accumulating = arguments(colours, folder, "trainer.accumulate_grad_batches=3")
    code, _ = run_in_child(accumulating, on_call(*STEP, 1, send(signal.SIGTERM)), tmp_path / "stderr")
    assert code == 143
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 1  # the three batches of the first update
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batch"] == 3


def test_second_sigint_quits_without_saving(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    twice = on_call(*STEP, 2, send(signal.SIGINT, signal.SIGINT))
    code, _ = run_in_child(arguments(colours, folder), twice, tmp_path / "stderr")
    assert code == 130
    assert list((folder / "checkpoints").glob("*")) == []


@pytest.mark.parametrize("where", ["before the first step", "while testing"])
def test_signal_outside_of_training_ends_with_one_line(colours: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"

    def install() -> None:
        name = "print_network" if where == "before the first step" else "metrics_json"
        setattr(training, name, lambda *_: send(signal.SIGTERM)())

    code, stderr = run_in_child(arguments(colours, folder), install, tmp_path / "stderr")
    assert code == 143
    if where == "while testing":
        assert stderr.endswith(f"resume it with: imgclf resume {folder}\n") and stderr.count("\n") == 1
        resume = [f"resume='{folder}'"]
        train(composed(*resume), folder, resume)  # only the evaluation remains
        assert (folder / "environment.json").is_file()
    else:
        assert stderr == "imgclf: interrupted by SIGTERM; nothing was saved yet, begin the run again\n"


@pytest.mark.exhaustive
def test_printed_resume_command_is_quoted_for_the_shell(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] b=c"
    quoted = str(folder).replace("'", "\\'")
    command_line = [*TINY, f"data_dir='{colours}'", f"hydra.run.dir='{quoted}'"]
    code, stderr = run_in_child(command_line, on_call(*STEP, 2, send(signal.SIGTERM)), tmp_path / "stderr")
    assert code == 143
    command = stderr.partition("imgclf resume ")[2].strip()
    typed = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    assert typed.stdout == f"{folder}\0"
    again = [sys.executable, "-m", "imgclf", "resume", str(folder), "trainer.max_epochs=2"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "from last.ckpt" in done.stdout, done.stderr


def alive(mark: str) -> list[int]:
    """Return the processes that inherited `mark` in their environment."""
    processes = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                processes.append(int(entry.name))
        except OSError:
            continue
    return processes


@pytest.mark.trust(
    "Ctrl-C to the whole process group, with DataLoader workers", "a process left behind, or no checkpoint"
)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_ctrl_c_to_the_process_group_saves_and_ends_all_workers(colours: Path, tmp_path: Path) -> None:
    """A terminal sends the signal to the DataLoader workers too; the parent must still save and end them."""
    mark = f"IMGCLF_TEST={uuid.uuid4()}"
    endless = arguments(colours, tmp_path / "run", "dataset.num_workers=2", "trainer.max_epochs=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "imgclf.train", *endless],
        env={**os.environ, "IMGCLF_TEST": mark.partition("=")[2]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(alive(mark)) == 5  # two workers each for training and for validation
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("imgclf: interrupted by SIGINT; resume it with: ") and stderr.count("\n") == 1
    assert alive(mark) == []
    read_checkpoint(last)


def test_training_restores_the_signal_handlers(run_tiny: Run) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run_tiny("trainer.max_epochs=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ignored_sighup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        Signals().install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        for number, handler in others:
            signal.signal(number, handler)


def saved_non_finite(folder: Path) -> list[str]:
    """Return the first non-finite tensor of each checkpoint in the folder that has one."""
    return [
        f"{path.name}: {name}" for path in folder.rglob("*.ckpt") if (name := first_non_finite(read_checkpoint(path)))
    ]


@pytest.mark.trust("losses, gradients and weights that become NaN or infinite", "a saved file with such a value")
def test_non_finite_loss_raises_run_error_and_lists_the_batch(run_tiny: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunError) as raised:
        run_tiny("optimizer.name=sgd", "optimizer.lr=1e25", "checkpoint.every_n_steps=1", folder=folder)
    text = str(raised.value)
    assert "\n" not in text
    assert "at step 1, epoch 1, learning rate 1e+25; nothing of it was saved. Pass a smaller" in text and ".png" in text
    assert len((folder / "non_finite_batch.txt").read_text().splitlines()) == 8
    assert all(Path(line).is_file() for line in (folder / "non_finite_batch.txt").read_text().splitlines())
    assert saved_non_finite(folder) == []


@pytest.mark.trust("losses, gradients and weights that become NaN or infinite", "a saved file with such a value")
def test_non_finite_gradient_raises_run_error_before_the_step(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The square root of zero has a finite value and an infinite slope."""
    calls = []

    def penalty(self: Head) -> torch.Tensor:
        calls.append(1)
        weight = self.output.weight.sum()
        return (weight - weight.detach()).abs().sqrt() if len(calls) == 4 else weight * 0

    monkeypatch.setattr(Head, "penalty", penalty)
    with pytest.raises(
        RunError, match=r"the gradient of model\.network\..* isn't finite at step 3, epoch 1, learning rate"
    ):
        run_tiny("checkpoint.every_n_steps=1", folder=tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert saved_non_finite(tmp_path / "run") == []


@pytest.mark.trust("losses, gradients and weights that become NaN or infinite", "a saved file with such a value")
def test_non_finite_weight_raises_run_error_before_it_is_saved(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before saving notices a non-finite weight of any cause."""
    step = ImageClassifier.optimizer_step

    def spoil(self: ImageClassifier, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        if self.current_epoch == 1:
            with torch.no_grad():
                self.network.head.output.bias[0] = torch.inf

    monkeypatch.setattr(ImageClassifier, "optimizer_step", spoil)
    with pytest.raises(RunError, match=r"state_dict\.model\.network\.head\.output\.bias is no longer finite at step 6"):
        run_tiny("checkpoint.every_n_steps=1", folder=tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 5


@pytest.mark.trust("a full disk at each file that a run writes", "an error without the file's name, or a leftover")
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("overrides.yaml", "nothing was saved yet, begin the run again"),
        ("last.ckpt", "`imgclf resume <run folder>` continues from it"),
        ("best.ckpt", "resume it with: imgclf resume "),
        ("history.csv", "nothing was saved yet, begin the run again"),
        ("metrics.json", "resume it with: imgclf resume "),
        ("predictions_test.csv", "resume it with: imgclf resume "),
        ("environment.json", "resume it with: imgclf resume "),
    ],
)
def test_full_disk_is_one_line_with_the_file_and_what_to_do(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    rename, folder = os.replace, tmp_path / "run"

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=rf"{re.escape(name)}: .*No space left on device.*; free some space") as raised:
        run_tiny("trainer.max_epochs=1", folder=folder)
    assert str(raised.value).startswith(str(folder)) and remedy in str(raised.value) and "\n" not in str(raised.value)
    assert not list(folder.rglob("*.tmp"))


def test_full_disk_ends_the_command_with_one_line(colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def install() -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full

    code, stderr = run_in_child(arguments(colours, folder), install, tmp_path / "stderr")
    file = folder / "overrides.yaml"
    expected = f"imgclf: {file}: No space left on device; free some space; nothing was saved yet, begin the run again\n"
    assert (code, stderr) == (2, expected)


SIGNALS = {"killed": signal.SIGKILL, "bus error": signal.SIGBUS, "terminated": signal.SIGTERM}


# torch's signal handler may raise while it looks for the reason itself, within `tempfile`, which then leaves a file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.trust("DataLoader workers that are killed, hang or read a bad image", "more than one line, or a hang")
@pytest.mark.parametrize("fault", ["killed", "bus error", "terminated", "exits", "hangs", "bad image", "bug"])
def test_failing_dataloader_worker_raises_one_line(
    run_tiny: Run, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    read, parent = cache_module.read_image, os.getpid()

    def faulty(source: Any, *args: Any) -> Any:
        if str(source).endswith("train/red/007.png") and os.getpid() != parent:
            if fault == "bad image":
                raise ImageError(f"{source}: is damaged")
            if fault in SIGNALS:
                signal.signal(SIGNALS[fault], signal.SIG_DFL) if fault != "killed" else None
                os.kill(os.getpid(), SIGNALS[fault])
            if fault == "exits":
                os._exit(3)
            if fault == "bug":
                raise FileNotFoundError("a library's file")
            time.sleep(1000)
        return read(source, *args)

    monkeypatch.setattr(cache_module, "read_image", faulty)
    error, message = {
        "killed": (
            RunError,
            r"a DataLoader worker was killed, most likely because memory ran out; pass a smaller dataset\.num",
        ),
        "bus error": (RunError, r"a DataLoader worker got no shared memory \(bus error\), .*dataset\.num_workers=0"),
        "terminated": (RunError, "a DataLoader worker was ended by SIGTERM, not by imgclf"),
        "exits": (RunError, "a DataLoader worker ended unexpectedly with code 3; dataset.num_workers=0"),
        "bug": (FileNotFoundError, r"^Caught FileNotFoundError in DataLoader worker process"),
        "hangs": (RunError, r"a DataLoader worker hangs .*dataset\.timeout_seconds waits longer"),
        "bad image": (ImageError, r"train/red/007\.png: is damaged; run `imgclf check .*check=exclude$"),
    }[fault]
    with pytest.raises(error, match=message) as raised:
        run_tiny("cache=off", "dataset.num_workers=2", "dataset.timeout_seconds=3", folder=tmp_path / "run")
    assert fault == "bug" or "\n" not in str(raised.value)
    assert fault == "killed" or "memory ran out" not in str(raised.value)
