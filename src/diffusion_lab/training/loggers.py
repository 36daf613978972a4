"""Loggers whose records a resumed run continues without gaps or repeated rows."""

import csv
import io
import json
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stderr
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lab.files.atomic import atomic_file, sync_file
from diffusion_lab.reporting.csv_files import csv_text, from_csv_text
from diffusion_lab.reporting.text import terminal_text, unescaped
from diffusion_lab.training import wandb_files

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
            self._experiment = _Writer(str(self.save_dir))
            self._experiment.metrics_keys = keys = _StepFirst(columns if rows else ())
            keys.sort()
            if rows:
                _write_rows(path, keys, rows)
            else:
                path.unlink(missing_ok=True)
        return self._experiment

    @rank_zero_only
    def sync(self) -> None:
        """Wait until all rows are on the disk: a checkpoint must not be newer than they after a system crash."""
        if (path := Path(self.save_dir) / FILE_NAME).is_file():
            sync_file(path)


class _Writer(ExperimentWriter):
    """Lightning's writer, except that the file is also complete while a column is added and while a run starts.

    A spreadsheet shows the names of the metrics literally, see `csv_text`.
    """

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics({csv_text(name): value for name, value in metrics_dict.items()}, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        _write_rows(path, fieldnames, rows)

    def _check_log_dir_exists(self) -> None:
        """Keep an existing file, which Lightning would delete."""


class _StepFirst(list[str]):
    """Names of columns. Lightning sorts them when a column is added; the column of the step then comes first."""

    def sort(self, **options: Any) -> None:
        super().sort(key=lambda name: (name != "step", name))


class WandbRun(WandbLogger):
    """A run on Weights & Biases that remains the same run after it is resumed; no metric is logged twice.

    A resumed run first logs what W&B had not written when the process died: rows of `metrics.csv`, images and tables.
    The id of the run is stored in the run folder, in `wandb_id`.
    """

    def __init__(self, folder: str, *, project: str, group: str | None = None, offline: bool = False) -> None:
        """folder: run folder, whose name is the name of the run.  project: name of the project.

        group: name of the set of runs that this run belongs to, such as a sweep.
        offline: whether the run is stored in the folder only, without a connection.
        """
        super().__init__(
            save_dir=folder, name=terminal_text(Path(folder).name), project=project, group=group, offline=offline
        )
        self._experiment: Any = None
        self._folder, self._steps_done, self._log_every_n_steps = Path(folder), 0, 1
        self._last_step, self._last_names = -1, frozenset[str]()  # of the steps that earlier processes logged

    def continue_after(self, step: int, log_every_n_steps: int = 1) -> None:
        """Log what is missing up to `step`, from which a run resumes. Call before the first metric is logged.

        log_every_n_steps: interval between logged losses.
        """
        self._steps_done, self._log_every_n_steps = step, max(1, log_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            import wandb

            wandb.finish()  # ends an earlier run in this process
            self._wandb_init["id"] = self._id = run_id = _run_id(self._folder / "wandb_id")
            self._last_step, self._last_names = wandb_files.last_step(self._folder, run_id)
            with _colored_messages():
                experiment = WandbLogger.experiment.fget(self)
            if experiment.resumed:  # by the server, which accepts no metrics of the steps that it has
                self._last_step = max(self._last_step, experiment.starting_step - 1)
            self._log_lost_metrics()
        return WandbLogger.experiment.fget(self)

    def _log_lost_metrics(self) -> None:
        """Log the steps up to `continue_after` that the processes before this one have not written."""
        lost: dict[int, dict[str, Any]] = {}
        _, rows = _read_rows(self._folder / FILE_NAME, self._steps_done, self._log_every_n_steps)
        for row in rows:
            values = {from_csv_text(name): _number(text) for name, text in row.items() if text and name != "step"}
            lost.setdefault(int(row["step"]), {}).update(values)
        steps = range(max(0, self._last_step), self._steps_done + 1)
        for step, name, content in wandb_files.media(self._folder, str(self._id), steps):
            lost.setdefault(step, {})[name] = content
        for step, metrics in sorted(lost.items()):
            self.log_metrics(metrics, step)
        self._steps_done = 0

    def describe(self, config: Any) -> None:
        """Upload the complete config of the run."""
        self.experiment.config.update(config, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics)
            return
        experiment = self.experiment  # reads what was logged before
        logged = self._last_names if step == self._last_step else ()
        new = {name: value for name, value in metrics.items() if name not in logged}  # a repeated step is the same
        if new and step >= self._last_step:
            # Two calls for one row, because W&B names the files of images after the step of the call before.
            experiment.log({"trainer/global_step": step}, step=step)
            experiment.log(new, step=step)

    @rank_zero_only
    def log_numbers(self, numbers: Sequence[Any], step: int) -> None:
        """Log metric values with their fingerprints as a table."""
        rows = [[step, number.name, number.value, json.dumps(number.fingerprint)] for number in numbers]
        self.log_table("numbers", columns=["step", "name", "value", "fingerprint"], data=rows, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            with _colored_messages():
                self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None  # metrics that are logged later continue the same run


def _colored_messages() -> AbstractContextManager[Any]:
    """Return a context in which W&B prints with colors, and with a progress line that it overwrites."""
    return redirect_stderr(unescaped(sys.stderr))


def _run_id(path: Path) -> str:
    """Return the id of a run on Weights & Biases that is stored in a file; store a new id if there is no file."""
    stored = path.read_text(errors="replace").split("\n")[0] if path.is_file() else ""  # 0.3 also stored the last step
    run_id = stored if re.fullmatch(r"[\w-]{1,64}", stored) else secrets.token_hex(4)
    with atomic_file(path) as partial:
        partial.write_text(f"{run_id}\n")
    return run_id


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _read_rows(path: Path, last_step: int, log_every_n_steps: int) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows up to `last_step`, without an incomplete last line of a killed process.

    The rows that exist only because the run ended at `last_step` are left out: metrics that were measured after
    training, and the loss of a step that is not a multiple of log_every_n_steps.
    """
    if last_step == 0 or not path.is_file():
        return [], []
    text = path.read_bytes().decode(errors="replace")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
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
