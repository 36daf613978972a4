"""Base class of callbacks that sample or measure once more after the last checkpoint of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer


class AfterTraining(Callback, ABC):
    """Callback with an action after the last checkpoint of a complete run.

    The action changes no checkpoint, so that a run that is resumed with more steps equals a run that never stopped. A
    run that is stopped or fails has no such action, and neither has a test run: one with fast_dev_run or with
    detect_anomaly, as trainer=debug has.
    """

    @abstractmethod
    def after_training(self, trainer: Trainer, pl_module: Any) -> None:
        """Do the action, unless it was already done at this step. Collective: called on all ranks."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from diffusion_lab.callbacks.checkpoints import SaveLast  # imports this module

        if not any(isinstance(callback, SaveLast) for callback in trainer.callbacks):
            run_after_training(trainer, pl_module, only=self)


def run_after_training(trainer: Trainer, pl_module: LightningModule, only: AfterTraining | None = None) -> None:
    """Run the actions of all callbacks of the trainer, or of a single one, unless this is a test run.

    If a fit has ended, the module is on the CPU and is moved to its device again.
    """
    if trainer.fast_dev_run or trainer._detect_anomaly:
        return
    pl_module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:
        if isinstance(callback, AfterTraining) and only in (None, callback):
            callback.after_training(trainer, pl_module)


def log_after_training(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Log metrics that were measured after the last checkpoint. A resumed run removes them from `metrics.csv`."""
    for logger in trainer.loggers:
        log = getattr(logger, "log_after_training", logger.log_metrics)
        log(metrics, step=trainer.global_step)
