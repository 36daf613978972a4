"""A callback that compares generated images with the training images during training."""

import time
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import PeriodicAction, log_metrics
from diffusion_lab.callbacks.progress import long_task
from diffusion_lab.contracts import described
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.number import Number
from diffusion_lab.evaluation.reference import ImageReference
from diffusion_lab.evaluation.training_reference import TrainingReference
from diffusion_lab.generation.conditions_of_images import training_condition_images
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.samplers import Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule


class MeasureDistance(PeriodicAction):
    """Callback that compares samples from the averaged network with the training images every n steps.

    A metric may have several values, such as precision and recall. All of them are logged, and the checkpoint with the
    best first value is kept as `best.ckpt`. Each rank generates a part of the samples, and all ranks receive the
    result. A last measurement follows the last checkpoint of a run; it is neither part of the state of this callback
    nor a candidate for `best.ckpt`.
    """

    def __init__(
        self,
        metric: Metric,
        folder: str,
        *,
        sampler: Sampler,
        num_samples: int,
        every_n_steps: int,
        also_at: Sequence[int] = (),
        batch_size: int = 100,
        guidance: Guidance | None = None,
    ) -> None:
        """metric: metric of the generated images.  folder: folder in which `best.ckpt` is saved.

        sampler: sampler for the measured images, which may be cheaper than the sampler for the image grids.
        num_samples: number of images that are sampled for each measurement.
        also_at: additional steps at which to measure.
        batch_size: number of images that are sampled at a time.
        """
        if not isinstance(metric, Metric):
            raise ValueError(
                "the first choice in `metrics` must measure generated images, as fid and kid do (nll and flow measure "
                f"images of the data set), got {getattr(metric, 'choice', None) or described(metric)}; try "
                "metrics=[fid,nll]."
            )
        if num_samples < metric.min_images:
            raise ValueError(f"num_samples must be at least {metric.min_images} for {metric.title}, got {num_samples}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        super().__init__(Every(every_n_steps, also_at))
        self.metric, self.folder, self.sampler, self.num_samples = metric, Path(folder), sampler, num_samples
        self.batch_size, self.guidance = batch_size, guidance
        self.history: list[tuple[int, float]] = []
        """(step, first metric value) of each measurement during training."""
        self.at_end: tuple[int, float] | None = None
        """(step, first metric value) of the measurement after training, if there was one."""
        self.numbers: list[Number] = []
        """All metric values of the last measurement."""
        self.seconds = 0.0
        """Time spent on measurements so far."""
        self._evaluator: Evaluator | None = None
        self._started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self._started = time.perf_counter()

    def act(self, trainer: Trainer, pl_module: DiffusionModule, *, after_training: bool) -> None:
        self.numbers, metrics = self._measure(trainer, pl_module)
        log_metrics(trainer, metrics, after_training=after_training)
        value = self.numbers[0].value
        if after_training:
            self.at_end = trainer.global_step, value
            return
        self.history.append((trainer.global_step, value))
        self._completed = trainer.global_step  # before best.ckpt is saved, which contains it
        for logger in trainer.loggers:
            if hasattr(logger, "log_numbers"):
                logger.log_numbers(self.numbers, step=trainer.global_step)
        best = (max if self.metric.higher_is_better else min)(value for _, value in self.history)
        if value == best:
            trainer.save_checkpoint(self.folder / checkpoint_files.BEST)

    def state_dict(self) -> dict[str, Any]:
        numbers = [astuple(number) for number in self.numbers]
        return super().state_dict() | {"history": self.history, "numbers": numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.history = [(int(step), float(distance)) for step, distance in state_dict["history"]]
        self.numbers = [Number(*number) for number in state_dict["numbers"]]

    def _measure(self, trainer: Trainer, module: DiffusionModule) -> tuple[list[Number], dict[str, float]]:
        """Return the metric values, and what to log: their values and the duration of the measurement."""
        started = time.perf_counter()
        self._evaluator = self._evaluator or self._build_evaluator(trainer, module)
        numbers = self._evaluator.measure([self.metric])
        now = time.perf_counter()
        self.seconds += now - started
        durations = {"measuring_seconds": now - started, "measuring_share": self.seconds / (now - self._started)}
        return numbers, {number.name: number.value for number in numbers} | durations

    def _build_evaluator(self, trainer: Trainer, module: DiffusionModule) -> Evaluator:
        datamodule = trainer.datamodule
        images = SeededImages(
            module,
            sampler=self.sampler,
            guidance=self.guidance,
            batch_size=self.batch_size,
            condition_images=training_condition_images(datamodule),
        )
        reference = ImageReference(datamodule.train_images, "train", datamodule.store.cache.references)
        held_out = self.metric.needs_held_out
        return Evaluator(
            images,
            reference,
            self.num_samples,
            training=TrainingReference.of(datamodule.store, datamodule.train_images) if held_out else None,
            precision=str(trainer.precision),
            display=partial(long_task, trainer),
        )
