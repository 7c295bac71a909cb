"""Tables of the commands: as such where they fit, else as a block of lines for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_tables(*tables: Table) -> None:
    """Print tables; without a width to fit, nothing is cut or wrapped."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    for table in tables:
        if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
            console.print(table)
        else:
            _print_blocks(console, table)


def _print_blocks(console: Console, table: Table) -> None:
    headings = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        named = zip(headings, map(str, cells), strict=True)
        first, *others = (f"{heading} {Text.from_markup(cell)}".strip() for heading, cell in named if cell)
        console.print(Text(first, "bold"))
        console.print(Padding(Text("; ".join(others).replace("\n", ", ")), (0, 0, 0, 2), expand=False))
