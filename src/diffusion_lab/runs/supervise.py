"""One attempt at a run: its folder held, its status kept, and every way in which it can end.

Torch and Lightning are not imported here.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from diffusion_lab.distributed import signals, slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status

Result = TypeVar("Result")


class FolderInUseError(UserError):
    """The folder is that of another run, which must be left as it is."""


def supervise(folder: Path, work: Callable[[], Result], *, in_sweep: bool = False) -> Result:
    """What `work` answers; the status file in `folder` says what became of it.

    in_sweep: a refusal of this folder is told in it, since the sweep looks there; else it stays as it was.

    A signal ends the process between two steps: with SIGUSR1 a Slurm job is queued again, else the exit status is as
    the shell tells of a signal, never that of a success.  Raises ForeignFolderError where another command works in the
    folder.
    """
    if slurm_job.rank() > 0:
        return _beside_the_first(folder, work)
    try:
        with run_status.locked(folder):
            before = run_status.read(folder)
            run_status.mark_running(folder)
            try:
                return _watched(folder, work)
            except FolderInUseError:
                if not in_sweep and (before is None or before.state != run_status.QUEUED):
                    run_status.restore(folder, before)
                raise
    except run_status.FolderLockedError as error:
        raise FolderInUseError(str(error)) from None


def _watched(folder: Path, work: Callable[[], Result]) -> Result:
    try:
        with signals.raise_on_signal():
            result = work()
    except StoppedBySignal as stop:
        _stopped(folder, stop)
    except SystemExit as end:  # Lightning ends so on a SIGTERM that comes before its first step, and without a status
        run_status.mark_failed(folder, f"ended with status {end.code}" if end.code else "stopped by SIGTERM")
        sys.exit(end.code or 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        run_status.mark_failed(folder, "interrupted")
        raise
    except UserError as error:
        run_status.mark_failed(folder, str(error))
        raise
    except Exception as error:
        run_status.mark_failed(folder, f"{type(error).__name__}: {error}")
        raise
    run_status.mark_finished(folder, result if isinstance(result, float) else None)
    return result


def _beside_the_first(folder: Path, work: Callable[[], Result]) -> Result:
    try:
        with signals.raise_on_signal():
            return work()
    except StoppedBySignal:
        sys.exit(0)  # the first process says how the run ended; some launchers would kill it for another status
    except UserError:
        raise
    except Exception as error:
        run_status.mark_failed(folder, f"process {slurm_job.rank()}: {type(error).__name__}: {error}")
        raise


def _stopped(folder: Path, stop: StoppedBySignal) -> NoReturn:
    if stop.requests_requeue:
        run_status.mark_requeued(folder, str(stop))
        refusal = slurm_job.requeue()
        if refusal is None:
            print(
                f"{stop}; job {slurm_job.slurm_id()} is queued again and goes on from there.",
                file=sys.stderr,
                flush=True,
            )
            _await_the_end()
        run_status.mark_failed(folder, f"{stop}, but {refusal}")
        print(f"warning: {refusal}", file=sys.stderr, flush=True)
    else:
        run_status.mark_failed(folder, str(stop))
    sys.exit(128 + stop.number)


def _await_the_end() -> NoReturn:
    """Slurm ends a job that it queues again; an end of its own could be taken for the job's."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)
    os._exit(128 + signal.SIGUSR1)
