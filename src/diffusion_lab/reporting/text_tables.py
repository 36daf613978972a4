"""Tables of texts that are printed to the terminal."""

import re
from collections.abc import Sequence

from rich.table import Table

from diffusion_lab.reporting.console import Console
from diffusion_lab.reporting.text import terminal_text

FILE_WIDTH = 160
"""Width of a table, in characters, if the output is a file."""

LONGEST_CELL = 400
"""Largest number of characters of a cell that are shown; a longer text loses its middle."""

LONGEST_UNBROKEN = 12
"""Longest cell, in characters, that is never broken into several lines."""


def print_rows(lines: Sequence[Sequence[str]], title: str, num_labels: int = 1) -> None:
    """Print a table with one row per line.

    If the table is wider than the output, column names are broken into several lines. If this does not suffice, the
    remaining columns are printed as further tables.
    lines: column names, followed by the cells of each line.  num_labels: number of first columns that identify a line;
        they are repeated in further tables.
    """
    width = _width()
    shown = [[terminal_text(cell, LONGEST_CELL) for cell in line] for line in lines]
    columns = [list(column) for column in zip(*shown, strict=True)]
    if _table_width(columns) > width:
        columns = [[_broken(name, max(map(len, cells), default=0)), *cells] for name, *cells in columns]
    print(terminal_text(title))  # rich would break it at the width of the table
    for block in _blocks(columns, num_labels, width):
        table = Table()
        for name, *cells in block:
            is_short = max(map(len, cells), default=0) <= LONGEST_UNBROKEN
            table.add_column(name, overflow="fold", no_wrap=is_short and "\n" not in name)
        for row in zip(*(column[1:] for column in block), strict=True):
            table.add_row(*row)
        print_table(table)


def format_duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds, such as 0:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def print_table(table: Table) -> None:
    """Print a table in the width of the terminal; FILE_WIDTH characters wide if the output is a file."""
    Console(width=_width()).print(table)


def _width() -> int:
    console = Console()
    return console.width if console.is_terminal else FILE_WIDTH


def _blocks(columns: list[list[str]], num_labels: int, width: int) -> list[list[list[str]]]:
    """Split columns into blocks that fit into a width; each block starts with the columns of the labels."""
    labels, others = columns[:num_labels], columns[num_labels:]
    blocks = [list(labels)]
    for column in others:
        if len(blocks[-1]) > num_labels and _table_width([*blocks[-1], column]) > width:
            blocks.append(list(labels))
        blocks[-1].append(column)
    return blocks


def _table_width(columns: Sequence[Sequence[str]]) -> int:
    return 1 + sum(3 + max(len(line) for cell in column for line in cell.split("\n")) for column in columns)


def _broken(name: str, width: int) -> str:
    """Break a column name after the characters _ . / into lines of at most `width` characters, if possible."""
    pieces = re.findall(r"[^_./]*[_./]|[^_./]+", name) or [name]
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1] + piece) <= max(width, *map(len, pieces)):
            lines[-1] += piece
        else:
            lines.append(piece)
    return "\n".join(lines)
