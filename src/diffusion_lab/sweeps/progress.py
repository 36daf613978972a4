"""Progress of the runs of a sweep: the step of each run, and the number of runs in each state with the time left."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text_tables import format_duration
from diffusion_lab.runs.metrics_log import read_log
from diffusion_lab.runs.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_STARTED,
    QUEUED,
    REQUEUED,
    RUNNING,
    SILENT,
    Status,
)

ORDER = (FINISHED, RUNNING, SILENT, REQUEUED, QUEUED, INTERRUPTED, FAILED, NOT_STARTED)

OUTPUT = "output.log"
"""File in a run folder with the standard output and error of a run that is a process on this machine."""

OUTPUT_END = 5000
"""Number of bytes at the end of an output file in which the last progress line is searched."""


def last_step(folder: Path, status: Status) -> int:
    """Return the last training step that a run is known to have completed; 0 if none is known.

    The step is read from metrics.csv, the names of the sample grids, the progress lines in the output of the run and
    the reason why the run was stopped.
    """
    steps = [int(line["step"]) for line in read_log(folder)[-1:] if math.isfinite(line.get("step", math.nan))]
    steps += [
        int(path.stem.removeprefix("step_")) for path in folder.glob("samples/step_*.png") if path.stem[5:].isdecimal()
    ]
    for output in (folder / OUTPUT, *folder.glob("slurm_*.err")):
        if output.is_file():
            with output.open("rb") as file:
                file.seek(max(0, output.stat().st_size - OUTPUT_END))
                end = file.read().decode(errors="replace")
            steps += [int(step) for step in re.findall(r"^step (\d+)/\d+  ", end, re.MULTILINE)]
    steps += [int(step) for step in re.findall(r"after step (\d+)$", status.reason or "")]
    return max(steps, default=0)


def summary_line(statuses: Mapping[Path, Status | None]) -> str:
    """Return the number of runs in each state, the time until all are finished, and how the sweep continues."""
    known = {folder: status for folder, status in statuses.items() if status is not None}
    counts = Counter(status.label for status in known.values())
    text = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    if counts[RUNNING] and (hours := _hours_left(known)) is not None:
        text += f"; about {format_duration(3600 * hours)} left"
    elif not (counts[RUNNING] or counts[REQUEUED] or counts[QUEUED]) and counts[FINISHED] < len(known):
        text += "; the command that started the sweep continues it"
    return text


def _hours_left(statuses: Mapping[Path, Status]) -> float | None:
    """Estimate the time until all runs are finished, if as many runs as now execute at the same time.

    Returns None if no run has finished or completed a step.
    """
    spent = {folder: status.hours() for folder, status in statuses.items()}
    full = {folder: spent[folder] for folder, status in statuses.items() if status.state == FINISHED}
    running = [folder for folder, status in statuses.items() if status.label == RUNNING]
    for folder in running:
        with contextlib.suppress(UserError):  # a damaged file
            if (hours := _full_hours(folder, statuses[folder], spent[folder])) is not None:
                full[folder] = hours
    if not full:
        return None
    mean = sum(full.values()) / len(full)
    left = [max(0.0, full.get(folder, mean) - spent[folder]) for folder in running]
    waiting = [max(0.0, mean - spent[folder]) for folder, s in statuses.items() if s.state in (QUEUED, REQUEUED)]
    return max(max(left), sum([*left, *waiting]) / len(running))


def _full_hours(folder: Path, status: Status, spent: float) -> float | None:
    """Estimate the duration of a running training run, in hours; None if too little is known.

    spent: hours so far. The start of a run takes time without steps: in the first tenth of the steps, the estimate
    follows from the logged images per second.
    """
    path = folder / "config.yaml"
    config = OmegaConf.create(read_saved(path, dict) if path.is_file() else {})
    max_steps = OmegaConf.select(config, "trainer.max_steps")
    if not isinstance(max_steps, int) or max_steps < 1:
        return None
    step = min(last_step(folder, status), max_steps)
    if step >= max_steps / 10:
        return spent * max_steps / step
    speeds = [line["images_per_second"] for line in read_log(folder) if line.get("images_per_second")]
    batch_size = OmegaConf.select(config, "data.batch_size")
    return spent + (max_steps - step) * batch_size / speeds[-1] / 3600 if speeds and batch_size else None
