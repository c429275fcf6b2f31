"""A table on the console."""

from collections.abc import Sequence

__all__ = ["print_table"]


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `names`; where nobody looks, such as into a file, as wide as it is."""
    from rich.console import Console  # here, because it takes a tenth of a second
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    table = Table()
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
