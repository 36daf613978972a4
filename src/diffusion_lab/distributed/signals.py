"""Graceful stop of a command on SIGTERM and on Slurm's SIGUSR1. Training stops at the end of a step.

Slurm sends SIGUSR1 before a time limit or a preemption (--signal=USR1@SECONDS). The job is then requeued.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusion_lab.distributed import slurm_job

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedBySignal(BaseException):
    """Stop of the command by a signal.  number: signal number.  step: number of completed training steps."""

    def __init__(self, number: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{after}")
        self.number, self.step = number, step

    @property
    def requests_requeue(self) -> bool:
        """Whether the signal requests that Slurm requeues the job."""
        return self.number == signal.SIGUSR1 and slurm_job.slurm_id() is not None


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise StoppedBySignal if a stop signal arrives inside the context.

    The default action of the signal would kill the process silently.
    """
    before = install(_raise)
    try:
        yield
    finally:
        restore(before)


def install(handler: Any, *others: int) -> dict[int, Any]:
    """Install a handler for the stop signals and `others`; return the previous handler of each signal number."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # only the main thread can install handlers
    return {number: signal.signal(number, handler) for number in (*STOP_SIGNALS, *others)}


def restore(before: dict[int, Any]) -> None:
    """Restore the handlers that `install` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    raise StoppedBySignal(number)
