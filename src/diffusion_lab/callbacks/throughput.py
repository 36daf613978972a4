"""A callback that logs the training speed and the time spent waiting for data."""

import time
from collections import deque
from typing import Any

from lightning import Callback, Trainer

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.training.base_module import TrainedModule


class Throughput(Callback):
    """Callback that logs images_per_second, over all ranks, and data_wait, the fraction of time spent waiting for data.

    Both are means over the last num_steps batches, without the time spent on sample images and metrics.
    """

    def __init__(self, num_steps: int = 50) -> None:
        """num_steps: number of batches in the means."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self._training: deque[float] = deque(maxlen=num_steps)
        self._waiting: deque[float] = deque(maxlen=num_steps)
        self._started = self._waited = 0.0
        self._num_batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainedModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainedModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        if self._num_batches == 1:  # the first batch includes the initialization of kernels
            self._training.clear()
            self._waiting.clear()
        self._num_batches += 1
        self._training.append(time.perf_counter() - self._started)
        previous, self._waited = self._waited, trainer.datamodule.seconds_waited
        self._waiting.append(self._waited - previous)
        waiting, seconds = sum(self._waiting), sum(self._training) + sum(self._waiting)
        speed = len(batch) * trainer.world_size * len(self._training) / seconds
        pl_module.log_step(images_per_second=speed, data_wait=waiting / seconds)
