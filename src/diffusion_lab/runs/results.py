"""What a run came to, in its folder: a summary, and the measured numbers with their protocol."""

import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from diffusion_lab import __version__
from diffusion_lab.runs.tables import METRICS, SUMMARY, print_table


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """What a run came to, for tables of many runs: `summary.json`. A number that is not finite is null there."""
    _write(folder / SUMMARY, {key: _finite(value) for key, value in summary.items()})


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Numbers with their protocol: `metrics.json`.  record["numbers"]: each with name, value and fingerprint."""
    numbers = [number | {"value": _finite(number["value"])} for number in record["numbers"]]
    _write(folder / METRICS, record | {"numbers": numbers, "code": __version__, "commit": _commit()})


def _commit() -> str | None:
    """Of this code, with a plus where it was changed since; None where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_numbers(record: Mapping[str, Any]) -> None:
    """A table of the numbers of one evaluation, of its time and its memory."""
    table = Table("number", "value", title=f"{record['run']}, {record['checkpoint']}, step {record['step']:,}")
    for number in record["numbers"]:
        table.add_row(number["name"], f"{number['value']:.6g}")
    table.add_section()
    for part, seconds in record["seconds"].items():
        table.add_row(f"seconds in {part}", f"{seconds:,.1f}")
    table.add_row("peak memory, GB", f"{record['peak_memory_gb']:.2f}")
    print_table(table)
