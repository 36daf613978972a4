"""A callback that stops a run on Ctrl-C, SIGTERM or SIGUSR1 between two steps, so that no completed step is lost."""

import logging
import signal
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed as dist

from diffusion_lab.distributed import signals
from diffusion_lab.distributed.signals import StoppedBySignal

logger = logging.getLogger(__name__)


class StopOnSignal(Callback):
    """Callback that raises StoppedBySignal before the first step after a signal, at the same step on all ranks.

    Lightning's own handlers could stop the run within an optimizer step (Ctrl-C), save a checkpoint within an optimizer
    step (SIGUSR1), or wait in a collective that the other ranks do not enter (SIGTERM). A second Ctrl-C stops the run
    immediately.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous_handlers: dict[int, Any] = {}
        self._exchange: _SignalExchange | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = 0
        self._previous_handlers = signals.install(self._handle, signal.SIGINT)
        if trainer.world_size > 1:
            self._exchange = _SignalExchange()
            # Lightning exchanges signals after every batch and waits for the result, and thus for the device.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        number = self._received if self._exchange is None else self._exchange.all_reduce_max(self._received)
        if number:
            raise StoppedBySignal(number, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()  # not at the end of training, after which the last measurement follows

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _handle(self, number: int, frame: Any) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received and number == signal.SIGINT:
            logger.info("stopping after this step; press Ctrl-C again to stop immediately.")
        self._received = self._received or number  # a SIGTERM that follows a SIGUSR1 has the same cause

    def _restore_handlers(self) -> None:
        # When a fit has ended, Lightning has already restored the handlers that it had replaced itself.
        own = {n: handler for n, handler in self._previous_handlers.items() if signal.getsignal(n) == self._handle}
        signals.restore(own)
        self._previous_handlers, self._exchange = {}, None


class _SignalExchange:
    """Exchange of received signals between the ranks in the background.

    The result of an exchange is read at the next step. A separate process group on the CPU ensures that no rank waits
    for its GPU.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self._largest = torch.zeros((), dtype=torch.int64)
        self._work: Any = None

    def all_reduce_max(self, received: int) -> int:
        """Return the largest number that any rank passed to the previous call, and start to exchange `received`.

        received: number of the signal that this rank has received, or 0.  Collective: call it on all ranks.
        """
        if self._work is not None:
            self._work.wait()
        number = int(self._largest)
        self._largest = torch.tensor(received)
        self._work = dist.all_reduce(self._largest, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return number
