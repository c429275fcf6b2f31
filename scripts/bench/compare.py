"""`python scripts/bench/compare.py --data DIR`: imgclf against its peers on the jobs of `jobs.py`, one after the other.

Each result goes into `--out` as soon as it is there; what is there already isn't run again, unless `--again`. `page.py`
turns that file into docs/speed.md. imgclf and the torch peers run in the Python that runs this, Keras and fastai in virtual
environments of their own, made from `requirements/` where `--venvs` doesn't have them. All networks begin from random
weights, which cost the same as any.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from extras import EXTRAS
from jobs import JOBS, Fit
from measure import Measured, measure

HERE = Path(__file__).parent


class Bench:
    """Where things are, and how imgclf and a peer are run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.venvs, self.repeats, self.quick = options.data, options.venvs, options.repeats, options.quick
        self.work = Path(tempfile.mkdtemp(prefix="imgclf-bench-"))
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("IMGCLF_")}
        self.environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

    def train(self, overrides: tuple[str, ...], data: Path, cache: str, *more: str) -> tuple[Measured, dict[str, Any]]:
        """Run `imgclf.train` as a user would; returns what was measured and what environment.json and history.csv say."""
        folder = self.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "imgclf.train", *overrides, f"data_dir='{data}'", "model.pretrained=false",
                   "trainer=cpu", "report=false", f"hydra.run.dir={folder}", *more]  # fmt: skip
        measured = measure(command, {**self.environment, "IMGCLF_CACHE": str(self.work / cache)})
        if measured.code:
            raise RuntimeError(measured.last_line)
        facts = json.loads((folder / "environment.json").read_text())
        rows = (folder / "history.csv").read_text().splitlines()[1:]
        facts["epoch_seconds"] = [float(row.rpartition(",")[2]) for row in rows]
        return measured, facts

    def cold(self, cache: str) -> None:
        """Forget what is cached."""
        shutil.rmtree(self.work / cache, ignore_errors=True)

    def peer(self, script: str, venv: str | None, job: dict[str, Any]) -> tuple[Measured, dict[str, Any]]:
        """Run a script of `peers/`, and read its last line."""
        python = str(self.python(venv)) if venv else sys.executable
        measured = measure([python, str(HERE / "peers" / script), json.dumps(job)], self.environment)
        if measured.code:
            raise RuntimeError(measured.last_line)
        return measured, json.loads(measured.last_line)

    def python(self, venv: str) -> Path:
        """The interpreter of a peer's environment, which is made when it isn't there."""
        folder = self.venvs / venv
        if not (folder / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run(
                [folder / "bin" / "pip", "install", "-q", "-r", HERE / "requirements" / f"{venv}.txt"], check=True
            )
        return folder / "bin" / "python"

    def tree(self, name: str) -> tuple[Path, dict[str, int], int]:
        """The data set `name` as plain train/ and val/ class folders of links: imgclf's own pictures and splits."""
        from imgclf.data import datamodule_class

        data = datamodule_class(name)(self.data / name)
        data.setup()
        root = self.work / f"tree_{name}"
        counts = {split: len(data.samples[split]) for split in ("train", "val")}
        if not root.exists():
            for split in counts:
                samples = data.samples[split]
                for number, (item, target) in enumerate(zip(samples.items, samples.targets.tolist(), strict=True)):
                    link = root / split / samples.classes[target].replace("/", "_") / f"{number}{Path(item).suffix}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(Path(item).absolute())
        return root, counts, len(data.classes)


def compare(bench: Bench, name: str, fit: Fit) -> dict[str, Any]:
    """One training job: imgclf cold (and warm) several times, each peer once."""
    epochs, repeats = (1, 1) if bench.quick else (fit.epochs, bench.repeats)
    peer_epochs = min(epochs, fit.peer_epochs)
    length = f"trainer.max_epochs={epochs}"
    csv = bool(fit.keras.get("csv"))
    tree, counts, classes = (None, None, 24) if csv else bench.tree(fit.data)
    result: dict[str, Any] = {"epochs": epochs, "counts": counts, "cold": [], "warm": []}
    for _ in range(repeats if fit.warm or (fit.epochs > 12 and not fit.steady) or csv else 1):
        bench.cold("cache")
        measured, facts = bench.train(fit.overrides, bench.data / fit.data, "cache", length)
        result["cold"].append(entry(measured, facts))
        if fit.warm:
            measured, facts = bench.train(fit.overrides, bench.data / fit.data, "cache", length)
            result["warm"].append(entry(measured, facts))
    bench.cold("cache")
    job = {"kind": "fit", "tree": str(tree), "root": str(bench.data / fit.data), "epochs": peer_epochs, **fit.keras}
    measured, says = bench.peer("keras_peer.py", "keras", job)
    result["keras"] = peer_entry(measured, says, epochs)
    for style in fit.peers:
        job = {"style": style, "tree": str(tree), "epochs": min(peer_epochs, 2), "size": fit.keras["size"],
               "batch": fit.keras["batch"], "classes": classes}  # fmt: skip
        measured, says = bench.peer("torch_peers.py", "fastai" if style == "fastai" else None, job)
        result[style] = peer_entry(measured, says, epochs)
    return result


def entry(measured: Measured, facts: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of one of imgclf's runs."""
    return {"fit": facts["seconds"]["fit"], "whole": measured.seconds, "peak_mib": measured.peak_mib,
            "epoch_seconds": facts["epoch_seconds"], "forwards": facts.get("forwards", {}).get("pictures")}  # fmt: skip


def peer_entry(measured: Measured, says: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The same of a peer; what it wasn't given to run is added at the pace of its later epochs."""
    ran = says["epoch_seconds"]
    pace = median(ran[1:]) if len(ran) > 1 else ran[0]
    rest = (epochs - len(ran)) * pace
    return {"fit": says["fit_seconds"] + rest, "whole": measured.seconds + rest, "epoch_seconds": ran, "ran": len(ran),
            "peak_mib": measured.peak_mib, "versions": says["versions"], "parameters": says.get("parameters")}  # fmt: skip


def main() -> None:
    """Run what was asked for, job by job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, each below its name")
    parser.add_argument("--jobs", default="all", help=f"some of {','.join([*JOBS, *EXTRAS])}")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache" / "imgclf-bench")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one epoch each, to see that everything runs")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    options.data = options.data.absolute()
    bench = Bench(options)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [*JOBS, *EXTRAS] if options.jobs == "all" else options.jobs.split(","):
        if name in results and "failed" not in results[name] and not options.again:
            continue
        print(f"{name} ...", flush=True)
        try:
            results[name] = compare(bench, name, JOBS[name]) if name in JOBS else EXTRAS[name](bench)
        except (RuntimeError, json.JSONDecodeError, OSError) as error:
            results[name] = {"failed": str(error)[:300]}
        print(json.dumps(results[name])[:400], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    shutil.rmtree(bench.work, ignore_errors=True)


if __name__ == "__main__":
    main()
