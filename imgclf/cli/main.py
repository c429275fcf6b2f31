"""`imgclf train ...`: the same as `python -m imgclf.train ...`."""

import os
import subprocess
import sys

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train, test and save a classifier",
    "check": "look for what is wrong with a data set",
    "evaluate": "measure a checkpoint on a split",
    "predict": "classes of pictures, from a checkpoint",
    "compare": "which of several runs is best, and whether it can be chance",
    "sweep": "rank the trials of a sweep",
    "cache": "list or clear decoded pictures and features",
    "download": "fetch a data set from Kaggle",
}


def main() -> None:
    """Run the module that the first argument names in place of this process.

    In place of it, because Lightning starts the other processes of a distributed run with this one's command line, and
    a subcommand would get lost there; signals and exit codes then need no passing on, too.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: imgclf COMMAND ...\n\n" + "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items()))
        print("\n`imgclf COMMAND --help` tells more.")
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        print(f"imgclf: {arguments[0]!r} is no command; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    command = [sys.executable, "-m", f"imgclf.{arguments[0]}", *arguments[1:]]
    if os.name == "nt":  # exec there returns to the shell before the command has finished
        sys.exit(subprocess.run(command).returncode)
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
