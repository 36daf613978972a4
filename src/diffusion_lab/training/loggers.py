"""Where a run's numbers go, so that a resumed run continues them."""

import csv
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

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
    """A run on Weights & Biases that stays one run when it is stopped and goes on: what it said of a step stands.

    Its identity and the last step that it told of are kept in the run folder.
    """

    def __init__(self, folder: str, *, project: str, group: str | None = None, offline: bool = False) -> None:
        """group: what the run is one of, such as a sweep."""
        super().__init__(save_dir=folder, name=Path(folder).name, project=project, group=group, offline=offline)
        self._path = Path(folder) / "wandb_id"
        self._before = self._told = _Logged()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            import wandb

            wandb.finish()  # an earlier run of this process
            self._told = _Logged.read(self._path)
            self._wandb_init["id"] = self._id = self._told.identity
            self._before = self._told
            self._told.write(self._path)
        return WandbLogger.experiment.fget(self)

    def describe(self, config: Any) -> None:
        """Tells what the run is: its whole config."""
        self.experiment.config.update(config, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics)
            return
        experiment = self.experiment
        new = self._before.new(metrics, step)  # steps that are done again come to the same
        if new:
            experiment.log({**new, "trainer/global_step": step}, step=step)
            self._told = self._told.after(new, step)
            self._told.write(self._path)

    @rank_zero_only
    def log_numbers(self, numbers: Sequence[Any], step: int) -> None:
        """Tells measured numbers with their protocol, as a table."""
        rows = [[step, number.name, number.value, json.dumps(number.fingerprint)] for number in numbers]
        self.log_table("numbers", columns=["step", "name", "value", "fingerprint"], data=rows, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


@dataclass(frozen=True)
class _Logged:
    """What a run on Weights & Biases has told: the last step, and the names that it had numbers of then."""

    identity: str = field(default_factory=lambda: secrets.token_hex(4))
    step: int = -1
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "_Logged":
        try:
            identity, step, *names = path.read_text().split("\n")
            return cls(identity, int(step), tuple(names))
        except (OSError, ValueError):
            return cls()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("\n".join([self.identity, str(self.step), *self.names]))
        partial.replace(path)

    def new(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """What has not been told of a step."""
        if step != self.step:
            return dict(metrics) if step > self.step else {}
        return {name: value for name, value in metrics.items() if name not in self.names}

    def after(self, metrics: Mapping[str, Any], step: int) -> "_Logged":
        names = self.names if step == self.step else ()
        return _Logged(self.identity, step, (*names, *metrics))


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
