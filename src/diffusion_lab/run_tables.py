"""What runs came to: one summary in each run's folder, and one table of a sweep."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """What a run came to, for tables of many runs: `summary.json`. A number that is not finite is null there."""
    content = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in summary.items()}
    (folder / "summary.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


class SweepTable(Callback):
    """Hydra callback: at the end of a multirun, one line for each run."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = [_row(summary) for summary in sorted(folder.glob("*/summary.json"), key=_job_number)]
        if rows:
            _print_table(folder, rows)


def _job_number(summary: Path) -> int:
    number = summary.parent.name.partition("_")[0]
    return int(number) if number.isdigit() else -1


def _row(summary: Path) -> dict[str, str]:
    """A run's number, its overrides and its results, as texts."""
    overrides = dict(str(override).partition("=")[::2] for override in _overrides(summary.parent))
    content = json.loads(summary.read_text())
    values = {key: f"{value:,.4g}" if isinstance(value, float) else str(value) for key, value in content.items()}
    return {"run": summary.parent.name.partition("_")[0], **overrides, **values}


def _overrides(folder: Path) -> list[str]:
    return [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]


def _print_table(folder: Path, rows: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    # What is the same in all runs tells them apart in the file at most.
    shown = [column for column in columns if len({row.get(column) for row in rows}) > 1 or column == "run"]
    table = Table(*shown, title=f"{len(rows)} runs in {folder}")
    for row in rows:
        table.add_row(*(row.get(column, "") for column in shown))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
