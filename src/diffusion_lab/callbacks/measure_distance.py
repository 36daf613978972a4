"""How far samples are from the data, during training."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.progress import long_task
from diffusion_lab.lightning_module import DiffusionModule
from diffusion_lab.metrics.features import to_uint8
from diffusion_lab.metrics.frechet import FrechetDistance
from diffusion_lab.samplers import Sampler


class MeasureDistance(Callback):
    """Every n steps: the distance of the averaged network's samples to the training images, logged under its name.

    The checkpoint with the smallest distance is kept as `best.ckpt`. Every process draws its share of the samples.
    A run shorter than every_n_steps measures at the steps of also_at alone.
    """

    def __init__(
        self,
        metric: FrechetDistance,
        folder: str,
        *,
        sampler: Sampler,
        every_n_steps: int,
        also_at: Sequence[int] = (),
        batch_size: int = 250,
        guidance_scale: float = 1.0,
    ) -> None:
        """folder: of the checkpoint.  sampler: may be cheaper than that of the pictures.  batch_size: of sampling."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.metric, self.folder, self.sampler = metric, Path(folder), sampler
        self.every, self.batch_size, self.guidance_scale = Every(every_n_steps, also_at), batch_size, guidance_scale
        self.history: list[tuple[int, float]] = []
        """(step, distance) of every measurement."""
        self.seconds = 0.0
        """Spent measuring so far."""

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.every.start_at(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        if self.every.due(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if trainer.global_step >= self.every.num_steps and self.every.left_over(trainer.global_step):
            self._measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(int(step), float(distance)) for step, distance in state_dict["history"]]

    def _measure(self, trainer: Trainer, module: DiffusionModule) -> None:
        started = time.perf_counter()
        metric = self.metric.to(module.device)
        self._add_reference(trainer)
        metric.reset_samples()
        seeds = _share(trainer, metric.num_samples)
        with long_task(trainer, f"measuring {metric.name}", len(seeds)) as advance:
            for first in range(0, len(seeds), self.batch_size):
                batch = seeds[first : first + self.batch_size]
                images = module.sample(batch, sampler=self.sampler, guidance_scale=self.guidance_scale)
                metric.update(to_uint8(images), reference=False)
                advance(len(batch))
        distance = float(metric.compute())
        self.history.append((trainer.global_step, distance))
        self.seconds += time.perf_counter() - started
        for logger in trainer.loggers:
            logger.log_metrics({metric.name: distance}, step=trainer.global_step)
        if distance <= min(value for _, value in self.history):
            trainer.save_checkpoint(self.folder / checkpoint_files.BEST)

    def _add_reference(self, trainer: Trainer) -> None:
        if int(self.metric.reference_count):
            return
        images = trainer.datamodule.train_images
        for part in images.select(np.array(_share(trainer, len(images)), dtype=np.int64)).batches(500):
            self.metric.update(part.to(self.metric.device), reference=True)


def _share(trainer: Trainer, size: int) -> range:
    """The part of 0..size-1 that falls to this process: no padding, no repeats."""
    rank, world_size = trainer.global_rank, trainer.world_size
    return range(rank * size // world_size, (rank + 1) * size // world_size)
