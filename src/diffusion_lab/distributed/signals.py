"""Signals that stop a command gracefully: SIGTERM, SIGUSR1, SIGHUP and Ctrl-C. Training stops at the end of a step.

Slurm sends SIGUSR1 before a time limit or a preemption (--signal=USR1@SECONDS). The job is then requeued. SIGHUP
arrives when the terminal is closed, unless the command was started with nohup.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from diffusion_lab.distributed import slurm_job

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

OF_OTHER_RANK = signal.SIGUSR2
"""Signal by which a rank that received a stop signal interrupts the other ranks in an `interruptible` block."""

PATIENCE = 5.0
"""Seconds within which the main thread must raise a signal, see `raise_on_signal`."""


class StoppedBySignal(SystemExit):
    """Exception that stops a command after a signal; uncaught, it ends the process with the status 128 + `number`.

    number: signal number.  step: number of completed training steps, at which all ranks stop; None if the command does
    not train, or if this rank stops immediately.  is_reported: whether the way to continue has been printed.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        verb = "interrupted" if number == signal.SIGINT else "stopped"
        after = "" if step is None else f" after step {step}"
        super().__init__(f"{verb} by {signal.Signals(number).name}{after}")
        self.number, self.step, self.code = number, step, 128 + number
        self.is_reported = step is not None

    @property
    def requests_requeue(self) -> bool:
        """Whether the job must be requeued: the signal is SIGUSR1, and the process belongs to a Slurm job."""
        return self.number == signal.SIGUSR1 and slurm_job.slurm_id() is not None


@contextmanager
def raise_on_signal(on_wait: Callable[[int], None]) -> Iterator[None]:
    """Raise StoppedBySignal if a stop signal or Ctrl-C arrives inside the context.

    The default action of a stop signal would kill the process silently.

    on_wait: function that ends the process; it receives the number of a signal that could not be raised for
        PATIENCE seconds, because the main thread waits in compiled code, for example for other ranks to start. It is
        called in another thread, and not while other handlers are installed, as in training.
    """
    raised = threading.Event()
    stops: list[StoppedBySignal] = []

    def handle(number: int, frame: Any) -> None:
        raised.set()
        stops.append(StoppedBySignal(number))
        raise stops[-1]

    def watch() -> None:
        while number := int.from_bytes(os.read(reader, 1), "big"):
            if not raised.wait(PATIENCE) and signal.getsignal(number) is handle:
                on_wait(number)
        os.close(reader)

    def send_again(unraisable: Any) -> None:
        """Repeat a signal whose exception Python could not raise, for example in a hook of os.fork."""
        if isinstance(unraisable.exc_value, StoppedBySignal):
            threading.Timer(0.1, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
        else:
            previous_hook(unraisable)

    before = install(handle, signal.SIGINT)
    if not before:
        yield
        return
    previous_hook, sys.unraisablehook = sys.unraisablehook, send_again
    _forget_signals_in_forks()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Python writes the number of each signal
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception as error:
        if stops:  # a library has raised another exception instead
            raise stops[0] from error
        raise
    finally:
        restore(before)
        sys.unraisablehook = previous_hook
        signal.set_wakeup_fd(previous)
        os.close(writer)  # ends the thread


@cache
def _forget_signals_in_forks() -> None:
    """Let processes that are forked from this one not report their signals to this process."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def install(handler: Any, *others: int) -> dict[int, Any]:
    """Install a handler for the stop signals and the signals in `others`; return the previous handlers by number.

    An ignored SIGHUP remains ignored: the command was started with nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # only the main thread can install handlers
    numbers = [n for n in (*STOP_SIGNALS, *others) if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def restore(before: dict[int, Any]) -> None:
    """Restore the handlers that `install` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the block has ended, so that they do not interrupt it. Several signals count as one."""
    received: list[int] = []
    before = install(lambda number, frame: received.append(number), signal.SIGINT)
    try:
        yield
    finally:
        restore(before)
    if received:
        signal.raise_signal(received[0])


class StopRequest:
    """The first signal that a training run receives, until the run stops at the end of a step.

    number: signal number; 0 before the first signal.
    """

    def __init__(self, on_signal: Callable[[int], None], current_step: Callable[[], int]) -> None:
        """on_signal: function that is called with the number of the first signal.

        current_step: function that returns the number of completed training steps.
        """
        self.number = 0
        self._on_signal, self._current_step = on_signal, current_step
        self._interruptible = self._of_other_rank = False
        self._before = install(self._handle, signal.SIGINT, OF_OTHER_RANK)

    def _handle(self, number: int, frame: Any) -> None:
        is_first = not self.number
        if number == OF_OTHER_RANK:
            self._of_other_rank = True
        elif is_first:
            self.number = number  # a SIGTERM that follows a SIGUSR1 has the same cause
            self._on_signal(number)
        elif number == signal.SIGINT:
            raise StoppedBySignal(number)
        if self._interruptible:
            self._raise()

    def _raise(self) -> None:
        raise StoppedBySignal(self.number or OF_OTHER_RANK, self._current_step())

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """See the function `interruptible`."""
        if self.number or self._of_other_rank:
            self._raise()
        self._interruptible = True
        try:
            yield
        except Exception as error:
            if self.number or self._of_other_rank:  # a library has raised another exception instead
                raise StoppedBySignal(self.number or OF_OTHER_RANK, self._current_step()) from error
            raise
        finally:
            self._interruptible = False

    def withdraw(self) -> None:
        """Restore the handlers that were installed before, unless they have been replaced."""
        restore({n: handler for n, handler in self._before.items() if signal.getsignal(n) == self._handle})
        self._before = {}


@contextmanager
def interruptible() -> Iterator[None]:
    """Block that a signal to a training run ends at once with StoppedBySignal, because nothing in it must be complete.

    Several ranks must exchange the exception after the block, see `Ranks.raise_together`.
    """
    request = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(request, StopRequest) or threading.current_thread() is not threading.main_thread():
        yield
        return
    with request.interruptible():
        yield


@contextmanager
def blocked() -> Iterator[None]:
    """Block all stop signals and Ctrl-C in processes that are started inside the context. See `end_with_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGINT, OF_OTHER_RANK})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Receive the signals that are `blocked`, and the pending ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGINT, OF_OTHER_RANK})


def exit_without_parent() -> None:
    """Let this process end when its parent ends, within a second."""
    threading.Thread(target=_wait_for_parent, args=(os.getppid(), time.sleep), daemon=True).start()


def end_with_parent() -> None:
    """Let this process, which was started with signals `blocked`, end when its parent ends or terminates it.

    Signals to the process group, such as Ctrl-C in a terminal, are for the parent, which may still need this process.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS does not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        exit_without_parent()
        return
    parent = os.getppid()

    def wait(seconds: float) -> None:
        info = signal.sigtimedwait({signal.SIGTERM}, seconds)
        if info is not None and info.si_pid == parent:
            os._exit(0)

    threading.Thread(target=_wait_for_parent, args=(parent, wait), daemon=True).start()


def _wait_for_parent(parent: int, wait: Callable[[float], None]) -> None:
    while os.getppid() == parent:
        wait(1.0)
    os._exit(0)
