"""The `imgclf` command: `imgclf train ...` runs the module `imgclf.train`."""

import os
import runpy
import subprocess
import sys
from importlib.metadata import version

from imgclf.errors import nearest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train and test an image classifier",
    "resume": "continue a run with its own settings",
    "check": "find unreadable files, duplicates and other faults of a data set",
    "evaluate": "measure a model on a split",
    "predict": "classify images with a model",
    "serve": "serve models over HTTP, with a page to try them",
    "export": "write a model as a file that answers without torch",
    "compare": "compare runs and test whether the difference is significant",
    "sweep": "rank the trials of a sweep",
    "cache": "list or clear cached images and features",
    "download": "download a data set from Kaggle",
}


def main() -> None:
    """Replace this process by the module that the first argument names; `predict` runs in it.

    Lightning starts the other processes of a distributed run with the command line of this one, and a subcommand would
    get lost there. Signals and exit codes need no forwarding either.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_and_exit(_help())
    if arguments[0] == "--version":
        _print_and_exit(f"imgclf {version('imgclf')}")
    if arguments[0] not in COMMANDS:
        print(f"imgclf: unknown command {arguments[0]!r}; {nearest(arguments[0], list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    if arguments[0] == "predict":  # no distributed run, and an exported model answers before another Python has begun
        sys.argv = sys.argv[1:]
        runpy.run_module("imgclf.predict", run_name="__main__", alter_sys=True)
        return
    command = [sys.executable, "-m", f"imgclf.{arguments[0]}", *arguments[1:]]
    if os.name == "nt":  # exec there returns to the shell before the command has finished
        sys.exit(subprocess.run(command).returncode)
    os.execv(sys.executable, command)


def _help() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        (
            "usage: imgclf <command> ...      (or: python -m imgclf.<command> ...)\n",
            *lines,
            "\nThe first three to try:",
            "  imgclf train dataset=cards data_dir=demo image_size=64 trainer.max_epochs=2",
            "  imgclf predict latest image.jpg",
            "  imgclf train dataset=folders data_dir=<a folder of class folders>",
            "\n`imgclf <command> --help` lists its settings; `imgclf --version` prints the version.",
        )
    )


def _print_and_exit(text: str) -> None:
    """Print `text` and exit with 0, also where the reader has closed the pipe, as in `imgclf --help | head -n 1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python would complain again when it flushes stdout at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
