"""Tables for people."""

import sys
from collections.abc import Collection, Sequence

import click


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """Print rows under columns; those named in `numbers` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo("Nothing.")
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    for row in rows:
        # Text, not markup: a user named "[red]" is a user named "[red]".
        table.add_row(*(Text(cell) for cell in row))
    # Piped into a file there is no terminal to fit.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
