"""A sweep of frozen features against the same trials as separate runs, each with an empty cache of its own.

    python scripts/bench/sweep.py --data <sports folder> --weights <mobilenetv2 safetensors> --out sweep.json

Wall times of whole commands; the sweep's cache is empty too when it begins. One run each: the two take minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES, SEEDS = ("1e-4", "3e-4", "1e-3", "3e-3"), ("0", "1", "2")


def main() -> None:
    """Run both, and write and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    command = [
        sys.executable, "-m", "imgclf.train", "dataset=sports", "model=mobilenetv2", "model.freeze=all", "report=false",
        f"data_dir='{options.data.absolute()}'", f"model.weights='{options.weights.absolute()}'",
        "dataset.augment=null", f"trainer.max_epochs={options.epochs}", "callbacks=none", "trainer=cpu",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        swept = [
            f"optimizer.lr={','.join(RATES)}",
            f"seed={','.join(SEEDS)}",
            f"hydra.sweep.dir={place / 'sweep'}",
            "-m",
        ]
        seconds = {"sweep": timed([*command, *swept], place / "shared")}
        seconds["same sweep again"] = timed([*command, *swept], place / "shared")
        cold = []
        for rate in RATES:
            for seed in SEEDS:
                run = f"hydra.run.dir={place / f'run-{rate}-{seed}'}"
                cold.append(
                    timed([*command, f"optimizer.lr={rate}", f"seed={seed}", run], place / f"cache-{rate}-{seed}")
                )
        for path in sorted(
            (place / "sweep").glob("*/metrics.json")
        ):  # the same trial gives the same figures either way
            settings = json.loads((path.parent / "trial.json").read_text())["settings"]
            twin = next(
                place / f"run-{rate}-{seed}" for rate in RATES for seed in SEEDS
                if float(rate) == settings["optimizer"]["lr"] and int(seed) == settings["seed"]
            )  # fmt: skip
            ours, theirs = (json.loads(file.read_text())["val"] for file in (path, twin / "metrics.json"))
            assert abs(ours["loss"] - theirs["loss"]) < 1e-4, (path, ours["loss"], theirs["loss"])
    seconds["separate runs"] = sum(cold)
    result = {"trials": len(cold), "epochs": options.epochs, "seconds": seconds, "each separate run": cold}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(seconds, indent=2), f"{seconds['separate runs'] / seconds['sweep']:.1f}x")


def timed(command: list[str], cache: Path) -> float:
    """The wall time of a command with `cache` as its cache."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "IMGCLF_CACHE": str(cache)})
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
