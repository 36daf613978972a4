"""Lines that a sweep prints while its runs are processes on this machine."""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.status import FINISHED, RUNNING, Status
from diffusion_lab.runs.tables import table as run_table
from diffusion_lab.sweeps import progress
from diffusion_lab.sweeps.plan import PlannedRun

SECONDS_BETWEEN_STEPS = 30.0
"""Minimum time between two lines with the step of the same run."""


class StateReport:
    """Report that prints the number of runs of a sweep in each state, whenever one of these numbers changes."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        self.planned, self.last = planned, ""

    def update(self) -> None:
        statuses = [run_status.read(run.folder) for run in self.planned]
        self.report_runs(statuses)
        states = sorted(status.label for status in statuses if status is not None)
        text = ", ".join(f"{len(list(same))} {state}" for state, same in itertools.groupby(states))
        if text and text != self.last:
            self.last = text
            _print(text)

    def report_runs(self, statuses: Sequence[Status | None]) -> None:
        """Print lines about single runs: none.  statuses: statuses of the planned runs."""


class RunReport(StateReport):
    """Report that also prints the start and the end of each run with its result, and its steps every 30 seconds."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        super().__init__(planned)
        self._states = [None if run.status is None else run.status.state for run in planned]
        self._printed = [time.monotonic()] * len(planned)
        self._steps = [0] * len(planned)

    def report_runs(self, statuses: Sequence[Status | None]) -> None:
        for number, (run, status) in enumerate(zip(self.planned, statuses, strict=True)):
            if status is None:
                continue
            if status.state != self._states[number]:
                self._states[number], self._printed[number] = status.state, time.monotonic()
                if status.state == RUNNING:
                    _print(f"{run.folder.name}: started")
                elif status.is_over:
                    _print(f"{run.folder.name}: {_end(run.folder, status)}")
            elif status.state == RUNNING and time.monotonic() - self._printed[number] >= SECONDS_BETWEEN_STEPS:
                self._printed[number] = time.monotonic()
                self._print_step(number, progress.last_step(run.folder, status))

    def _print_step(self, number: int, step: int) -> None:
        """Print the step of a run, unless it is unknown or the same as in the last line."""
        folder = self.planned[number].folder
        if step > self._steps[number]:
            self._steps[number] = step
            total = _max_steps(folder)
            _print(f"{folder.name}: step {step}{'' if total is None else f'/{total}'}")


def _end(folder: Path, status: Status) -> str:
    """Return how a run ended: its state, with its steps and first result, or with the reason."""
    if status.state != FINISHED:
        reason = status.reason or status.state
        return reason if reason.startswith(status.state) else f"{status.state}: {reason}"
    try:
        summary, numbers = (run_table.read_json(folder / name) for name in (run_table.SUMMARY, run_table.METRICS))
    except UserError as error:
        return f"{status.state}, but {str(error).rstrip('.')}"
    parts = [status.state, *([f"{summary['steps']} steps"] if "steps" in summary else [])]
    values = {number["name"]: number["value"] for number in numbers.get("numbers", [])} or {"loss": summary.get("loss")}
    name, value = next(iter(values.items()))
    return ", ".join([*parts, *([f"{name} {run_table.round_value(value)}"] if value is not None else [])])


def _max_steps(folder: Path) -> int | None:
    """Return the number of steps of a training run; None for other runs."""
    path = folder / "config.yaml"
    steps = OmegaConf.select(OmegaConf.load(path), "trainer.max_steps") if path.is_file() else None
    return steps if isinstance(steps, int) and steps > 0 else None


def _print(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {terminal_text(text)}", file=sys.stderr, flush=True)
