"""How imgclf and its peers are run: each a process of its own, as a user would start it."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from measure import Failed, Finished, run
from presets import link_tree, peer_job, settings_of

__all__ = ["Bench", "Run"]

Run = dict[str, Any]  # plain data: who, variant, and what was measured, or why it failed
HERE = Path(__file__).parent
PEERS = {  # script, and the virtual environment that it runs in; None is imgclf's own
    "keras": ("keras_peer.py", "keras"),
    "fastai": ("fastai_peer.py", "fastai"),
    "timm_loop": ("timm_loop.py", None),
    "lightning_plain": ("lightning_plain.py", None),
}
IMPORTS = {"imgclf": "imgclf.training.run", "keras": "keras", "fastai": "fastai.vision.all, timm", "timm_loop": "timm",
           "lightning_plain": "pytorch_lightning, torchvision"}  # fmt: skip


class Bench:
    """One series of measurements. `work` is a folder that is deleted afterwards, `quick` makes every job tiny."""

    def __init__(self, data: Path, work: Path, venvs: Path, weights: Path | None = None, repeats: int = 3,
                 peer_epochs: int = 3, quick: bool = False) -> None:  # fmt: skip
        self.data, self.work, self.venvs, self.weights = data, work, venvs, weights
        self.repeats, self.peer_epochs, self.quick = 1 if quick else repeats, 1 if quick else peer_epochs, quick
        self._numbers, self._warm = count(), set[str]()

    def new(self, name: str) -> Path:
        """A path of its own in `work`; nothing is there yet."""
        return self.work / f"{next(self._numbers):03d}_{name}"

    def overrides(self, experiment: str, more: Sequence[str] = (), data_dir: Path | None = None) -> list[str]:
        """What the user types for a preset; without a `data_dir` its data set lies in `data`."""
        chosen = [f"experiment={experiment}", *more, "model.pretrained=false"]
        if data_dir is None:
            data_dir = self.data / settings_of(chosen)["dataset"]["name"]
        chosen.append(f'data_dir="{data_dir.absolute()}"')
        if self.quick:
            chosen += ["dataset.batch_size=8", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
                       "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]  # fmt: skip
        return chosen

    def prepare(self, overrides: Sequence[str]) -> Run:
        """What peers are told about a preset, the pictures laid out for them and read once: disks are not compared."""
        job, data = peer_job(settings_of(overrides))
        root = data.root if job["csv"] else link_tree(data, self.new("pictures"))
        for path in (path for path in root.rglob("*") if path.is_file()):
            path.read_bytes()
        return {**job, "root": str(root)}

    def imgclf(self, overrides: Sequence[str], cache: Path, pictures: int, variant: str) -> Run:
        """Train by the command line, and read what the run's folder says."""
        self._warm_up("imgclf", sys.executable)
        folder = self.new("run")
        weights = self._weights_of(overrides)
        command = [
            sys.executable,
            "-m",
            "imgclf.train",
            *overrides,
            *weights,
            "report=false",
            f'hydra.run.dir="{folder}"',
        ]
        done = self.to_dict(command, cache)
        environment = json.loads((folder / "environment.json").read_text())
        with open(folder / "history.csv", newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        said = [line for line in done.stdout.splitlines() if line.startswith(("training on features", "engine:"))]
        return {"who": "imgclf", "variant": variant, **done.costs(), "fit_seconds": environment["seconds"]["fit"],
                "seconds": environment["seconds"], "epoch_seconds": seconds, "epochs": len(seconds), "folder": str(folder),
                "images_per_second": pictures / median(seconds[1:] or seconds), "said": said,
                "forwards": environment.get("forwards", {}).get("pictures")}  # fmt: skip

    def peer(self, who: str, job: Run, **changes: Any) -> Run:
        """Run a peer's script. `fit_seconds` and `wall_seconds` are for all of the job's epochs: those that were left out
        count as the median of those behind the first; `measured_epochs` says how many ran.
        """
        script, venv = PEERS[who]
        python = str(self.python(venv)) if venv else sys.executable
        self._warm_up(who, python)
        out = self.new("out")
        out.mkdir()
        job = {**job, "out": str(out), **changes}
        epochs = job["epochs"] if job["task"] == "fit" else 1
        job["epochs"] = min(epochs, self.peer_epochs)
        done = run([python, str(HERE / "peers" / script), json.dumps(job)], cwd=self.work)
        answer, costs = done.answer(), done.costs()
        shutil.rmtree(out)
        left = max(0, epochs - job["epochs"]) * median(answer["epoch_seconds"][1:] or answer["epoch_seconds"])
        return {"who": who, "variant": "", **answer, **costs, "fit_seconds": answer["fit_seconds"] + left,
                "wall_seconds": costs["wall_seconds"] + left, "epochs": epochs,
                "measured_epochs": job["epochs"]}  # fmt: skip

    def to_dict(self, command: Sequence[str], cache: Path | None = None, may_fail: bool = False) -> Finished:
        """Run a command of imgclf with a cache folder of its own."""
        env = {"IMGCLF_CACHE": str(cache or self.work / "cache")}
        return run(command, env=env, cwd=self.work, may_fail=may_fail)

    def guarded(self, who: str, variant: str, measure: Callable[[], Run]) -> Run:
        """What `measure` returns; a failure becomes a result too, so that the series goes on."""
        print(f"  {who} {variant}".rstrip(), end=": ", flush=True)
        try:
            result = measure()
        except (Failed, OSError, subprocess.CalledProcessError, KeyError, ValueError) as error:
            result = {
                "who": who,
                "variant": variant,
                "failed": " ".join(str(error).split())[:300] or type(error).__name__,
            }
        seconds = result.get("fit_seconds", result.get("wall_seconds"))
        print(
            f"failed: {result['failed']}"
            if "failed" in result
            else f"{seconds:.1f} s"
            if isinstance(seconds, float)
            else "done",
            flush=True,
        )
        return result

    def python(self, venv: str) -> Path:
        """The interpreter of a peer's virtual environment, which is made from the pinned requirements if it isn't there."""
        folder = self.venvs / venv
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            requirements = HERE / "requirements" / f"{venv}.txt"
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        return python

    def _warm_up(self, who: str, python: str) -> None:
        """Import what will be imported, so that nobody pays for reading the libraries from disk."""
        if who not in self._warm:
            run([python, "-c", f"import {IMPORTS[who]}"], env={"TF_CPP_MIN_LOG_LEVEL": "3"})
            self._warm.add(who)

    def _weights_of(self, overrides: Sequence[str]) -> list[str]:
        if self.weights is None:
            return []
        backbone = settings_of(overrides)["model"]["backbone"].removeprefix("tf_")
        found = sorted(path for path in self.weights.glob("*.safetensors") if backbone in path.name)
        return [f'model.weights="{found[0].absolute()}"'] if found else []
