"""Console output that commands share: errors as one line, tables, progress bars, and silence from other libraries.

Names of files and classes, and texts of servers, may hold what a terminal obeys: all that is printed here is `printable`.

rich is imported inside functions: it takes a tenth of a second, which `--help` need not wait for.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imgclf.errors import ConfigError, ImgclfError, line_of_os_error, nearest, require_value
from imgclf.jupyter import in_notebook, notebook_bar
from imgclf.names import ERRORS, printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite
    from rich.console import Console

__all__ = [
    "CommandParser",
    "at_least",
    "lines_of_model",
    "make_console",
    "print_line",
    "print_lines_to_copy",
    "print_message",
    "print_table",
    "print_text",
    "progress_bar",
    "replace_unprintable",
    "run_command",
    "shell_joined",
    "shell_path",
    "shell_quoted",
    "silence_advertisements",
    "silence_library_logs",
    "silence_trainer_warnings",
]

_NOISY_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "torch.distributed")
# Also where a plain Trainer trains: about the loader's workers, the interval of logs, frozen layers, Lightning's own code,
# and the classifier's hook.
_NOISY_FOR_ALL = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",
)
_NOISY_WARNINGS = (
    *_NOISY_FOR_ALL,
    ".*GPU available but not used.*",
    ".*IntermediateResult.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*was configured so.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*no logger.*",
    ".*srun.*",
    ".*`train_dataloader`.*overfit.*",
    ".*You requested to overfit.*",
    ".*It is recommended to use `self.log.*sync_dist.*",
)


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that takes options between paths, refuses empty words, and whose help a pipe may close."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse's own signature has overloads
        """Return the options; exits with 2 and one line for wrong ones."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            for above, word in pairwise(["", *words]):
                flag, equals, value = word.partition("=")
                require_value(above if above.startswith("--") else "an argument", word)
                require_value(flag, value if flag.startswith("--") and equals else None)
        except ConfigError as error:
            self.error(str(error))
        options, rest = self.parse_known_intermixed_args(words, namespace)
        if unknown := next((word for word in rest if word.startswith("-")), None):
            self.error(f"{unknown}: no such option; {nearest(unknown, list(self._option_string_actions))}")
        if rest:
            self.error(f"{' '.join(rest)}: not expected")
        return options

    def error(self, message: str) -> NoReturn:
        """Print the message, which may have any words of the command line, as one line, and exit with 2."""
        replace_unprintable()
        self.exit(2, printable(f"imgclf: {message} ({self.prog} --help lists the options)") + "\n")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help."""

        def show() -> int:
            argparse.ArgumentParser.print_help(self, file)
            return 0

        run_command(show)


def at_least(low: float, kind: type[int] | type[float], high: float = math.inf) -> Callable[[str], float]:
    """Return an argparse type: a number of `kind` that is at least `low`, and at most `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            limit = f" and at most {high:g}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text}: expected at least {low:g}{limit}")
        return value

    parse.__name__ = kind.__name__  # the name in argparse's messages
    return parse


def run_command(task: Callable[[], int]) -> int:
    """Return the exit code of `task`; errors that a user can fix are printed to stderr as one line."""
    replace_unprintable()
    try:
        code = task()
        sys.stdout.flush()  # here, where a closed pipe can still be met
        return code
    except ImgclfError as error:
        message, code = str(error), error.exit_code
    except BrokenPipeError:  # `... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        message, code = "interrupted by SIGINT", 130
    except OSError as error:
        message, code = line_of_os_error(error), ConfigError.exit_code
    print_message(message)
    return code


def replace_unprintable() -> None:
    """Let stdout and stderr write what their encoding lacks as `imgclf.names` escapes it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a notebook's
            stream.reconfigure(errors=ERRORS)


def make_console(width: int = 120) -> Console:
    """Return a console for stdout that is `width` columns wide where stdout is not a terminal, such as in a log file.

    In a notebook it prints plain text: rich would make an output of its own of each line.
    """
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        """Escapes what a terminal would obey in any text; the codes of rich itself come after it."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            """Yield the pieces of what is printed."""
            for piece in super().render(renderable, options):
                yield piece if piece.control else Segment(printable(piece.text, lines=True), piece.style)

    if in_notebook():
        return PlainConsole(highlight=False, width=min(width, 100), force_terminal=False, force_jupyter=False)
    console = PlainConsole(highlight=False)
    return console if console.is_terminal else PlainConsole(highlight=False, width=width)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `names`; 160 columns wide where stdout is not a terminal."""
    from rich.table import Table  # here, because it takes a tenth of a second
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    make_console(160).print(table)


def print_line(text: str, error: bool = False) -> None:
    """Print one line to stdout, or to stderr for an `error`; a narrow terminal gets several, broken between words."""
    stream, text = sys.stderr if error else sys.stdout, printable(text)
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=stream, flush=True)


def print_text(text: str) -> None:
    """Print a text as it is laid out, of one line or of several."""
    print(printable(text, lines=True), flush=True)


def print_message(message: str) -> None:
    """Print to stderr what went wrong, or how a command ended, as one line that is never broken."""
    print(f"imgclf: {printable(message)}", file=sys.stderr, flush=True)


def print_lines_to_copy(lines: Mapping[str, str]) -> None:
    """Print each text after its label, in one column and never broken: paths, links and commands to copy."""
    width = max(map(len, lines), default=0)
    for label, text in lines.items():
        print_text(f"{label:<{width}}  {printable(text)}")


def lines_of_model(checkpoint: Path, report: Path) -> dict[str, str]:
    """Return the lines to copy where a run ends: its model, the link to its report if it has one, how to predict."""
    is_best = checkpoint.name == "best.ckpt" and checkpoint.parent.name == "checkpoints"
    run = checkpoint.parents[1] if is_best else checkpoint  # of a run's folder, predict takes the best.ckpt
    lines = {"model": shell_path(checkpoint), "report": report.absolute().as_uri() if report.is_file() else ""}
    return {
        **{label: text for label, text in lines.items() if text},
        "predict": f"imgclf predict {shell_path(run)} image.jpg",
    }


def shell_path(path: Path) -> str:
    """Return a path as one types it into a shell: relative to the current folder if it lies below it, and quoted."""
    path, here = path.absolute(), Path.cwd()
    text = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    return shell_quoted(f"./{text}" if text.startswith("-") else text)


def shell_quoted(text: str) -> str:
    r"""Return a word of a command as the system's shell takes it: POSIX, or on Windows cmd and PowerShell.

    One with control characters or bytes that aren't text is written as bash, zsh and ksh take it: `$'caf\xe9'`.
    """
    if os.name == "nt":
        return subprocess.list2cmdline([text])
    if printable(text) == text:
        return shlex.quote(text)
    # Bytes that aren't text are held as lone surrogates; any other lone surrogate is in no name of a file.
    parts = (
        char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass") for char in text
    )
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in b"".join(parts))
    return f"$'{''.join(plain)}'"


def shell_joined(words: Sequence[str]) -> str:
    """Return a command of these words, to be copied as it is."""
    return " ".join(map(shell_quoted, words))


@contextmanager
def progress_bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[[int], object]]:
    """Show a progress bar in a notebook, else on stderr if `shown` and stderr is a terminal; yields the function that
    advances it by n.
    """
    if shown and in_notebook():
        with notebook_bar(label, total) as advance:
            yield advance
        return
    if not (shown and total > 1 and sys.stderr and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = "{task.description}: {task.completed:,.0f} of {task.total:,.0f}"
    columns = TextColumn(text, markup=False), BarColumn(bar_width=20), TimeRemainingColumn(compact=True)
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(printable(label), total=total)
        yield lambda count: progress.advance(task, count)


def silence_advertisements() -> None:
    """Hide Lightning's advertisements and its list of devices; a Trainer prints them when it is made, before any hook."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_no_advertisement)


def silence_trainer_warnings() -> None:
    """Hide the warnings of a starting Trainer that mean nothing for imgclf's data and networks; all others stay."""
    for message in _NOISY_FOR_ALL:
        warnings.filterwarnings("ignore", message=message)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return re.match(r"💡|(GPU|TPU|HPU|IPU) available", record.getMessage()) is None


def silence_library_logs() -> None:
    """Hide what Lightning and torch log about themselves; imgclf prints what a user can act on."""
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _NOISY_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
