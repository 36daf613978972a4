"""The end of the output of a process that ended before it could write a status, for example before Python started."""

import itertools
import os
import re
from pathlib import Path

from diffusion_lab.files.regular import open_regular

JOBS = ".submitit"
"""Folder in a sweep folder with the batch scripts, the pickled commands and the output files of the jobs."""

OF_SLURM = re.compile(r"(srun|slurmstepd[^:]*): ")
OF_SRUN = re.compile("srun: ")  # srun reports the exit status of a task after the error of the task

NEXT_START = "DUE TO JOB REQUEUE"
"""Text that ends the output of all but the last start of a job."""

NUM_LINES, NUM_BYTES, NUM_CHARACTERS = 3, 5000, 300


def job_output(run_folder: Path, slurm_id: str, *, has_started: bool) -> str:
    """Return the last lines that explain the end of a job of a sweep, and their file; "" if there are none.

    has_started: whether the last start of the job has started the run. Then only messages of Slurm explain the end.
    """
    folder = next((parent / JOBS / slurm_id for parent in run_folder.parents if (parent / JOBS).is_dir()), None)
    if folder is None:
        return ""
    for suffix in ("err", "out"):
        path = folder / f"{slurm_id}_0_log.{suffix}"
        lines = _lines_of_last_start(path)
        if has_started:
            explaining = list(itertools.takewhile(OF_SLURM.match, reversed(lines)))[::-1]
        else:
            explaining = [line for line in lines if not OF_SRUN.match(line)]
        if explaining:
            return f"{_joined(explaining)} ({os.path.relpath(path, folder.parent.parent)})"
    return ""


def _lines_of_last_start(path: Path) -> list[str]:
    lines = _end(path)
    last = max((number for number, line in enumerate(lines, 1) if NEXT_START in line), default=0)
    return lines[last:]


def last_lines(path: Path) -> str:
    """Return the last lines of a text file, joined to one line; "" if it is empty or cannot be read."""
    return _joined(_end(path))


def _end(path: Path) -> list[str]:
    """Return the lines at the end of a file that are not empty."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - NUM_BYTES))
            lines = file.read(NUM_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [" ".join(line.split()) for line in lines if line.strip()]


def _joined(lines: list[str]) -> str:
    return " / ".join(lines[-NUM_LINES:])[-NUM_CHARACTERS:]
