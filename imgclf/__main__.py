"""The `imgclf` command: `imgclf train ...` runs the module `imgclf.train`."""

import os
import subprocess
import sys

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train and test an image classifier",
    "resume": "continue a run with its own settings",
    "check": "find unreadable files, duplicates and other faults of a data set",
    "evaluate": "measure a model on a split",
    "predict": "classify images with a model",
    "compare": "compare runs and test whether the difference is significant",
    "sweep": "rank the trials of a sweep",
    "cache": "list or clear cached images and features",
    "download": "download a data set from Kaggle",
}


def main() -> None:
    """Replace this process by the module that the first argument names.

    Lightning starts the other processes of a distributed run with the command line of this one, and a subcommand would
    get lost there. Signals and exit codes need no forwarding either.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
        print("usage: imgclf <command> ...\n", *lines, "\n`imgclf <command> --help` lists its options.", sep="\n")
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        print(f"imgclf: unknown command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    command = [sys.executable, "-m", f"imgclf.{arguments[0]}", *arguments[1:]]
    if os.name == "nt":  # exec there returns to the shell before the command has finished
        sys.exit(subprocess.run(command).returncode)
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
