"""How fast training goes."""

import time
from collections import deque
from typing import Any

from lightning import Callback, LightningModule, Trainer

from diffusion_lab.data.image_datamodule import ImageBatch


class Throughput(Callback):
    """Logs images_per_second over all processes: the mean of the last steps, without sampling and measuring."""

    def __init__(self, num_steps: int = 50) -> None:
        """num_steps: length of the mean."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self._seconds: deque[float] = deque(maxlen=num_steps)
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        self._seconds.append(time.perf_counter() - self._started)
        if len(self._seconds) > 1 and batch_idx < self._seconds.maxlen:  # type: ignore[operator]
            rest = list(self._seconds)[1:]  # the very first step also prepares kernels
        else:
            rest = list(self._seconds)
        self.log("images_per_second", len(batch) * trainer.world_size * len(rest) / sum(rest))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning logs every log_every_n_steps alone: without this a shorter run would leave no numbers at all.
        if trainer.global_step % trainer.log_every_n_steps:
            numbers = {key: float(value) for key, value in trainer.callback_metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)
                logger.save()
