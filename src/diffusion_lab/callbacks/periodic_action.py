"""Base class of callbacks that sample or measure every n steps, and once more after the last checkpoint of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from diffusion_lab.callbacks.every import Every
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.training.base_module import TrainedModule


class PeriodicAction(Callback, ABC):
    """Callback with an action after some steps, and once more after the last checkpoint of a complete run.

    An action that a signal interrupts is repeated when the run is resumed. The action after the last checkpoint changes
    no checkpoint, so that a run that is resumed with more steps equals a run that never stopped. A run that is stopped
    or fails has no such action, and neither has a test run: one with fast_dev_run or with detect_anomaly, as
    trainer=debug has.
    """

    def __init__(self, every: Every) -> None:
        """every: the steps after which the action is due."""
        self.every = every
        self._stop: StoppedBySignal | None = None
        self._completed: int | None = None  # the last step with a complete action, which checkpoints contain

    @abstractmethod
    def act(self, trainer: Trainer, pl_module: Any, *, after_training: bool) -> None:
        """Do the action. Collective: called on all ranks.  after_training: whether the last checkpoint is saved."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, self._stop = trainer.global_step, None
        self.every.start_at(step if self._completed is None else self._completed)
        self._completed = self._completed or 0
        self._act_if_due(trainer, pl_module)  # the action after this step may have been interrupted

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if isinstance(pl_module, TrainedModule):
            pl_module.write_metrics()  # before those of the action, as in a resumed run that repeats the action
        self._act_if_due(trainer, pl_module)

    def _act_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every.due(trainer.global_step):
            return
        try:
            self.act(trainer, pl_module, after_training=False)
        except StoppedBySignal as stop:
            if stop.step is None:
                raise
            self._stop = stop  # raised when the other callbacks and the module have finished the step
        else:
            self._completed = trainer.global_step

    def on_train_batch_start(self, *args: Any) -> None:
        if self._stop is not None:
            raise self._stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_batch_start()
        from diffusion_lab.callbacks.checkpoints import SaveLast  # imports this module

        if not any(isinstance(callback, SaveLast) for callback in trainer.callbacks):
            run_after_training(trainer, pl_module, only=self)

    def state_dict(self) -> dict[str, Any]:
        return {"completed": self._completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._completed = state_dict.get("completed")  # versions before 0.4 did not store it
        self.every.start_at(self._completed or 0)


def run_after_training(trainer: Trainer, pl_module: LightningModule, only: PeriodicAction | None = None) -> None:
    """Run the actions of all callbacks of the trainer, or of a single one, unless this is a test run.

    If a fit has ended, the module is on the CPU and is moved to its device again.
    """
    if trainer.fast_dev_run or trainer._detect_anomaly:
        return
    pl_module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:
        is_meant = isinstance(callback, PeriodicAction) and only in (None, callback)
        if is_meant and callback.every.due_at_end(trainer.global_step):
            # After a signal in the last step, the regular action of this step is still to be done.
            callback.act(trainer, pl_module, after_training=not callback.every.includes(trainer.global_step))


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], *, after_training: bool) -> None:
    """Log metrics. A resumed run removes metrics that were measured after training from `metrics.csv`."""
    for logger in trainer.loggers:
        log = getattr(logger, "log_after_training", logger.log_metrics) if after_training else logger.log_metrics
        log(metrics, step=trainer.global_step)
