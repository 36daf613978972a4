"""The content of a status file: the state of a run and its attempts; times are texts in the file, seconds in memory."""

import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from types import NoneType
from typing import Any

QUEUED, RUNNING, REQUEUED, FINISHED, FAILED = "queued", "running", "requeued", "finished", "failed"
INTERRUPTED, NOT_STARTED = "interrupted", "not started"
STATES = (QUEUED, RUNNING, REQUEUED, FINISHED, FAILED, INTERRUPTED, NOT_STARTED)

SILENT = "no sign of life"
"""Label of a run that is said to be running on a machine whose processes are not visible here."""

SLURM_ID = r"\d+(_\d+)?"
"""Pattern of the ids of Slurm jobs, with the number of a task in an array."""

LATEST = 250_000_000_000
"""Largest time, in the year 9892: datetime has no dates after the year 9999."""

TIMES = ("since", "began", "ended")
"""Keys of a status file whose values are times."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to execute a run.

    began, ended: times in seconds since 1970; ended is None while it is unknown.
    slurm_id: id of the Slurm job of the attempt, if any.
    pid, ticks: id and start time of the process of rank 0 on `host`, see `slurm_job.start_ticks`.
    saved: whether the attempt saved progress before it was requeued; None if it was not requeued.
    """

    began: float
    slurm_id: str | None
    host: str
    pid: int
    ticks: int | None = None
    ended: float | None = None
    saved: bool | None = None

    @property
    def is_valid(self) -> bool:
        """Whether all fields have values that this package writes."""
        return (
            _is_time(self.began)
            and (self.slurm_id is None or re.fullmatch(SLURM_ID, str(self.slurm_id)) is not None)
            and isinstance(self.host, str)
            and isinstance(self.pid, int)
            and isinstance(self.ticks, (int, NoneType))
            and (self.ended is None or _is_time(self.ended))
        )


@dataclass(frozen=True)
class Status:
    """The content of a status file.

    state: one of the seven states.  since: time of the last change of state, in seconds since 1970.
    reason: reason why a run failed, was interrupted, was requeued or was not started.
    result: value that a finished run returned.
    launcher: process that will start a queued run.  starts: all attempts so far.
    silent_since: time of the last sign of life of a running run whose process is not visible here; None if the process
        is visible or has recently given a sign. It is never written to a file, see `observe`.
    """

    state: str
    since: float
    reason: str | None = None
    result: float | None = None
    launcher: Attempt | None = None
    starts: tuple[Attempt, ...] = field(default=())
    silent_since: float | None = None

    @property
    def is_valid(self) -> bool:
        """Whether all fields have values that this package writes, so that the file is not damaged."""
        attempts = [*self.starts, *([] if self.launcher is None else [self.launcher])]
        return (
            self.state in STATES
            and _is_time(self.since)
            and isinstance(self.reason, (str, NoneType))
            and _is_result(self.result)
            and (self.state != RUNNING or len(self.starts) > 0)
            and all(attempt.is_valid for attempt in attempts)
        )

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or was not started, and will not be started again."""
        return self.state in (FINISHED, FAILED, INTERRUPTED, NOT_STARTED)

    @property
    def label(self) -> str:
        """The state, except SILENT for a silent run."""
        return self.state if self.silent_since is None else SILENT

    @property
    def text(self) -> str:
        """The label as tables show it, with the time of the last sign of life of a silent run."""
        if self.silent_since is None:
            return self.label
        return f"{SILENT} since {datetime.fromtimestamp(self.silent_since):%Y-%m-%d %H:%M}"

    def hours(self, last_activity: float | None = None) -> float:
        """Return the total duration of all attempts, in hours.

        If the end of an attempt is not recorded, the attempt counts as ended when the next attempt started. The last
        attempt counts until now if the run is running, and until `last_activity` if it is not.
        last_activity: time in seconds since 1970; None selects the time of the last change of state.
        """
        ends = [attempt.began for attempt in self.starts[1:]]
        ends.append(self.silent_since or (time.time() if self.state == RUNNING else last_activity or self.since))
        durations = [(attempt.ended or end) - attempt.began for attempt, end in zip(self.starts, ends, strict=False)]
        return sum(max(0.0, duration) for duration in durations) / 3600


def _is_time(value: Any) -> bool:
    """Return whether a value is a time in seconds since 1970 that has a date, which infinite and huge numbers lack."""
    return isinstance(value, (int, float)) and 0 <= value <= LATEST


def _is_result(value: Any) -> bool:
    """Return whether a value is a result, which may be a whole number that fits into a float."""
    return isinstance(value, (float, NoneType)) or (isinstance(value, int) and abs(value) < 2**63)


def state_of_end(reason: str | None) -> str:
    """Return the state of a run that ended early: interrupted if a signal or Ctrl-C stopped it, else failed."""
    return INTERRUPTED if re.match(r"interrupted|stopped by SIG", reason or "") else FAILED


def with_text(node: Any) -> Any:
    """Return a nested content in which times are texts in ISO 8601, in the local time zone."""
    if isinstance(node, (list, tuple)):
        return [with_text(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: datetime.fromtimestamp(value).astimezone().isoformat()
        if key in TIMES and value is not None
        else with_text(value)
        for key, value in node.items()
    }


def with_seconds(node: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a status file with its times in seconds since 1970, as earlier versions wrote them."""
    return {
        key: datetime.fromisoformat(value).timestamp() if key in TIMES and isinstance(value, str) else value
        for key, value in node.items()
    }
