"""Notebooks: whether this process serves one, and a cell's output that is replaced in place: a table above a progress bar.

IPython's own display does that in Jupyter, Colab and VS Code alike; no widgets are needed. IPython is imported only where
it runs already.
"""

import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, ClassVar

__all__ = ["LiveTable", "import_tqdm_quietly", "in_notebook", "notebook_bar"]

_SECONDS = 0.2  # between two updates: each is a message to the browser
_ROWS = 20  # that are shown at most, the last ones
_CELL = "text-align: right; padding: 1px 10px; font-variant-numeric: tabular-nums"
_BAR = "width: 16em; max-width: 40%; vertical-align: middle"


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook; a terminal's IPython is none."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def import_tqdm_quietly() -> None:
    """In a notebook, import the bars of other libraries without their warning that ipywidgets is missing: imgclf has its own."""
    if in_notebook() and "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            importlib.import_module("tqdm.auto")


class LiveTable:
    """One output of a notebook's cell: a table, and below it the bar of what is going on now.

    While it is `open`, `notebook_bar` draws its bar here, so that a cell has one bar.
    """

    current: ClassVar["LiveTable | None"] = None

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.columns = columns
        self.rows: Sequence[Sequence[str]] = ()
        self._bar: tuple[str, int, int] | None = None
        self._handle: Any = None
        self._shown_at = 0.0

    def open(self) -> None:
        """Show the table."""
        LiveTable.current = self
        self.show()

    def close(self) -> None:
        """Show the table as it stays, without a bar."""
        LiveTable.current = None
        self._bar = None
        self.show()

    def bar(self, label: str, done: int, total: int) -> None:
        """Show the bar; left out if the last time was just now."""
        self._bar = label, done, total
        if time.monotonic() - self._shown_at >= _SECONDS:
            self.show()

    def clear_bar(self) -> None:
        """Forget the bar; the next one replaces it."""
        self._bar = None

    def show(self) -> None:
        """Show the table and the bar as they are now."""
        bundle = {"text/html": self._html(), "text/plain": self._text()}
        self._shown_at = time.monotonic()
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
            return
        from IPython.display import display  # here, because it's there only in a notebook

        self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        hidden, rows = self._shown_rows()
        parts = []
        if self.columns:
            head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in self.columns)
            lines = [[f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row] for row in rows]
            body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if hidden:
            parts.insert(0, f"<div>the last {_ROWS} of {hidden + _ROWS}</div>")
        if self._bar:
            label, done, total = self._bar
            bar = f'<progress value="{done}" max="{total}" style="{_BAR}"></progress>'
            parts.append(f"<div>{bar} {escape(label)}: {done:,} of {total:,}</div>")
        return "".join(parts)

    def _text(self) -> str:
        _, rows = self._shown_rows()
        lines = ["  ".join(f"{cell:>14}" for cell in row) for row in ([self.columns, *rows] if self.columns else [])]
        if self._bar:
            label, done, total = self._bar
            lines.append(f"{label}: {done:,} of {total:,}")
        return "\n".join(lines)

    def _shown_rows(self) -> tuple[int, Sequence[Sequence[str]]]:
        hidden = max(0, len(self.rows) - _ROWS)
        return hidden, self.rows[hidden:]


@contextmanager
def notebook_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar in the open `LiveTable`, else one that stays; yields the function that advances it by n."""
    table, done = LiveTable.current or LiveTable(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        table.bar(label, done, total)

    try:
        yield advance
    finally:
        if LiveTable.current is None and done:
            table.show()  # all of it
        else:
            table.clear_bar()
