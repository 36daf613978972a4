"""Loggers whose records a resumed run continues without gaps or repeated rows."""

import csv
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lab.atomic_files import atomic_file

FILE_NAME = "metrics.csv"

AFTER_TRAINING = "after_training"
"""Column of `metrics.csv` that is 1 for metrics that were measured after the last checkpoint, and empty for others."""


class MetricsFile(CSVLogger):
    """`metrics.csv` in the run folder: one row for each call of `log_metrics`, with the number of completed steps.

    A resumed run removes the rows after the step that it resumes from, since it logs these steps again. New rows are
    appended.
    folder: folder of the file.

        trainer = lightning.Trainer(logger=MetricsFile("logs/my_run"), log_every_n_steps=50)
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._steps_done, self._log_every_n_steps = 0, 1
        self._experiment: Any = None

    def continue_after(self, step: int, log_every_n_steps: int = 1) -> None:
        """Keep only the rows up to `step`, from which a run resumes. Call before the first metric is logged.

        Rows that a finished run logged only because it ended at `step` are removed.
        log_every_n_steps: interval between logged losses.
        """
        self._steps_done, self._log_every_n_steps = step, max(1, log_every_n_steps)

    def log_after_training(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics that were measured after the last checkpoint of a run."""
        self.log_metrics({**metrics, AFTER_TRAINING: 1.0}, step=step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            path = Path(self.save_dir) / FILE_NAME
            columns, rows = _read_rows(path, self._steps_done, self._log_every_n_steps)
            path.unlink(missing_ok=True)  # Lightning would warn about an existing file and delete it
            self._experiment = super().experiment
            self._experiment.metrics_keys = keys = _StepFirst(columns if rows else ())
            keys.sort()
            if rows:
                _write_rows(path, keys, rows)
        return self._experiment


class _StepFirst(list[str]):
    """Names of columns. Lightning sorts them when a column is added; the column of the step then comes first."""

    def sort(self, **options: Any) -> None:
        super().sort(key=lambda name: (name != "step", name))


class WandbRun(WandbLogger):
    """A run on Weights & Biases that remains the same run after it is resumed; no metric is logged twice.

    The id of the run and the last logged step are stored in the run folder, in `wandb_id`.
    """

    def __init__(self, folder: str, *, project: str, group: str | None = None, offline: bool = False) -> None:
        """folder: run folder, whose name is the name of the run.  project: name of the project.

        group: name of the set of runs that this run belongs to, such as a sweep.
        offline: whether the run is stored in the folder only, without a connection.
        """
        super().__init__(save_dir=folder, name=Path(folder).name, project=project, group=group, offline=offline)
        self._experiment: Any = None
        self._path = Path(folder) / "wandb_id"
        self._logged_before = self._logged = _LoggedMetrics()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            import wandb

            wandb.finish()  # ends an earlier run in this process
            self._logged = _LoggedMetrics.read(self._path)
            self._wandb_init["id"] = self._id = self._logged.run_id
            self._logged_before = self._logged
            self._logged.write(self._path)
        return WandbLogger.experiment.fget(self)

    def describe(self, config: Any) -> None:
        """Upload the complete config of the run."""
        self.experiment.config.update(config, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics)
            return
        experiment = self.experiment  # reads what was logged before
        new = self._logged_before.select_new(metrics, step)  # a repeated step has the same metrics
        if new:
            experiment.log({**new, "trainer/global_step": step}, step=step)
            self._logged = self._logged.updated(new, step)
            self._logged.write(self._path)

    @rank_zero_only
    def log_numbers(self, numbers: Sequence[Any], step: int) -> None:
        """Log metric values with their fingerprints as a table."""
        rows = [[step, number.name, number.value, json.dumps(number.fingerprint)] for number in numbers]
        self.log_table("numbers", columns=["step", "name", "value", "fingerprint"], data=rows, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None  # metrics that are logged later continue the same run


@dataclass(frozen=True)
class _LoggedMetrics:
    """The id of a run on Weights & Biases, its last logged step, and the names of the metrics logged at that step."""

    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    step: int = -1
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "_LoggedMetrics":
        """Return the content of a file, or a new id if there is no readable file."""
        try:
            run_id, step, *names = path.read_text().split("\n")
            return cls(run_id, int(step), tuple(names))
        except (OSError, ValueError):
            return cls()

    def write(self, path: Path) -> None:
        with atomic_file(path) as partial:
            partial.write_text("\n".join([self.run_id, str(self.step), *self.names]))

    def select_new(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Return the metrics of `step` that have not been logged yet."""
        if step != self.step:
            return dict(metrics) if step > self.step else {}
        return {name: value for name, value in metrics.items() if name not in self.names}

    def updated(self, metrics: Mapping[str, Any], step: int) -> "_LoggedMetrics":
        """Return the record after `metrics` were logged at `step`."""
        names = self.names if step == self.step else ()
        return _LoggedMetrics(self.run_id, step, (*names, *metrics))


def _read_rows(path: Path, last_step: int, log_every_n_steps: int) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows up to `last_step`, without an incomplete last line of a killed process.

    The rows that exist only because the run ended at `last_step` are left out: metrics that were measured after
    training, and the loss of a step that is not a multiple of log_every_n_steps.
    """
    if last_step == 0 or not path.is_file():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or [] if name != AFTER_TRAINING]
        rows = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]

    def remains(row: dict[str, str]) -> bool:
        step = int(row["step"])
        is_last_loss = step == last_step and step % log_every_n_steps != 0 and bool(row.get("loss"))
        return step <= last_step and not row.pop(AFTER_TRAINING, "") and not is_last_loss

    return columns, [row for row in rows if remains(row)]


def _write_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with atomic_file(path, durable=True) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
