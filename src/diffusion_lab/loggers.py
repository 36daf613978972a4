"""Where a run's numbers go, so that a resumed run continues them."""

import contextlib
import csv
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

NAME = "metrics.csv"


class MetricsFile(CSVLogger):
    """`metrics.csv` in the run folder: one row for each moment that numbers were logged at, by the steps done then.

    A resumed run drops the rows after the step that it goes on from, and appends: they come again.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._steps_done = 0
        self._experiment: Any = None

    def continue_after(self, step: int) -> None:
        """Tells that a run goes on after `step`, before its first number is logged."""
        self._steps_done = step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            path = Path(self.save_dir) / NAME
            columns, rows = _rows_until(path, self._steps_done)
            path.unlink(missing_ok=True)  # Lightning's writer would do so, with a warning
            self._experiment = super().experiment
            if rows:
                self._experiment.metrics_keys = columns
                _write(path, columns, rows)
        return self._experiment


class WandbRun(WandbLogger):
    """A run on Weights & Biases that keeps its identity when it is resumed; it is kept in the run folder."""

    def __init__(self, folder: str, *, project: str, offline: bool = False) -> None:
        super().__init__(save_dir=folder, project=project, offline=offline, id=_identity(Path(folder)), resume="allow")


def _identity(folder: Path) -> str:
    path, identity = folder / "wandb_id", secrets.token_hex(4)
    proposal = folder / f"wandb_id.{identity}"
    folder.mkdir(parents=True, exist_ok=True)
    proposal.write_text(identity)
    with contextlib.suppress(FileExistsError):  # of several processes the first one chooses
        path.hardlink_to(proposal)
    proposal.unlink()
    return path.read_text()


def _rows_until(path: Path, step: int) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table up to `step`; a last line that a kill cut short is left out."""
    if step == 0 or not path.is_file():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        rows = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]
    return columns, [row for row in rows if int(row["step"]) <= step]


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
