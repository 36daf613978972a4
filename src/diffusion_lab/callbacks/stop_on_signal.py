"""A callback that stops a run on Ctrl-C or a stop signal between two steps, so that no completed step is lost."""

import logging
import signal
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import distributed as dist

from diffusion_lab.distributed.signals import OF_OTHER_RANK, StoppedBySignal, StopRequest

logger = logging.getLogger(__name__)


class StopOnSignal(Callback):
    """Callback that raises StoppedBySignal before the first step after a signal, at the same step on all ranks.

    Lightning's own handlers could stop the run within an optimizer step (Ctrl-C), save a checkpoint within an optimizer
    step (SIGUSR1), or wait in a collective that the other ranks do not enter (SIGTERM). A signal also ends the
    generation of sample images and measurements, which the resumed run repeats. A second Ctrl-C stops the run
    immediately.
    """

    def __init__(self) -> None:
        self._request: StopRequest | None = None
        self._exchange: _SignalExchange | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        launcher = trainer.strategy.launcher

        def stop(number: int) -> None:
            for process in getattr(launcher, "procs", ()):  # the ranks that Lightning started from this process
                process.send_signal(OF_OTHER_RANK)
            if number == signal.SIGINT:
                logger.info("stopping after this step; press Ctrl-C again to stop immediately.")

        self._request = StopRequest(stop, lambda: trainer.global_step)
        if trainer.world_size > 1:
            self._exchange = _SignalExchange()
            # Lightning exchanges signals after every batch and waits for the result, and thus for the device.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._request is None or batch_idx % trainer.accumulate_grad_batches:
            return
        received = self._request.number
        number = received if self._exchange is None else self._exchange.all_reduce_max(received)
        if number:
            raise StoppedBySignal(number, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._withdraw()  # not at the end of training, after which the last measurement follows

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._withdraw()

    def _withdraw(self) -> None:
        if self._request is not None:
            self._request.withdraw()
        self._request = self._exchange = None


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
