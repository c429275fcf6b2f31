"""`python -m imgclf.predict best.ckpt PATH...`: what a checkpoint says of pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf.cli.malloc import tune_malloc
from imgclf.console import run_command
from imgclf.errors import ConfigError

if TYPE_CHECKING:
    from imgclf.inference.inputs import Picture
    from imgclf.inference.predictor import Predictor

__all__ = ["main"]

EPILOG = """
A PATH is a picture, a folder of pictures, a CSV of pixels, an http(s) address, or - for a list of these on stdin, a line each.

exit code: 0 all pictures were answered, 1 some couldn't be read (they are named in the end), 2 nothing could be done
"""
TIMEOUT_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for each picture; returns 1 if one of them couldn't be read, 2 for a checkpoint that can't be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    checkpoint, paths = (None, options.paths) if options.imagenet else (options.paths[0], options.paths[1:])
    if not paths and options.webcam is None:
        parser.error("no PATH is given: pass pictures, folders, addresses, or - for a list on stdin")
    tune_malloc()
    return run_command(lambda: _predict(options, checkpoint, paths))


def _predict(options: argparse.Namespace, checkpoint: str | None, paths: Sequence[str]) -> int:
    predictor = _predictor(options, checkpoint)
    if options.webcam is not None:
        return _watch(predictor, options)
    return _answer(predictor, options, _pictures(predictor, options, paths))


def _predictor(options: argparse.Namespace, checkpoint: str | None) -> Predictor:
    if options.imagenet:
        from imgclf.inference.imagenet import load_imagenet  # here, because these load torch

        if options.tta:
            raise ConfigError("--tta needs a checkpoint, whose data set says which mirror images show the same")
        name = _backbone(options.imagenet)
        return load_imagenet(name, options.weights, options.device, options.engine, options.precision)
    if options.weights:
        raise ConfigError("--weights goes with --imagenet; a checkpoint has its own")
    from imgclf.inference.predictor import load

    assert checkpoint is not None
    return load(checkpoint, options.device, options.engine, options.precision, options.tta)


def _backbone(name: str) -> str:
    """timm's name for what `model=<name>` would take."""
    import yaml

    from imgclf.cli.hydra_app import CONF

    known = CONF / "model" / f"{name}.yaml"
    values = yaml.safe_load(known.read_text(encoding="utf-8")) if known.is_file() else {}
    return str(values.get("backbone", name))


def _pictures(predictor: Predictor, options: argparse.Namespace, paths: Sequence[str]) -> list[Picture]:
    from imgclf.inference.inputs import list_inputs, sample_inputs

    words: list[str] = []
    for path in paths:
        words += [line for raw in sys.stdin if (line := raw.rstrip("\r\n"))] if path == "-" else [path]
    pictures = list_inputs(
        words, predictor.classes, _label_names(predictor, words), options.allow_private, options.timeout
    )
    return pictures if options.sample is None else sample_inputs(pictures, options.sample, options.seed)


def _label_names(predictor: Predictor, words: Sequence[str]) -> dict[str, str]:
    """What the labels in a CSV stand for, as the checkpoint's data set says."""
    config = predictor.trained.metadata.config or {}
    if not config or not any(word.lower().endswith(".csv") for word in words):
        return {}
    from imgclf.data import datamodule_class  # here, because it loads Lightning

    splits = config["dataset"].get("splits") or datamodule_class(config["dataset"]["name"]).splits
    return dict((splits.get("train") or {}).get("label_names") or {})


def _answer(predictor: Predictor, options: argparse.Namespace, pictures: list[Picture]) -> int:
    """Hand every answer to whoever was asked for; what couldn't be read is named in the end."""
    from imgclf.inference import writers as showing
    from imgclf.progress import progress_bar

    write: Any = showing.Table(predictor.classes, options.top, options.threshold)
    if options.csv:
        write = showing.CSVRows(predictor.classes, options.threshold)
    elif options.json:
        write = showing.JSONLines(predictor.classes, options.top, options.threshold)
    takers: list[Any] = []
    if options.grid:
        takers.append(showing.Grid(options.grid, predictor, options.threshold, options.explain is not None))
    if options.save_to:
        takers.append(showing.SortedCopies(options.save_to, predictor.classes, options.threshold))
    if options.explain:
        takers.append(showing.Maps(options.explain, predictor))
    errors: list[str] = []
    with progress_bar("predicting", len(pictures), shown=not sys.stdout.isatty()) as advance:
        for answered in predictor.answer(pictures, len(pictures)):
            advance(1)
            if answered.error is not None:
                errors.append(str(answered.error))
            if answered.error is None or options.json:
                write(answered)
            if answered.error is None:
                for take in takers:
                    take(answered)
    sys.stdout.flush()
    for taker in takers:
        print(f"imgclf: {taker.finish()}", file=sys.stderr)
    for error in errors:
        print(f"imgclf: {error}", file=sys.stderr)
    if errors and len(pictures) > 1:
        print(f"imgclf: {len(errors):,} of {len(pictures):,} pictures couldn't be read", file=sys.stderr)
    return 1 if errors else 0


def _watch(predictor: Predictor, options: argparse.Namespace) -> int:
    """A line a second on what a camera, or a video file, shows; until its end or Ctrl-C."""
    import cv2

    from imgclf.inference import writers as showing
    from imgclf.inference.inputs import Picture

    source = int(options.webcam) if options.webcam.isdecimal() else options.webcam
    camera, write = cv2.VideoCapture(source), showing.Table(predictor.classes, options.top, options.threshold)
    if not camera.isOpened():
        raise ConfigError(f"--webcam {source}: there is no such camera or video file; 0 is the first camera")
    count, last, began = 0, -1, time.monotonic()
    try:
        while True:
            there, frame = camera.read()
            if not there:
                break
            # A film has a clock of its own, a camera doesn't always.
            passed = camera.get(cv2.CAP_PROP_POS_MSEC) / 1000 if isinstance(source, str) else time.monotonic() - began
            second = int(passed)
            if second != last:
                last, count = second, count + 1
                name = f"{second // 60:02d}:{second % 60:02d}"
                for answered in predictor.answer([Picture(name, frame[:, :, ::-1].copy())]):
                    write(answered)
    finally:
        camera.release()
    if not count:
        raise ConfigError(f"--webcam {source}: not a single frame came")
    return 0


def _at_least(least: float, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least:g}")
        return value

    number.__name__ = kind.__name__  # what argparse calls it
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imgclf.predict", usage="imgclf.predict [options] best.ckpt PATH...\n       "
        "imgclf.predict [options] --imagenet NAME PATH...", description="Say what pictures show.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a best.ckpt that imgclf.train wrote, then pictures")
    lines = parser.add_mutually_exclusive_group()
    lines.add_argument(
        "--csv", action="store_true", help="to stdout: file, predicted, and the probability of each class"
    )
    lines.add_argument("--json", action="store_true", help="to stdout: an object a picture")
    parser.add_argument("--top", type=_at_least(1, int), default=3, metavar="K", help="classes a picture (default: 3)")
    parser.add_argument("--threshold", type=_at_least(0, float), default=0.0, metavar="P",
                        help="say 'unsure' where the most probable class has less, such as 0.8")  # fmt: skip
    parser.add_argument("--grid", type=Path, metavar="FILE.png", help="draw the pictures, titled with what was said")
    parser.add_argument("--save-to", type=Path, metavar="FOLDER", help="copy each picture into a folder of its class")
    parser.add_argument("--explain", type=Path, metavar="FOLDER", help="draw what in each picture spoke for its class")
    parser.add_argument("--sample", type=_at_least(1, int), metavar="N", help="take N of the pictures at random")
    parser.add_argument("--seed", type=_at_least(0, int), default=0, help="of --sample (default: 0)")
    parser.add_argument("--tta", action="store_true", help="the mean over the mirror images that show the same")
    parser.add_argument(
        "--imagenet", metavar="NAME", help="a network's own ImageNet classes, untrained: mobilenetv2, ..."
    )
    parser.add_argument("--weights", metavar="FILE", help="of --imagenet (default: those on the hub)")
    parser.add_argument(
        "--webcam", nargs="?", const="0", metavar="CAMERA", help="watch a camera (0, 1, ...) or video file"
    )
    parser.add_argument(
        "--allow-private", action="store_true", help="fetch from addresses of this machine and network too"
    )
    parser.add_argument("--timeout", type=_at_least(0.1, float), default=TIMEOUT_SECONDS, metavar="SECONDS",
                        help="for each web address in all (default: 20)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument("--engine", default="auto", choices=("auto", "eager", "openvino"),
                        help="what runs the network (default: openvino, if installed, from 1000 pictures on)")  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="default: fp32")
    return parser


if __name__ == "__main__":
    sys.exit(main())
