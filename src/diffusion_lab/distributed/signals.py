"""Signal handlers that stop a command gracefully on SIGTERM or SIGUSR1. Training stops at the end of a step.

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
    """Exception that stops a command after a signal.

    number: signal number.  step: number of completed training steps; None if the command does not train.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{after}")
        self.number, self.step = number, step

    @property
    def requests_requeue(self) -> bool:
        """Whether the job must be requeued: the signal is SIGUSR1, and the process belongs to a Slurm job."""
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
    """Install a handler for SIGTERM, SIGUSR1 and the signals in `others`; return the previous handlers by number."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # only the main thread can install handlers
    return {number: signal.signal(number, handler) for number in (*STOP_SIGNALS, *others)}


def restore(before: dict[int, Any]) -> None:
    """Restore the handlers that `install` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    raise StoppedBySignal(number)
