"""`imgclf predict MODEL PATH...`: classify images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgclf.config import MODEL_ENGINES
from imgclf.console import CommandParser, at_least, print_message, progress_bar, run_command
from imgclf.errors import ConfigError, ImageError
from imgclf.malloc import tune_malloc

if TYPE_CHECKING:
    from imgclf.inference import Predictor
    from imgclf.inference.inputs import InputImage
    from imgclf.inference.prediction import Prediction
    from imgclf.inference.writers import Collector, LineWriter

__all__ = ["main"]

USAGE = """imgclf predict [options] MODEL PATH...
       imgclf predict [options] --imagenet NAME PATH..."""
EPILOG = """
MODEL is a run's folder, a checkpoint file, latest (the newest run that
finished here), or a .onnx file of imgclf export, which answers fastest. PATH
is an image, a folder of images, a CSV file of pixels, an http(s) URL, or - to
read these from stdin: each line is answered as it comes, on a terminal too.

examples:
  imgclf predict latest photo.jpg
  imgclf predict outputs/cards_v3 folder_of_images --csv > predictions.csv
  imgclf predict --imagenet mobilenetv2 photo.jpg --grid grid.png

exit code: 0 all images were classified; 1 some, or all, could not be read: they
are listed at the end, with - at once; 2 a model or an option can't be used
"""
HINT = "paste a path or a link, then Enter; Ctrl-D ends"
TIMEOUT_SECONDS = 20.0
_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify images; returns 1 if some could not be read, 2 if a model or an option cannot be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.imagenet and not options.paths:
        parser.error("no model is given: pass a run's folder, a best.ckpt, latest, or --imagenet NAME")
    checkpoint = None if options.imagenet else options.paths.pop(0)
    if checkpoint and not options.paths and Path(checkpoint).suffix.lower() in _PHOTOS:
        parser.error(f"{checkpoint} is an image; the model comes first: imgclf predict latest {checkpoint}")
    if not options.paths and options.webcam is None:
        parser.error("no PATH is given: pass images, folders, URLs, or - for a list on stdin")
    tune_malloc()
    return run_command(lambda: _predict(options, checkpoint))


def _predict(options: argparse.Namespace, checkpoint: str | None) -> int:
    predictor = _load(options, checkpoint)
    if options.webcam is not None:
        return _predict_camera(predictor, options.webcam, _line_writer(options, predictor))
    live = "-" in options.paths and options.sample is None
    line_writer, collectors = _line_writer(options, predictor), _collectors(options, predictor)
    return _predict_images(predictor, _list_images(options, predictor), line_writer, collectors, live)


def _load(options: argparse.Namespace, checkpoint: str | None) -> Predictor:
    from imgclf.images import IMAGE_SUFFIXES

    if checkpoint is None:
        if options.tta:
            raise ConfigError("--tta needs a checkpoint, whose data set names its label-preserving flips")
        from imgclf.inference import load_imagenet  # here, because it loads torch

        backbone = _backbone(options.imagenet)
        return load_imagenet(backbone, options.weights, options.device, options.engine, options.precision)
    if options.weights:
        raise ConfigError("--weights goes with --imagenet; a checkpoint has its own")
    if Path(checkpoint).suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(f"{checkpoint}: an image; the model comes first: imgclf predict latest {checkpoint}")
    from imgclf.inference import load  # here, because it loads NumPy, and torch for a checkpoint

    return load(checkpoint, options.device, options.engine, options.precision, options.tta)


def _backbone(name: str) -> str:
    """Return timm's name of the backbone that `model=<name>` stands for; any other name is timm's already."""
    import yaml

    from imgclf.cli.compose import CONF

    path = CONF / "model" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(values.get("backbone", name))


def _list_images(options: argparse.Namespace, predictor: Predictor) -> Iterator[list[InputImage]]:
    """Yield the images of all paths at once, those of stdin as their lines arrive."""
    from imgclf.inference import inputs

    def listed(paths: list[str]) -> list[InputImage]:
        label_names = _label_names(predictor, paths)
        return inputs.list_inputs(paths, predictor.classes, label_names, options.allow_private, options.timeout)

    groups = _list_paths(options.paths)
    if options.sample is None:
        yield from map(listed, groups)
    else:
        yield inputs.sample_inputs(listed([path for group in groups for path in group]), options.sample, options.seed)


def _list_paths(words: Sequence[str]) -> Iterator[list[str]]:
    from imgclf.inference.inputs import read_lines

    paths = [word for word in words if word != "-"]
    if paths:
        yield paths
    if len(paths) < len(words):
        if sys.stdin and sys.stdin.isatty():
            print_message(HINT)
        yield from read_lines(sys.stdin)


def _label_names(predictor: Predictor, paths: Sequence[str]) -> dict[str, str]:
    """Return the class names of the labels in CSV files, from the data set of the checkpoint."""
    trained = predictor.model.metadata.config
    if not trained or not any(path.lower().endswith(".csv") for path in paths):
        return {}
    from imgclf.config import DatasetConfig
    from imgclf.data.datasets import datamodule_class  # here, because it loads Lightning

    dataset = DatasetConfig.from_dict(trained["dataset"])
    layout = {**datamodule_class(dataset.name).splits, **dataset.splits}.get("train")
    return dict(layout.label_names or {}) if layout else {}


def _line_writer(options: argparse.Namespace, predictor: Predictor) -> LineWriter:
    """Return what prints one line per image."""
    from imgclf.inference import writers

    kind = writers.CSVWriter if options.csv else writers.JSONWriter if options.json else writers.TableWriter
    return kind(predictor.classes, options.top, options.threshold)


def _collectors(options: argparse.Namespace, predictor: Predictor) -> list[Collector]:
    """Return what takes each prediction: for the files that the options ask for, and to count what is correct."""
    from imgclf.inference import writers

    chosen: list[Collector] = []
    if options.grid:
        with_maps = options.explain is not None
        chosen.append(writers.GridWriter(options.grid, predictor, options.threshold, with_maps))
    if options.save_to:
        chosen.append(writers.SortedCopies(options.save_to, predictor.classes, options.threshold))
    if options.explain:
        chosen.append(writers.SaliencyMaps(options.explain, predictor))
    return [*chosen, writers.Score(predictor.classes, options.threshold)]


def _predict_images(
    predictor: Predictor,
    groups: Iterable[list[InputImage]],
    line_writer: LineWriter,
    collectors: Sequence[Collector],
    live: bool,
) -> int:
    """Predict and write each image of each group; returns 1 if some could not be read.

    Their errors are printed at the end, or, if `live`, where they come.
    """
    errors: list[str] = []
    count = unread = 0
    sys.stdout.flush()  # the header of a CSV needs no image
    for images in groups:
        count += len(images)
        with progress_bar("predicting", len(images), shown=not live and not sys.stdout.isatty()) as advance:
            for prediction in predictor.predict_each(images, count):
                advance(1)
                if prediction.error is None:
                    failed = [*_write(prediction, (line_writer, *collectors))]
                else:
                    failed = [str(prediction.error)]
                    unread += prediction.pixels is None
                    if line_writer.prints_errors:
                        line_writer.write(prediction)
                errors += failed
                for line in failed if live else ():
                    print_message(line)
        sys.stdout.flush()
    counts = {"read": unread, "classified": len(errors) - unread}
    summary = [f"{n:,} of {count:,} images could not be {what}" for what, n in counts.items() if n and count > 1]
    for line in (*([] if live else errors), *summary, *(writer.finish() for writer in collectors)):
        if line:
            print_message(line)
    return 1 if errors else 0


def _write(prediction: Prediction, writers: Iterable[LineWriter | Collector]) -> Iterator[str]:
    """Hand a prediction to each writer; yields why one couldn't take it: its image has vanished since it was read."""
    for writer in writers:
        try:
            writer.write(prediction)
        except ImageError as error:
            yield str(error)


def _predict_camera(predictor: Predictor, camera: str, writer: LineWriter) -> int:
    """Predict one frame per second until the video ends, or Ctrl-C."""
    from imgclf.inference import inputs

    for frame in inputs.read_camera(camera):
        for prediction in predictor.predict_each([frame]):  # one at a time: no frame waits for a batch to fill
            writer.write(prediction)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="imgclf predict",
        usage=USAGE,
        description="Classify images with a model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="the model, then images")
    _add_input_options(parser.add_argument_group("input"))
    _add_network_options(parser.add_argument_group("network"))
    _add_output_options(parser.add_argument_group("output"))
    return parser


def _add_input_options(group: argparse._ArgumentGroup) -> None:
    add, count, seconds = group.add_argument, at_least(1, int), at_least(0.1, float, 86_400)
    add("--sample", type=count, metavar="N", help="classify N random images")
    add("--seed", type=at_least(0, int), default=0, help="seed of --sample (default: 0)")
    add("--webcam", nargs="?", const="0", metavar="CAMERA", help="one frame per second of a camera or a video")
    add("--allow-private", action="store_true", help="allow URLs of this machine and of private networks")
    default = f"total time per URL (default: {TIMEOUT_SECONDS:g})"
    add("--timeout", type=seconds, default=TIMEOUT_SECONDS, metavar="SECONDS", help=default)


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--imagenet", metavar="NAME", help="classify with the ImageNet weights of a network: mobilenetv2, ...")
    add(
        "--weights",
        metavar="FILE",
        help="weights of --imagenet (default: those in the folder $IMGCLF_WEIGHTS, else on the hub)",
    )
    add("--tta", action="store_true", help="test-time augmentation over label-preserving flips")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: auto)")
    engine = "runtime of the network; auto: openvino, if installed, on a CPU from 1,000 images on (default: auto)"
    add("--engine", default="auto", choices=MODEL_ENGINES, help=engine)
    add("--precision", default="fp32", choices=("fp32", "bf16"), help="floating-point format (default: fp32)")


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    lines = group.add_mutually_exclusive_group()
    lines.add_argument("--csv", action="store_true", help="CSV to stdout: file, predicted, probability of each class")
    lines.add_argument("--json", action="store_true", help="JSON to stdout: one object per image")
    add = group.add_argument
    add(
        "--top",
        type=at_least(1, int),
        default=3,
        metavar="K",
        help="classes to print per image, as many as fit on a terminal (default: 3)",
    )
    unsure = "predict 'unsure' if the highest probability is below P, such as 0.8"
    add("--threshold", type=at_least(0, float, 1), default=0.0, metavar="P", help=unsure)
    add("--grid", type=Path, metavar="FILE.png", help="write a grid of images titled with the prediction")
    add("--save-to", type=Path, metavar="FOLDER", help="copy each image into a folder of its predicted class")
    add("--explain", type=Path, metavar="FOLDER", help="write a saliency map (HiResCAM) per image")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if "openvino" in sys.modules:
        # Piped runs on a busy machine sometimes aborted in Python's clean-up ("terminate called without an active exception"),
        # after all was written. The cause isn't known; runs without OpenVINO never did.
        os._exit(code)
    sys.exit(code)
