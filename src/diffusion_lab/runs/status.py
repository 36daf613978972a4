"""The status file of a run: the state that the run itself reports, independent of any scheduler.

queued -> running -> finished, failed or interrupted (by a signal or Ctrl-C) with a reason, or requeued and running
again. A queued run whose job is cancelled, or whose launcher ends, is "not started". Only rank 0 writes the file,
except for a failure, which is written by the rank that fails.
"""

import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusion_lab.config.saved_files import LARGEST_JSON
from diffusion_lab.config.secrets import hidden
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.files.atomic import atomic_file, overwrite, write_error
from diffusion_lab.files.regular import read_regular
from diffusion_lab.runs import heartbeat
from diffusion_lab.runs.job_output import job_output
from diffusion_lab.runs.status_record import FAILED as FAILED
from diffusion_lab.runs.status_record import FINISHED as FINISHED
from diffusion_lab.runs.status_record import INTERRUPTED as INTERRUPTED
from diffusion_lab.runs.status_record import NOT_STARTED as NOT_STARTED
from diffusion_lab.runs.status_record import QUEUED as QUEUED
from diffusion_lab.runs.status_record import REQUEUED as REQUEUED
from diffusion_lab.runs.status_record import RUNNING as RUNNING
from diffusion_lab.runs.status_record import SILENT as SILENT
from diffusion_lab.runs.status_record import SLURM_ID, state_of_end, with_seconds, with_text
from diffusion_lab.runs.status_record import Attempt as Attempt
from diffusion_lab.runs.status_record import Status as Status

STATUS, LOCK, JOB = "status.json", ".lock", ".slurm_job"


class FolderLockedError(Exception):
    """Error for a folder that another process uses."""


def read(folder: Path) -> Status | None:
    """Return the status of a run folder, or None if there is no readable status file."""
    try:
        content = json.loads(read_regular(folder / STATUS, LARGEST_JSON), object_hook=with_seconds)
        starts = tuple(Attempt(**start) for start in content.pop("starts"))
        launcher = content.pop("launcher")
        if content["state"] == FAILED:  # earlier versions had no state for interrupted runs
            content["state"] = state_of_end(content["reason"])
        status = Status(**content, launcher=launcher and Attempt(**launcher), starts=starts)
        return status if status.is_valid else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged, or of another version
        return None


def total_minutes(folder: Path) -> float | None:
    """Return the duration of all attempts of a run, in minutes; None if the folder has no status file."""
    status = read(folder)
    return None if status is None else 60 * status.hours()


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
    try:
        text = read_regular(folder / JOB, 1000).decode(errors="replace").strip()
    except OSError:
        return None
    return text if re.fullmatch(SLURM_ID, text) else None


@contextmanager
def locked(folder: Path, *, take_over: bool = False) -> Iterator[None]:
    """Lock a folder against other commands.  Raises FolderLockedError if another command uses it.

    take_over: whether to assume that a process that is not visible here, for example on another host, has ended.
    """
    lock = FileLock(folder / LOCK)  # the operating system releases the lock when the process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderLockedError(f"{folder} is in use by another process; wait until it ends, or stop it.") from None
    try:
        status = reconcile(folder)
        if status is not None and status.state == RUNNING and not _is_this_job(status.starts[-1]):
            if is_visible(folder, status):
                raise FolderLockedError(f"{folder} is in use by {_owner(status)}; wait until it ends, or stop it.")
            if not take_over:
                seen = f", which has given {status.text}" if status.silent_since else ""
                raise FolderLockedError(
                    f"{folder} is in use by {_owner(status)}{seen}; if it has ended, the same command with "
                    "take_over=true continues the run here."
                )
            mark_taken_over(folder)
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


def mark_requeued(folder: Path, reason: str, *, saved: bool) -> None:
    """Record that Slurm will start the job again.  saved: whether the attempt has saved progress."""
    _end(folder, REQUEUED, saved=saved, reason=reason)


def makes_no_progress(folder: Path) -> bool:
    """Return whether the last two attempts of a run belong to the same Slurm job, and none of them saved progress."""
    status = read(folder)
    last = status.starts[-2:] if status is not None else ()
    return len(last) == 2 and last[0].slurm_id == last[1].slurm_id and all(one.saved is False for one in last)


def mark_finished(folder: Path, result: float | None) -> None:
    """Record that the run is complete, and its result if it is finite."""
    _end(folder, FINISHED, result=result if result is not None and math.isfinite(result) else None)


def mark_failed(folder: Path, reason: str) -> None:
    """Record why the run failed or was interrupted.  Only the first reason is stored: others are its consequences."""
    status = read(folder)
    if status is None or status.state not in (FAILED, INTERRUPTED):
        _end(folder, state_of_end(reason), reason=hidden(" ".join(reason.split()))[:500])


def mark_not_started(folder: Path, reason: str) -> None:
    """Record why a queued run was not started.  Its earlier attempts remain unchanged."""
    status = read(folder)
    _write(folder, Status(NOT_STARTED, time.time(), reason=reason, starts=status.starts if status else ()))


def _end(folder: Path, state: str, *, saved: bool | None = None, **fields: Any) -> None:
    status, now = read(folder), time.time()
    starts = status.starts if status else ()
    if starts:
        last = starts[-1]
        starts = (*starts[:-1], replace(last, ended=last.ended or now, saved=last.saved if saved is None else saved))
    _write(folder, Status(state, now, starts=starts, **fields))


def mark_taken_over(folder: Path) -> None:
    """Record that the last attempt of a run is over although its process, which is not visible here, wrote no end."""
    status = read(folder)
    if status is not None:
        mark_failed(folder, f"{_owner(status)} ended without a status; the run was taken over")


def observe(folder: Path, queue: SlurmQueue | None = None) -> Status | None:
    """Return the true status of a run, and leave its folder unchanged.

    A run whose process or job no longer exists has failed or is not started. A running run whose process is not visible
    here and gives no sign of life has `silent_since`.
    """
    status, queue = read(folder), queue or SlurmQueue()
    if status is None or status.is_over:
        return status
    gone = _why_gone(folder, status, queue)
    if gone is None and status.state == RUNNING and not is_visible(folder, status, queue):
        hint = "if it has ended, take_over=true continues the run here"
        silent = heartbeat.silent_since(folder, status.since)
        return replace(status, silent_since=silent, reason=f"{_owner(status)}; {hint}") if silent else status
    latest = read(folder)  # the run may have ended since the first read
    if gone is None or latest is None or latest.is_over:
        return latest
    state, reason = gone
    state = state if latest.state == QUEUED else FAILED
    return replace(latest, state=state, reason=reason, launcher=None)


def reconcile(folder: Path, queue: SlurmQueue | None = None) -> Status | None:
    """Return the true status of a run as `observe`, and write it if the process or job of the run no longer exists."""
    observed, stored = observe(folder, queue), read(folder)
    if observed is None or not observed.is_over or stored is None or stored.is_over:
        return observed
    mark = mark_not_started if observed.state == NOT_STARTED else mark_failed
    mark(folder, observed.reason or "")
    return read(folder)


def is_visible(folder: Path, status: Status, queue: SlurmQueue | None = None) -> bool:
    """Return whether it can be known here if the process or job of a run exists."""
    if job_id(folder):
        return (queue or SlurmQueue()).states() is not None
    owner = _responsible(status)
    return owner is None or owner.host == socket.gethostname()


def _responsible(status: Status) -> Attempt | None:
    """Return the process that executes a run, or that will start a queued run."""
    return status.launcher if status.state == QUEUED else status.starts[-1] if status.starts else None


def _owner(status: Status) -> str:
    owner = _responsible(status)
    if owner is None:
        return "another process"
    return f"{f'job {owner.slurm_id}' if owner.slurm_id else f'process {owner.pid}'} on {owner.host}"


def _why_gone(folder: Path, status: Status, queue: SlurmQueue) -> tuple[str, str] | None:
    """Return the new state of a run that no process executes any more, and the reason.

    Returns None if a process executes the run or will execute it, or if this is unknown.
    """
    if slurm_id := job_id(folder):
        state = queue.final_state(slurm_id)
        if state is not None and state.startswith("CANCELLED") and status.state == QUEUED:
            return NOT_STARTED, f"job {slurm_id} was canceled"
        if state is None:
            return None
        output = job_output(folder, slurm_id, has_started=status.state == RUNNING)
        return FAILED, f"job {slurm_id} ended without a status: {state}{f'; {output}' if output else ''}"
    owner = _responsible(status)
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
    content = {name: value for name, value in asdict(status).items() if name != "silent_since"}
    text = json.dumps(with_text(content), indent=2) + "\n"
    try:
        with atomic_file(folder / STATUS, concurrent=True) as partial:
            partial.write_text(text)
    except OSError as error:
        if write_error(error) is None or not (folder / STATUS).is_file():
            raise
        overwrite(folder / STATUS, text)
