"""`imgclf serve MODEL...`: an HTTP service, and a page, for one or several models."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imgclf.config import MODEL_ENGINES
from imgclf.console import CommandParser, at_least, print_lines_to_copy, print_message, run_command
from imgclf.errors import require_package
from imgclf.malloc import tune_malloc
from imgclf.names import printable

if TYPE_CHECKING:
    from imgclf.serving import ServedModel, ServeSettings

__all__ = ["main"]

USAGE = "imgclf serve [options] [NAME=]MODEL..."
EPILOG = """
MODEL is a run's folder, a checkpoint file, a file of imgclf export (which needs
no torch), or latest (the newest run that finished here). Requests choose one of
several models by NAME, by default that of the file or of the data set. The page
and /docs show how to ask.

examples:
  imgclf serve latest
  imgclf serve cards=outputs/cards_v3 hands=best.ckpt --port 9000
  curl -T photo.jpg -X POST http://127.0.0.1:8000/predict

exit code: 0 stopped by SIGTERM; 130 by SIGINT (Ctrl-C), both after the answers to
what was taken; 2 a model or an option can't be used
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns 0, or 2 if a model or an option cannot be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.models:
        parser.error("no model is given: pass a run's folder, a best.ckpt, or latest")
    tune_malloc(for_threads=True)  # `imgclf.serving.work.Batcher` computes in its own thread
    return run_command(lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        require_package(package, "serve", "imgclf serve")
    from imgclf.serving.app import Service, build_app
    from imgclf.serving.server import bind, is_private, serve, url_of

    bound = bind(options.host, options.port)  # first: a port that is taken is known before models are loaded
    settings = _settings(options, is_private(bound))
    models = _load(options)
    service = Service(models, settings)

    def ready() -> None:
        names = ", ".join(f"{printable(model.name)} ({len(model.classes)} classes)" for model in models)
        lines = {"models": names, "page": url_of(bound), "interface": f"{url_of(bound)}docs", "stop": "Ctrl-C"}
        print_lines_to_copy(lines)

    signum = serve(build_app(service), bound, settings.timeout_seconds, ready, options.open_browser)
    service.stop()
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    print_message(f"stopped by {signal.Signals(signum).name}")
    return 0


def _settings(options: argparse.Namespace, loopback: bool) -> ServeSettings:
    from imgclf.serving.settings import ServeSettings
    from imgclf.threads import available_cpus

    return ServeSettings(
        max_bytes=int(options.max_bytes),
        queue=options.queue,
        timeout_seconds=options.timeout,
        batch=options.batch,
        workers=options.workers or available_cpus(),
        threshold=options.threshold,
        allow_private=options.allow_private,
        cors=tuple(options.cors),
        loopback=loopback,
    )


def _load(options: argparse.Namespace) -> list[ServedModel]:
    """Return the models, each ready to answer; the first call of a network prepares it."""
    from imgclf.inference import load
    from imgclf.serving.models import ServedModel, choose_names, split_name

    given = [split_name(text) for text in options.models]
    paths = [path for _, path in given]
    predictors = [load(path, options.device, options.engine, options.precision) for path in paths]
    names = choose_names([name for name, _ in given], paths, predictors)
    models = [ServedModel(name, predictor) for name, predictor in zip(names, predictors, strict=True)]
    for model in models:
        model.warm_up()
    return models


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="imgclf serve",
        usage=USAGE,
        description="Serve models over HTTP, with a page to try them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="[NAME=]MODEL", help="one or several models")
    _add_access_options(parser.add_argument_group("access"))
    _add_limits(parser.add_argument_group("limits"))
    _add_network_options(parser.add_argument_group("network"))
    return parser


def _add_access_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    host = "address to serve at; 0.0.0.0 lets other machines ask, without any password (default: 127.0.0.1)"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=at_least(0, int, 65_535), default=8000, help="0 takes a free one (default: 8000)")
    add("--open-browser", action="store_true", help="open the page in the browser")
    add("--allow-private", action="store_true", help="fetch addresses of this machine and of private networks too")
    cors = "let pages of another origin ask, such as https://example.org; may be given several times, * is any"
    add("--cors", action="append", default=[], metavar="ORIGIN", help=cors)


def _add_limits(group: argparse._ArgumentGroup) -> None:
    add, count = group.add_argument, at_least(1, int)
    size = "largest body of a request in bytes (default: 33554432, 32 MiB)"
    add("--max-bytes", type=at_least(1024, int, 2**30), default=32 * 2**20, metavar="N", help=size)
    add("--queue", type=count, default=128, metavar="N", help="images taken at once; more get 429 (default: 128)")
    add("--batch", type=count, default=8, metavar="N", help="images that the network takes at once (default: 8)")
    workers = "images decoded at once, each in at most 300 MB (default: the number of cores)"
    add("--workers", type=count, metavar="N", help=workers)
    seconds = "for a body to arrive, and again for its answer (default: 30)"
    add("--timeout", type=at_least(0.1, float, 3600), default=30.0, metavar="SECONDS", help=seconds)


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    unsure = "answer 'unsure' if the highest probability is below P, where a request doesn't say (default: 0)"
    add("--threshold", type=at_least(0, float, 1), default=0.0, metavar="P", help=unsure)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: auto)")
    add("--engine", default="auto", choices=MODEL_ENGINES, help="runtime of the network (default: auto)")
    add("--precision", default="fp32", choices=("fp32", "bf16"), help="floating-point format (default: fp32)")


if __name__ == "__main__":
    import os
    import sys

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an address that is still fetched must not hold the end up
