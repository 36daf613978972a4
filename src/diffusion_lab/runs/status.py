"""The status file of a run: what became of it, whatever the scheduler thinks.

queued -> running -> finished, or failed with the reason, or requeued and running again. Only the first process writes,
but for a failure, which is told by the process that failed.
"""

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.slurm_job import SlurmQueue

STATUS, LOCK, JOB = "status.json", ".lock", ".slurm_job"

QUEUED, RUNNING, REQUEUED, FINISHED, FAILED = "queued", "running", "requeued", "finished", "failed"


class FolderLockedError(Exception):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run.  began, ended: seconds since 1970; ended is None until it is known.

    slurm_id: of the job, if there was one.  pid, ticks: of the first process on `host`, see `job.ticks`.
    """

    began: float
    slurm_id: str | None
    host: str
    pid: int
    ticks: int | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Status:
    """state: one of the five.  reason: of a failure.  result: the number that a finished run came to.  since: of state.

    launcher: the process that will start a queued run.
    """

    state: str
    since: float
    reason: str | None = None
    result: float | None = None
    launcher: Attempt | None = None
    starts: tuple[Attempt, ...] = field(default=())

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in (FINISHED, FAILED)

    def hours(self, last_sign: float | None = None) -> float:
        """Of all starts together; one whose end nobody saw counts to its last sign of life, or to the next start."""
        ends = [start.began for start in self.starts[1:]]
        ends.append(time.time() if self.state == RUNNING else last_sign or self.since)
        spans = [(start.ended or end) - start.began for start, end in zip(self.starts, ends, strict=False)]
        return sum(max(0.0, span) for span in spans) / 3600


def read(folder: Path) -> Status | None:
    """What a folder's status file says; None where there is none."""
    try:
        content = json.loads((folder / STATUS).read_text())
        starts = tuple(Attempt(**start) for start in content.pop("starts"))
        launcher = content.pop("launcher")
        return Status(**content, launcher=launcher and Attempt(**launcher), starts=starts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged, or of another version
        return None


def mark_queued(folder: Path) -> None:
    """Says that a run waits for its turn."""
    known = read(folder)
    (folder / JOB).unlink(missing_ok=True)
    _write(folder, Status(QUEUED, time.time(), launcher=_this_process(), starts=known.starts if known else ()))


def write_job_id(folder: Path, slurm_id: str) -> None:
    """Tells which Slurm job a queued run waits for. A file of its own: the run may have started by now."""
    (folder / JOB).write_text(slurm_id)


def job_id(folder: Path) -> str | None:
    """The job that works on a run, or will."""
    known = read(folder)
    if known is not None and known.state in (RUNNING, REQUEUED) and known.starts:
        return known.starts[-1].slurm_id
    path = folder / JOB
    return path.read_text().strip() or None if path.is_file() else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder while this one works in it.  Raises FolderLockedError where one is there."""
    lock = FileLock(folder / LOCK)  # it belongs to the process: where that dies, the system lets go of it
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderLockedError(
            f"{folder} is being worked in by another process; wait for its end, or stop it."
        ) from None
    try:
        known = reconcile(folder)
        if known is not None and known.state == RUNNING and not _is_this_job(known.starts[-1]):
            last = known.starts[-1]
            where = f"job {last.slurm_id}" if last.slurm_id else f"process {last.pid}"
            raise FolderLockedError(
                f"{folder} is being worked in by {where} on {last.host}; wait for its end, or stop it."
            )
        yield
    finally:
        lock.release()


def mark_running(folder: Path) -> None:
    """Says that this process runs now."""
    known = read(folder)
    start = _this_process()
    _write(folder, Status(RUNNING, start.began, starts=(*(known.starts if known else ()), start)))


def restore(folder: Path, status: Status | None) -> None:
    """Makes a start undone that had nothing to do with the run in the folder.  status: of before."""
    if status is None:
        (folder / STATUS).unlink(missing_ok=True)
    else:
        _write(folder, status)


def mark_requeued(folder: Path, reason: str) -> None:
    """Says that the job is to start again."""
    _end(folder, REQUEUED, reason=reason)


def mark_finished(folder: Path, result: float | None) -> None:
    """Says that all is done, and what it came to."""
    _end(folder, FINISHED, result=result if result is not None and math.isfinite(result) else None)


def mark_failed(folder: Path, reason: str) -> None:
    """Says why there is no result.  The first reason of a start stays: the other processes fail of it."""
    known = read(folder)
    if known is None or known.state != FAILED:
        _end(folder, FAILED, reason=" ".join(reason.split())[:500])


def _end(folder: Path, state: str, **more: Any) -> None:
    known, now = read(folder), time.time()
    starts = known.starts if known else ()
    if starts:
        starts = (*starts[:-1], replace(starts[-1], ended=starts[-1].ended or now))
    _write(folder, Status(state, now, starts=starts, **more))


def reconcile(folder: Path, queue_now: "SlurmQueue | None" = None) -> Status | None:
    """The truth about a run: one that nobody works on any more is written down as failed."""
    known = read(folder)
    if known is None or known.is_over:
        return known
    gone = _why_gone(folder, known, queue_now or SlurmQueue())
    if gone is None:
        return known
    known = read(folder)  # it may have ended while we asked
    if known is not None and not known.is_over:
        mark_failed(folder, gone)
    return read(folder)


def _why_gone(folder: Path, known: Status, queue_now: "SlurmQueue") -> str | None:
    if identity := job_id(folder):
        return queue_now.why_gone(identity)
    owner = known.launcher if known.state == QUEUED else known.starts[-1] if known.starts else None
    if owner is None or owner.host != socket.gethostname() or slurm_job.start_ticks(owner.pid) == owner.ticks:
        return None
    return "it was never started" if known.state == QUEUED else f"process {owner.pid} ended without a word"


def _this_process() -> Attempt:
    return Attempt(
        time.time(), slurm_job.slurm_id(), socket.gethostname(), os.getpid(), slurm_job.start_ticks(os.getpid())
    )


def _is_this_job(start: Attempt) -> bool:
    """Whether a start is of this very job; its earlier processes are gone when it starts again."""
    if start.slurm_id is not None or slurm_job.slurm_id() is not None:
        return start.slurm_id == slurm_job.slurm_id()
    return start.host == socket.gethostname() and start.pid == os.getpid()


def _write(folder: Path, status: Status) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATUS}.{os.getpid()}"
    partial.write_text(json.dumps(asdict(status), indent=2) + "\n")
    partial.replace(folder / STATUS)  # whoever reads finds it whole
