"""`imgclf export MODEL`: write a checkpoint as a file that answers without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imgclf.console import CommandParser, run_command
from imgclf.malloc import tune_malloc

__all__ = ["main"]

EPILOG = """
MODEL is a run's folder, a checkpoint file, or latest (the newest run that
finished here). The file holds everything from uint8 images to probabilities,
its classes and its preprocessing; imgclf predict, imgclf.load and any other
ONNX runtime take it. It is written after it has given the checkpoint's answers
for 16 images of the run.

examples:
  imgclf export latest
  imgclf export latest --folder cards_model
  imgclf export latest --page cards_page --samples

exit code: 0 written; 2 a model or an option can't be used, nothing is written
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a checkpoint; returns 2 where it can't be exported."""
    parser = CommandParser(
        prog="imgclf export",
        description="Write a checkpoint as an ONNX file that answers without torch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="the run, checkpoint or latest")
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", help="where to (default: beside the checkpoint)")
    parser.add_argument(
        "--half", action="store_true", help="store the weights in fp16: half the size, computed in fp32"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="write a folder that runs without imgclf: model, script, model card",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FOLDER", help="write a web page on which the model runs in the browser"
    )
    parser.add_argument("--samples", action="store_true", help="publish an image of each class on the page")
    options = parser.parse_args(arguments)
    if sum(bool(place) for place in (options.out, options.folder, options.page)) > 1:
        parser.error("--out, --folder and --page: pass one of them; each holds the model")
    if options.samples and not (options.folder or options.page):
        parser.error("--samples goes with --page or --folder")
    if options.out and options.out.suffix.lower() != ".onnx":
        parser.error(f"--out {options.out}: expected the name of a file that ends in .onnx")
    tune_malloc()
    return run_command(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    if options.folder:
        from imgclf.exporting.folder import export_folder  # here, because it loads torch

        export_folder(options.model, options.folder, options.half, options.samples)
        return 0
    if options.page:
        from imgclf.exporting.folder import export_page

        export_page(options.model, options.page, options.half, options.samples)
        return 0
    from imgclf.exporting.run import export_checkpoint  # here, because it loads torch

    export_checkpoint(options.model, options.out, options.half)
    return 0


if __name__ == "__main__":
    sys.exit(main())
