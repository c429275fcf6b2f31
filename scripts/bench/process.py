"""Run imgclf and its peers, each in a process of its own as a user would start it, with its wall time and peak memory."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgclf.config import RunConfig
    from imgclf.data.datamodule import ImageDataModule

__all__ = ["Bench", "Run", "run_process"]

Run = dict[str, Any]  # plain data: who, variant, and what was measured or why it failed
HERE = Path(__file__).parent
PROC = Path("/proc")
POLL_SECONDS = 0.2
TIMEOUT_SECONDS = 4 * 3600
# Script of each peer, and the virtual environment that it runs in; None is imgclf's own.
PEERS = {
    "keras": ("keras_peer.py", "keras"),
    "fastai": ("fastai_peer.py", "fastai"),
    "timm_loop": ("timm_loop.py", None),
    "lightning_plain": ("lightning_plain.py", None),
}
IMPORTS = {
    "imgclf": "imgclf.training.run",
    "keras": "keras",
    "fastai": "fastai.vision.all, timm",
    "timm_loop": "timm",
    "lightning_plain": "pytorch_lightning, torchvision",
}
# What --quick changes: a run of two batches.
TOY = (
    "dataset.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
)


class Failed(Exception):
    """A process ended with an error; the text is the last line that it wrote."""


@dataclass(frozen=True)
class Finished:
    """`seconds` of wall time, and the peaks in MiB: `anonymous` without mapped files, which the system can drop at any
    time, and `resident` with them (and with pages that processes share, once each). Both are 0 where there is no /proc.
    """

    seconds: float
    anonymous: float
    resident: float
    stdout: str

    def answer(self) -> Run:
        """Return the JSON object on the last line of stdout; raises `Failed` if there is none."""
        lines = self.stdout.strip().splitlines() or [""]
        try:
            return dict(json.loads(lines[-1]))
        except (ValueError, TypeError):
            raise Failed(f"no JSON on the last line: {lines[-1][:200]}") from None

    def costs(self) -> dict[str, float]:
        """Return wall_seconds, anonymous_mib and resident_mib, rounded for the results file."""
        return {
            "wall_seconds": round(self.seconds, 3),
            "anonymous_mib": round(self.anonymous, 1),
            "resident_mib": round(self.resident, 1),
        }


class Bench:
    """One series of measurements. `work` is a folder that is deleted afterwards; `quick` makes every job tiny."""

    def __init__(
        self, data: Path, work: Path, venvs: Path, weights: Path | None, repeats: int, peer_epochs: int, quick: bool
    ) -> None:
        self.data, self.work, self.venvs, self.weights = data, work, venvs, weights
        self.repeats, self.peer_epochs, self.quick = 1 if quick else repeats, 1 if quick else peer_epochs, quick
        self._numbers, self._warm = count(), set[str]()

    def new(self, name: str) -> Path:
        """Return a path of its own in `work`; nothing is there yet."""
        return self.work / f"{next(self._numbers):03d}_{name}"

    def overrides(self, experiment: str, more: Sequence[str] = (), data_dir: Path | None = None) -> list[str]:
        """Return what a user types for an experiment; without a `data_dir` its data set lies in `data`."""
        chosen = [f"experiment={experiment}", *more, "model.pretrained=false"]
        if data_dir is None:
            data_dir = self.data / _config(chosen).dataset.name
        chosen.append(f'data_dir="{data_dir.absolute()}"')
        return [*chosen, *TOY] if self.quick else chosen

    def prepare(self, overrides: Sequence[str]) -> Run:
        """Return the job of an experiment as the peers take it. Its images are laid out in class folders and read once,
        so that disks are not compared.
        """
        job, data = _peer_job(_config(overrides))
        root = data.root if job["csv"] else _link_images(data, self.new("images"))
        for path in (path for path in root.rglob("*") if path.is_file()):
            path.read_bytes()
        return {**job, "root": str(root)}

    def attempt(self, who: str, variant: str, measure: Callable[..., Run], *arguments: Any, **options: Any) -> Run:
        """Return what `measure` returns, with `who` and `variant`; a failure becomes a result too, so that the series
        continues.
        """
        print(f"  {who} {variant}".rstrip(), end=": ", flush=True)
        try:
            result = measure(*arguments, **options)
        except (Failed, OSError, subprocess.CalledProcessError, KeyError, ValueError) as error:
            result = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
        seconds = result.get("fit_seconds", result.get("wall_seconds"))
        done = f"{seconds:.1f} s" if isinstance(seconds, float) else "done"
        print(f"failed: {result['failed']}" if "failed" in result else done, flush=True)
        return {"who": who, "variant": variant, **result}

    def imgclf(self, overrides: Sequence[str], cache: Path, images: int) -> Run:
        """Train by the command line, and read the results from the run's folder."""
        self._warm_up("imgclf", sys.executable)
        folder = self.new("run")
        last = ("report=false", f'hydra.run.dir="{folder}"')
        done = self.command(["-m", "imgclf.train", *overrides, *self._weights(overrides), *last], cache)
        environment = json.loads((folder / "environment.json").read_text())
        with open(folder / "history.csv", newline="") as file:
            epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
        return {
            **done.costs(),
            "fit_seconds": environment["seconds"]["fit"],
            "seconds": environment["seconds"],
            "epoch_seconds": epochs,
            "epochs": len(epochs),
            "folder": str(folder),
            "images_per_second": images / median(epochs[1:] or epochs),
            "forwards": environment.get("forwards", {}).get("pictures"),
        }

    def peer(self, who: str, job: Run, **changes: Any) -> Run:
        """Run a peer's script. `fit_seconds` and `wall_seconds` are for all epochs of the job: each epoch that did not
        run counts as the median of the epochs after the first; `measured_epochs` is how many ran.
        """
        script, venv = PEERS[who]
        python = str(self.python(venv)) if venv else sys.executable
        self._warm_up(who, python)
        out = self.new("out")
        out.mkdir()
        job = {**job, "out": str(out), **changes}
        epochs = job["epochs"] if job["task"] == "fit" else 1
        job["epochs"] = min(epochs, self.peer_epochs)
        done = run_process([python, str(HERE / "peers" / script), json.dumps(job)], cwd=self.work)
        answer, costs = done.answer(), done.costs()
        shutil.rmtree(out)
        left = max(0, epochs - job["epochs"]) * median(answer["epoch_seconds"][1:] or answer["epoch_seconds"])
        return {
            **answer,
            **costs,
            "fit_seconds": answer["fit_seconds"] + left,
            "wall_seconds": costs["wall_seconds"] + left,
            "epochs": epochs,
            "measured_epochs": job["epochs"],
        }

    def worker(self, script: str, job: Run, env: Mapping[str, str] | None = None) -> Run:
        """Return the answer of a script of `peers/` that runs in imgclf's own environment."""
        return run_process([sys.executable, str(HERE / "peers" / script), json.dumps(job)], env=env).answer()

    def command(self, words: Sequence[str], cache: Path | None = None, may_fail: bool = False) -> Finished:
        """Run Python with `words`, for imgclf with a cache folder of its own."""
        env = {"IMGCLF_CACHE": str(cache or self.work / "cache")}
        return run_process([sys.executable, *words], env=env, cwd=self.work, may_fail=may_fail)

    def python(self, venv: str) -> Path:
        """Return the interpreter of a peer's virtual environment; a missing one is made from the pinned requirements."""
        folder = self.venvs / venv
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            requirements = HERE / "requirements" / f"{venv}.txt"
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        return python

    def _warm_up(self, who: str, python: str) -> None:
        """Import the libraries once, so that no measured process reads them from disk."""
        if who not in self._warm:
            run_process([python, "-c", f"import {IMPORTS[who]}"], env={"TF_CPP_MIN_LOG_LEVEL": "3"})
            self._warm.add(who)

    def _weights(self, overrides: Sequence[str]) -> list[str]:
        if self.weights is None:
            return []
        backbone = _config(overrides).model.backbone.removeprefix("tf_")
        files = sorted(path for path in self.weights.glob("*.safetensors") if backbone in path.name)
        return [f'model.weights="{files[0].absolute()}"'] if files else []


def run_process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, may_fail: bool = False
) -> Finished:
    """Run `command` with `env` on top of this environment; raises `Failed` unless it exits with 0, or `may_fail`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        full = {**os.environ, **(env or {})}
        began = perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd, env=full)
        peaks = [0.0, 0.0]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch_memory, args=(process.pid, peaks, ended), daemon=True)
        watcher.start()
        try:
            code = process.wait(TIMEOUT_SECONDS)
            seconds = perf_counter() - began
        except subprocess.TimeoutExpired:
            raise Failed(f"still running after {TIMEOUT_SECONDS:.0f} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            ended.set()
            watcher.join()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    if code and not may_fail:
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        raise Failed(lines[-1][:300] if lines else f"exit code {code}")
    return Finished(seconds, peaks[0], peaks[1], texts[0])


def _watch_memory(pid: int, peaks: list[float], ended: threading.Event) -> None:
    while True:
        for position, value in enumerate(_memory(pid)):
            peaks[position] = max(peaks[position], value)
        if ended.wait(POLL_SECONDS):
            return


def _memory(pid: int) -> tuple[float, float]:
    """Return the anonymous and the resident MiB of a process and of all processes below it, now."""
    if not PROC.is_dir():
        return 0.0, 0.0
    status = {int(folder.name): _status(folder) for folder in PROC.iterdir() if folder.name.isdecimal()}
    family, grown = {pid}, True
    while grown:
        below = {child for child, values in status.items() if values.get("PPid") in family}
        grown = not below <= family
        family |= below
    members = [status.get(member, {}) for member in family]
    anonymous, resident = (sum(values.get(key, 0) for values in members) / 1024 for key in ("RssAnon", "VmRSS"))
    return anonymous, resident


def _status(folder: Path) -> dict[str, int]:
    """Return PPid, RssAnon and VmRSS (kB) of one process; nothing if it has ended meanwhile."""
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {key: int(value.split()[0]) for key, value in pairs if key in ("PPid", "RssAnon", "VmRSS")}


def _config(overrides: Sequence[str]) -> "RunConfig":
    """Return the settings that `imgclf train <overrides>` has."""
    from imgclf.cli.compose import compose_config
    from imgclf.config import RunConfig

    config = compose_config("train", overrides)
    assert isinstance(config, RunConfig)
    return config


def _peer_job(config: "RunConfig") -> tuple[Run, "ImageDataModule"]:
    """Return what a peer needs to do the same, with the parameter counts that its network must have; and the data."""
    from imgclf.models.network import build_network, count_parameters  # here: the page and --help need no torch
    from imgclf.training.build import data_of

    data, size = data_of(config), config.image_size
    assert size is not None, "the jobs of the bench state their image size"
    batch = data.batch_size
    network = build_network(config.model, len(data.classes), 3, size)
    limits = {}
    for split in ("train", "val"):
        limit, images = getattr(config.trainer, f"limit_{split}_batches"), len(data.samples[split])
        # No limit where there are fewer images.
        limits[split] = limit if limit and limit * batch < images else None
    job = {
        "task": "fit",
        "model": config.model.to_dict(),
        "optimizer": config.optimizer.to_dict(),
        "image_size": size,
        "batch_size": batch,
        "augment": data.augment.to_dict() if data.augment else None,
        "steps": limits["train"],
        "val_steps": limits["val"],
        "epochs": config.trainer.max_epochs,
        "parameters": list(count_parameters(network)),
        "images": limits["train"] * batch if limits["train"] else len(data.samples["train"]),
        "classes": len(data.classes),
        "csv": data.samples["train"].pixels is not None,
    }
    return job, data


def _link_images(data: "ImageDataModule", root: Path) -> Path:
    """Make `root`/{train,val,test}/<class>/ with a link to each image of imgclf's own splits."""
    for split, samples in data.samples.items():
        for number, (item, target) in enumerate(zip(samples.items, samples.targets, strict=True)):
            folder = root / split / samples.classes[target].replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}{Path(item).suffix.lower()}").symlink_to(Path(item).absolute())
    return root
