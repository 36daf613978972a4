"""What SIGTERM and Slurm's SIGUSR1 do to a command: its orderly end. In training that waits for the end of a step.

Slurm sends SIGUSR1 before a time limit or a preemption (--signal=USR1@SECONDS): the job wants to be started again.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusion_lab.distributed import slurm_job

ENDING = (signal.SIGTERM, signal.SIGUSR1)


class StoppedBySignal(BaseException):
    """The command was asked to end.  number: of the signal.  step: how many steps of training are done."""

    def __init__(self, number: int, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name}{after}")
        self.number, self.step = number, step

    @property
    def requests_requeue(self) -> bool:
        """Whether it is the end of a job that Slurm can start again."""
        return self.number == signal.SIGUSR1 and slurm_job.slurm_id() is not None


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """While a command runs, a signal raises StoppedBySignal: by itself it would kill without a word."""
    before = install(_raise)
    try:
        yield
    finally:
        restore(before)


def install(handler: Any, *others: int) -> dict[int, Any]:
    """Gives the ending signals, and `others`, a handler; those of before."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals reach no other
    return {number: signal.signal(number, handler) for number in (*ENDING, *others)}


def restore(before: dict[int, Any]) -> None:
    """Gives signals the handlers of before."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    raise StoppedBySignal(number)
