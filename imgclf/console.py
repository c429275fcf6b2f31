"""What the commands that need no Hydra have in common: a table on the console, and the way an error is told."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imgclf.errors import ConfigError, ImgclfError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["make_console", "print_table", "run_command"]


def run_command(task: Callable[[], int]) -> int:
    """What `task` returns; what a user can mend is printed as one line and becomes an exit code."""
    try:
        return task()
    except ImgclfError as error:
        print(f"imgclf: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("imgclf: interrupted by SIGINT", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"imgclf: {error.filename or 'the operating system'}: {error.strerror or error}", file=sys.stderr)
        return ConfigError.exit_code


def make_console(width: int = 120) -> "Console":
    """A rich console on stdout, `width` columns wide where stdout is not a terminal."""
    from rich.console import Console  # here, because it takes a tenth of a second

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=width)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `names`; 160 columns wide where stdout is not a terminal."""
    from rich.table import Table  # here, because it takes a tenth of a second
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    make_console(160).print(table)
