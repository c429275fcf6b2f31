"""`python -m imgclf.predict best.ckpt PATH...`: what a checkpoint says of pictures."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imgclf.allocator import keep_memory
from imgclf.errors import ImgclfError

if TYPE_CHECKING:
    from imgclf.predictor import Predictor

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the class of each picture; returns 1 if one of them couldn't be read, 2 for a checkpoint that can't be used."""
    options = _parser().parse_args(arguments)
    keep_memory()
    from imgclf.predictor import load  # here, because it loads torch

    try:
        predictor = load(options.checkpoint, options.device, options.engine, options.precision)
        bad = 0
        write = _CSV(predictor) if options.csv else _Table(predictor)
        for name, probabilities, error in predictor.stream(options.paths, errors="return"):
            if error is None:
                write(name, probabilities)
            else:
                bad += 1
                print(f"imgclf: {error}", file=sys.stderr, flush=True)
    except ImgclfError as error:
        print(f"imgclf: {error}", file=sys.stderr)
        return error.exit_code
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imgclf.predict", description="Print the class of each picture.")
    parser.add_argument("checkpoint", help="a best.ckpt that imgclf.train wrote")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, and folders of pictures")
    parser.add_argument("--csv", action="store_true", help="file, predicted, and the probability of each class")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument("--engine", default="auto", choices=("auto", "eager", "openvino"),
                        help="what runs the network (default: openvino, if installed, from 1000 pictures on)")  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="default: fp32")
    return parser


class _CSV:
    """A row a picture on stdout, as it is answered: file, predicted, then a column a class."""

    def __init__(self, predictor: Predictor) -> None:
        self.classes, self.writer = predictor.classes, csv.writer(sys.stdout, lineterminator="\n")
        self.writer.writerow(["file", "predicted", *self.classes])

    def __call__(self, name: str, probabilities: Any) -> None:
        values = [f"{value:.7g}" for value in probabilities.tolist()]
        self.writer.writerow([name, self.classes[int(probabilities.argmax())], *values])


class _Table:
    """A line a picture: its three most probable classes, then its name."""

    def __init__(self, predictor: Predictor) -> None:
        self.classes, self.width = predictor.classes, max(map(len, predictor.classes))

    def __call__(self, name: str, probabilities: Any) -> None:
        best = probabilities.argsort()[::-1][:3]
        cells = [f"{self.classes[i]:<{self.width}} {probabilities[i]:6.1%}" for i in best]
        print("   ".join([*cells, name]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
