"""Supervision of a run: the folder is locked, and the status file records the start and every kind of end of the run.

Torch and Lightning are not imported here.
"""

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from diffusion_lab.distributed import launch, signals, slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import remove_leftovers, write_error
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.heartbeat import heartbeat
from diffusion_lab.runs.saved_progress import Place, saved_files

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class RefusedError(UserError):
    """Error for a command that is refused before it changes anything in its folder, which another command filled."""


@contextmanager
def refused_without_changes(folder: Path) -> Iterator[None]:
    """Raise the UserErrors of the body as RefusedError if the folder contains a run: its status remains as it was."""
    exists = (folder / "config.yaml").is_file()
    try:
        yield
    except UserError as error:
        if not exists or isinstance(error, RefusedError):
            raise
        raise RefusedError(str(error)) from error


def supervise(
    folder: Path,
    work: Callable[[], Result],
    *,
    in_sweep: bool = False,
    take_over: bool = False,
    places: Sequence[Place] = (),
) -> Result:
    """Run `work` and return its result; record its start and its end in the status file of `folder`.

    in_sweep: whether to record a failure even if the folder belongs to another run, because the sweep reads the failure
        from this folder.
    take_over: whether a process on another host that the status names as running has ended, see `run_status.locked`.
    places: places outside of `folder` to which the command saves its progress, see `saved_progress.shared_places`.

    A signal ends the run between two steps: raises StoppedBySignal, after which the exit status of a command is 128 +
    the number of the signal. After SIGUSR1 a Slurm job is requeued, unless two starts in succession have saved no
    progress. Raises RefusedError if another command uses the folder. After a RefusedError of `work`, the status of a
    run that had ended is again what it was before.
    """
    if slurm_job.rank() > 0:
        return _run_on_other_rank(folder, work)
    try:
        with run_status.locked(folder, take_over=take_over), heartbeat(folder):
            remove_leftovers(folder)
            before = run_status.read(folder)
            saved = saved_files(folder, places) if slurm_job.slurm_id() else frozenset()
            try:
                run_status.mark_running(folder)
                return _run_and_record(folder, work)
            except StoppedBySignal as stop:
                with signals.held():  # a second signal must not prevent the record
                    _record_stop(folder, stop, saved=not saved_files(folder, places) <= saved)
                raise
            except RefusedError:
                if not in_sweep and (before is None or before.is_over):
                    run_status.restore(folder, before)
                raise
    except run_status.FolderLockedError as error:
        raise RefusedError(str(error)) from None
    except OSError as error:  # of the lock or the status file
        raise_if_full(error, folder)
        raise


def raise_if_full(error: Exception, folder: Path) -> None:
    """Raise UserError if the cause of an error is a disk that cannot be written, for example because it is full.

    folder: folder that the message names if the error names no file.
    """
    full = None if isinstance(error, UserError) else write_error(error)
    if full is not None:
        raise UserError(
            f"{full.filename or folder} cannot be written ({full.strerror}); free space or make it writable, then "
            "start the same command again."
        ) from error


def _run_and_record(folder: Path, work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0, and record how it ends, unless a signal stops it."""
    try:
        with signals.raise_on_signal(lambda number: _exit_waiting(folder, number)):
            result = work()
    except StoppedBySignal:
        raise
    except SystemExit as end:  # Lightning exits without a status on a SIGTERM before the first step
        run_status.mark_failed(folder, f"ended with exit status {end.code}" if end.code else "stopped by SIGTERM")
        sys.exit(end.code or 128 + signal.SIGTERM)
    except UserError as error:
        run_status.mark_failed(folder, str(error))
        raise
    except Exception as error:
        full = write_error(error)
        run_status.mark_failed(folder, str(full) if full else f"{type(error).__name__}: {error}")
        raise_if_full(error, folder)
        raise
    run_status.mark_finished(folder, result if isinstance(result, float) else None)
    return result


def _run_on_other_rank(folder: Path, work: Callable[[], Result]) -> Result:
    """Run `work` on a rank other than 0; record only an unexpected error."""
    signal.signal(signals.OF_OTHER_RANK, signal.SIG_IGN)
    try:
        with signals.raise_on_signal(lambda number: os._exit(0)):
            signals.unblock()
            return work()
    except StoppedBySignal:
        sys.exit(0)  # rank 0 reports the signal; some launchers would kill it if another rank failed
    except UserError:
        raise
    except Exception as error:
        run_status.mark_failed(folder, f"rank {slurm_job.rank()}: {type(error).__name__}: {error}")
        raise


def _record_stop(folder: Path, stop: StoppedBySignal, *, saved: bool) -> None:
    """Record why a signal has stopped the run. A job that Slurm requeues ends here.

    saved: whether this start of the job has saved progress.
    """
    if not stop.requests_requeue:
        run_status.mark_failed(folder, str(stop))
        return
    run_status.mark_requeued(folder, str(stop), saved=saved)
    if run_status.makes_no_progress(folder):
        reason = (
            f"two starts of job {slurm_job.slurm_id()} in succession were stopped by SIGUSR1 before they saved any "
            "progress, so the job is not requeued; increase its time limit (--time, hydra.launcher.time) or decrease "
            "the seconds between the signal and the limit (--signal=USR1@SECONDS, hydra.launcher.signal_before)."
        )
        run_status.mark_failed(folder, reason)
        logger.error("%s", reason)
        return
    if shutil.which("scontrol"):  # before the request, after which Slurm may end this process at once
        logger.info("%s; job %s is requeued and resumes when Slurm starts it again.", stop, slurm_job.slurm_id())
    refusal = slurm_job.requeue()
    if refusal is None:
        _wait_for_slurm()
    if slurm_job.request_requeue():
        logger.info("%s; the batch script of the job requeues it, so that it resumes (%s).", stop, refusal)
        return
    run_status.mark_failed(folder, f"{stop}, but {refusal}")
    logger.warning("%s", refusal)


def _exit_waiting(folder: Path, number: int) -> NoReturn:
    """End the process after a signal that the main thread cannot raise, see `signals.raise_on_signal`."""
    try:
        launch.kill_new_ranks()
        _record_stop(folder, StoppedBySignal(number), saved=False)
    finally:
        os._exit(128 + number)


def _wait_for_slurm() -> NoReturn:
    """Wait until Slurm ends the requeued job: if the process exited, Slurm could consider the job complete."""
    signals.install(signal.SIG_DFL)
    time.sleep(60)
    os._exit(128 + signal.SIGUSR1)
