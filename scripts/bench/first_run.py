"""Time what the README's first command trains, from an empty cache, with several seeds.

    python scripts/bench/first_run.py

The demo is drawn and the modules are compiled by a first run that isn't counted. Prints the seconds of training and of the
whole command, and the correctly classified test images, of each seed, and the medians.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from process import run_process

SEEDS = (0, 1, 2)


def main() -> None:
    """Run all seeds and print the table."""
    command = [sys.executable, "-m", "imgclf.train", "experiment=cards_demo"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run_process([*command, "trainer.max_epochs=1", f"hydra.run.dir='{root / 'warm_up'}'"])
        rows = []
        for seed in SEEDS:
            folder = root / str(seed)
            done = run_process([*command, f"seed={seed}", f"hydra.run.dir='{folder}'"])
            test = json.loads((folder / "metrics.json").read_text())["test"]
            seconds = json.loads((folder / "environment.json").read_text())["seconds"]
            rows.append((seconds["fit"], done.seconds))
            print(f"seed {seed}: training {seconds['fit']:.1f} s, command {done.seconds:.1f} s, ", end="")
            print(f"test {test['correct']} of {test['count']}", flush=True)
    training, whole = (median(column) for column in zip(*rows, strict=True))
    print(f"median: training {training:.1f} s, command {whole:.1f} s")


if __name__ == "__main__":
    main()
