"""CSV files whose texts are shown literally by spreadsheets, and their reader, which returns the original texts.

A spreadsheet executes a cell such as =1+1 or @SUM(A1) as a formula. Such a text is written with a leading apostrophe,
which marks text in spreadsheets. Numbers are unchanged, including negative ones.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.files.atomic import atomic_file

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")  # also the full-width forms of + - = @
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE | re.ASCII)

_OPTIONS: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names may be any bytes


def csv_text(value: Any) -> Any:
    """Return a value for a cell: a text that a spreadsheet would execute gets a leading apostrophe.

    >>> csv_text("=1+1"), csv_text("-1"), csv_text(-1), csv_text("-x")
    ("'=1+1", '-1', -1, "'-x")
    """
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_csv_text(text: str) -> str:
    """Return the original text of a cell; the inverse of `csv_text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file.  rows: values in the order of the columns; None is an empty cell."""
    with atomic_file(path) as partial, partial.open("w", **_OPTIONS) as file:
        writer = csv.writer(file)
        writer.writerow(map(csv_text, columns))
        writer.writerows(map(csv_text, row) for row in rows)


def write_csv_dicts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with the keys of all rows as its columns; missing values are empty cells."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(path, columns, ([row.get(column) for column in columns] for row in rows))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of this package, with their original texts, by the original column names.

    Cells that an incomplete row lacks, and cells without a column, are left out.
    """
    with path.open(**_OPTIONS) as file:
        return [
            {from_csv_text(name): from_csv_text(text) for name, text in row.items() if name and isinstance(text, str)}
            for row in csv.DictReader(file)
        ]
