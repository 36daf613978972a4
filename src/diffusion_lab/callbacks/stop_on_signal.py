"""Ctrl-C and SIGTERM end a run between two steps, where nothing is lost."""

import signal
import sys
import threading
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.distributed import ReduceOp

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignal(Exception):  # noqa: N818 - nothing went wrong
    """Training was asked to end.  step: how many steps are done.  number: of the signal."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.step, self.number = step, number


class StopOnSignal(Callback):
    """Raises StoppedBySignal before the step that follows a signal, on all processes before the same one.

    Lightning's own handlers would end the run in the middle of an update (Ctrl-C), or after a batch that may be one of
    several accumulated ones (SIGTERM). A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and (number := self._received_by_any(trainer)):
            raise StoppedBySignal(trainer.global_step, number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received and number == signal.SIGINT:
            print("\nstopping after this step; Ctrl-C again ends at once.", file=sys.stderr, flush=True)
        self._received = number

    def _received_by_any(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op=ReduceOp.MAX))

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
