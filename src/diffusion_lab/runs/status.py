"""The status file of a run: the state that the run itself reports, independent of any scheduler.

queued -> running -> finished, or failed with a reason, or requeued and running again. A queued run whose job is
cancelled, or whose launcher ends, is "not started". Only rank 0 writes the file, except for a failure, which is written
by the rank that fails.
"""

import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusion_lab.atomic_files import atomic_file
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.slurm_job import SlurmQueue

STATUS, LOCK, JOB = "status.json", ".lock", ".slurm_job"

QUEUED, RUNNING, REQUEUED, FINISHED, FAILED = "queued", "running", "requeued", "finished", "failed"
NOT_STARTED = "not started"

INTERRUPTED = "interrupted"
"""Label of a failed run that was stopped, see `Status.label`."""

TIMES = ("since", "began", "ended")
"""Keys of a status file whose values are times."""


class FolderLockedError(Exception):
    """Error for a folder that another process uses."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to execute a run.

    began, ended: times in seconds since 1970; ended is None while it is unknown.
    slurm_id: id of the Slurm job of the attempt, if any.
    pid, ticks: id and start time of the process of rank 0 on `host`, see `slurm_job.start_ticks`.
    """

    began: float
    slurm_id: str | None
    host: str
    pid: int
    ticks: int | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Status:
    """The content of a status file.

    state: one of the six states.  since: time of the last change of state, in seconds since 1970.
    reason: reason why a run failed, was requeued or was not started.  result: value that a finished run returned.
    launcher: process that will start a queued run.  starts: all attempts so far.
    """

    state: str
    since: float
    reason: str | None = None
    result: float | None = None
    launcher: Attempt | None = None
    starts: tuple[Attempt, ...] = field(default=())

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, or was not started, and will not be started again."""
        return self.state in (FINISHED, FAILED, NOT_STARTED)

    @property
    def label(self) -> str:
        """The state as tables show it: "interrupted" for a run that failed because a signal or Ctrl-C stopped it."""
        was_stopped = self.state == FAILED and re.match(r"(interrupted|stopped by SIG)", self.reason or "")
        return INTERRUPTED if was_stopped else self.state

    def hours(self, last_activity: float | None = None) -> float:
        """Return the total duration of all attempts, in hours.

        If the end of an attempt is not recorded, the attempt counts as ended when the next attempt started. The last
        attempt counts until now if the run is running, and until `last_activity` if it is not.
        last_activity: time in seconds since 1970; None selects the time of the last change of state.
        """
        ends = [attempt.began for attempt in self.starts[1:]]
        ends.append(time.time() if self.state == RUNNING else last_activity or self.since)
        durations = [(attempt.ended or end) - attempt.began for attempt, end in zip(self.starts, ends, strict=False)]
        return sum(max(0.0, duration) for duration in durations) / 3600


def read(folder: Path) -> Status | None:
    """Return the status of a run folder, or None if there is no readable status file."""
    try:
        content = json.loads((folder / STATUS).read_text(), object_hook=_with_seconds)
        starts = tuple(Attempt(**start) for start in content.pop("starts"))
        launcher = content.pop("launcher")
        return Status(**content, launcher=launcher and Attempt(**launcher), starts=starts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged, or of another version
        return None


def mark_queued(folder: Path) -> None:
    """Record that a run is waiting to be started."""
    status = read(folder)
    (folder / JOB).unlink(missing_ok=True)
    _write(folder, Status(QUEUED, time.time(), launcher=_this_process(), starts=status.starts if status else ()))


def write_job_id(folder: Path, slurm_id: str) -> None:
    """Record the id of the Slurm job of a queued run.

    The id is in a separate file, because the run may already have started and written its status.
    """
    (folder / JOB).write_text(slurm_id)


def job_id(folder: Path) -> str | None:
    """Return the id of the Slurm job that executes or will execute a run, or None if there is no such job."""
    status = read(folder)
    if status is not None and status.state in (RUNNING, REQUEUED) and status.starts:
        return status.starts[-1].slurm_id
    path = folder / JOB
    return path.read_text().strip() or None if path.is_file() else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other commands.  Raises FolderLockedError if another command uses it."""
    lock = FileLock(folder / LOCK)  # the operating system releases the lock when the process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderLockedError(f"{folder} is in use by another process; wait until it ends, or stop it.") from None
    try:
        status = reconcile(folder)
        if status is not None and status.state == RUNNING and not _is_this_job(status.starts[-1]):
            last = status.starts[-1]
            owner = f"job {last.slurm_id}" if last.slurm_id else f"process {last.pid}"
            raise FolderLockedError(f"{folder} is in use by {owner} on {last.host}; wait until it ends, or stop it.")
        yield
    finally:
        lock.release()


def mark_running(folder: Path) -> None:
    """Record that this process executes the run."""
    status = read(folder)
    attempt = _this_process()
    _write(folder, Status(RUNNING, attempt.began, starts=(*(status.starts if status else ()), attempt)))


def restore(folder: Path, status: Status | None) -> None:
    """Restore the status before an attempt that was rejected because the folder belongs to another run.

    status: status before the attempt; None removes the status file.
    """
    if status is None:
        (folder / STATUS).unlink(missing_ok=True)
    else:
        _write(folder, status)


def mark_requeued(folder: Path, reason: str) -> None:
    """Record that Slurm will start the job again."""
    _end(folder, REQUEUED, reason=reason)


def mark_finished(folder: Path, result: float | None) -> None:
    """Record that the run is complete, and its result if it is finite."""
    _end(folder, FINISHED, result=result if result is not None and math.isfinite(result) else None)


def mark_failed(folder: Path, reason: str) -> None:
    """Record why the run failed.  Only the first reason is stored: later failures are its consequences."""
    status = read(folder)
    if status is None or status.state != FAILED:
        _end(folder, FAILED, reason=" ".join(reason.split())[:500])


def mark_not_started(folder: Path, reason: str) -> None:
    """Record why a queued run was not started.  Its earlier attempts remain unchanged."""
    status = read(folder)
    _write(folder, Status(NOT_STARTED, time.time(), reason=reason, starts=status.starts if status else ()))


def _end(folder: Path, state: str, **fields: Any) -> None:
    status, now = read(folder), time.time()
    starts = status.starts if status else ()
    if starts:
        starts = (*starts[:-1], replace(starts[-1], ended=starts[-1].ended or now))
    _write(folder, Status(state, now, starts=starts, **fields))


def reconcile(folder: Path, queue: SlurmQueue | None = None) -> Status | None:
    """Return the status of a run; if its process or job no longer exists, mark it as failed or as not started first."""
    status = read(folder)
    if status is None or status.is_over:
        return status
    gone = _why_gone(folder, status, queue or SlurmQueue())
    if gone is None:
        return status
    status = read(folder)  # the run may have ended since the first read
    if status is not None and not status.is_over:
        state, reason = gone
        mark = mark_not_started if state == NOT_STARTED and status.state == QUEUED else mark_failed
        mark(folder, reason)
    return read(folder)


def _why_gone(folder: Path, status: Status, queue: SlurmQueue) -> tuple[str, str] | None:
    """Return the new state of a run that no process executes any more, and the reason.

    Returns None if a process executes the run or will execute it, or if this is unknown.
    """
    if slurm_id := job_id(folder):
        state = queue.final_state(slurm_id)
        if state is not None and state.startswith("CANCELLED") and status.state == QUEUED:
            return NOT_STARTED, f"job {slurm_id} was canceled"
        return None if state is None else (FAILED, f"job {slurm_id} ended without a status: {state}")
    owner = status.launcher if status.state == QUEUED else status.starts[-1] if status.starts else None
    if owner is None or owner.host != socket.gethostname() or slurm_job.start_ticks(owner.pid) == owner.ticks:
        return None
    if status.state == QUEUED:
        return NOT_STARTED, "the command that would have started it has ended"
    return FAILED, f"process {owner.pid} ended without a status"


def _this_process() -> Attempt:
    return Attempt(
        time.time(), slurm_job.slurm_id(), socket.gethostname(), os.getpid(), slurm_job.start_ticks(os.getpid())
    )


def _is_this_job(attempt: Attempt) -> bool:
    """Return whether an attempt belongs to this job.

    An earlier attempt with the same job id has ended, because Slurm ends its processes before it starts the job again.
    """
    if attempt.slurm_id is not None or slurm_job.slurm_id() is not None:
        return attempt.slurm_id == slurm_job.slurm_id()
    return attempt.host == socket.gethostname() and attempt.pid == os.getpid()


def _write(folder: Path, status: Status) -> None:
    with atomic_file(folder / STATUS, concurrent=True) as partial:
        partial.write_text(json.dumps(_with_text(asdict(status)), indent=2) + "\n")


def _with_text(node: Any) -> Any:
    """Return a nested content in which times are texts in ISO 8601, in the local time zone."""
    if isinstance(node, (list, tuple)):
        return [_with_text(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: datetime.fromtimestamp(value).astimezone().isoformat()
        if key in TIMES and value is not None
        else _with_text(value)
        for key, value in node.items()
    }


def _with_seconds(node: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a status file with its times in seconds since 1970, as earlier versions wrote them."""
    return {
        key: datetime.fromisoformat(value).timestamp() if key in TIMES and isinstance(value, str) else value
        for key, value in node.items()
    }
