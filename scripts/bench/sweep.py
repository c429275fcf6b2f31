"""Time a sweep of frozen features against the same trials as separate runs, each with an empty cache of its own.

    python scripts/bench/sweep.py --data <sports folder> --weights <mobilenetv2 safetensors> --out sweep.json

Wall times of whole commands; the sweep's cache is empty at the start too. One run each: the two take minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

RATES, SEEDS = ("1e-4", "3e-4", "1e-3", "3e-3"), ("0", "1", "2")
SETTINGS = (
    "dataset=sports",
    "model=mobilenetv2",
    "model.freeze=all",
    "dataset.augment=null",
    "callbacks=none",
    "trainer=cpu",
    "report=false",
)


def main() -> None:
    """Run both, compare their results, and write and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = (f"data_dir='{options.data.absolute()}'", f"model.weights='{options.weights.absolute()}'")
    command = [sys.executable, "-m", "imgclf.train", *SETTINGS, *files, f"trainer.max_epochs={options.epochs}"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        grid = [f"optimizer.lr={','.join(RATES)}", f"seed={','.join(SEEDS)}"]
        sweep = [*command, *grid, f"hydra.sweep.dir={root / 'sweep'}", "-m"]
        seconds = {"sweep": timed(sweep, root / "shared")}
        seconds["same sweep again"] = timed(sweep, root / "shared")
        separate = []
        for rate, seed in product(RATES, SEEDS):
            run = [f"optimizer.lr={rate}", f"seed={seed}", f"hydra.run.dir={root / f'run-{rate}-{seed}'}"]
            separate.append(timed([*command, *run], root / f"cache-{rate}-{seed}"))
        compare_losses(root)
    seconds["separate runs"] = sum(separate)
    result = {"trials": len(separate), "epochs": options.epochs, "seconds": seconds, "each separate run": separate}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(seconds, indent=2), f"{seconds['separate runs'] / seconds['sweep']:.1f}x")


def compare_losses(root: Path) -> None:
    """Fail unless every trial of the sweep has the validation loss of its separate run."""
    trials = sorted((root / "sweep").glob("*/metrics.json"))
    assert len(trials) == len(RATES) * len(SEEDS), f"{len(trials)} trials have results"
    for path in trials:
        settings = json.loads((path.parent / "trial.json").read_text())["settings"]
        rate = next(rate for rate in RATES if float(rate) == settings["optimizer"]["lr"])
        twin = root / f"run-{rate}-{settings['seed']}" / "metrics.json"
        ours, theirs = (json.loads(file.read_text())["val"]["loss"] for file in (path, twin))
        assert abs(ours - theirs) < 1e-4, (path, ours, theirs)


def timed(command: list[str], cache: Path) -> float:
    """Return the wall time of a command with `cache` as its cache folder."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "IMGCLF_CACHE": str(cache)})
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
