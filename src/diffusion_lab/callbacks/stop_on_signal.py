"""Ctrl-C, SIGTERM and SIGUSR1 end a run between two steps, where nothing is lost."""

import signal
import sys
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed as dist

from diffusion_lab.distributed import signals
from diffusion_lab.distributed.signals import StoppedBySignal


class StopOnSignal(Callback):
    """Raises StoppedBySignal before a step that follows a signal, on all processes before the same one.

    Lightning's own handlers would end the run in the middle of an update (Ctrl-C), save in one (SIGUSR1), or wait for
    processes that are elsewhere (SIGTERM). A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._asked: _Asked | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = 0
        self._before = signals.install(self._note, signal.SIGINT)
        if trainer.world_size > 1:
            self._asked = _Asked()
            # Lightning asks after every batch too, and waits for the answer, and so for the device.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        number = self._received if self._asked is None else self._asked.of_all(self._received)
        if number:
            raise StoppedBySignal(number, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received and number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C again ends at once.", file=sys.stderr, flush=True)
        self._received = self._received or number  # a SIGTERM after a SIGUSR1 is the same end drawing near

    def _restore(self) -> None:
        signals.restore(self._before)
        self._before, self._asked = {}, None


class _Asked:
    """The processes tell each other of signals while a step runs, and know at the next: no step waits for it.

    Over a group of their own on the CPU, so that a GPU is not waited for either.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._said = torch.zeros((), dtype=torch.int64)
        self._work: Any = None

    def of_all(self, received: int) -> int:
        """The largest number that a process said when it was last asked; what this one says now counts at the next."""
        if self._work is not None:
            self._work.wait()
        number = int(self._said)
        self._said = torch.tensor(received)
        self._work = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return number
