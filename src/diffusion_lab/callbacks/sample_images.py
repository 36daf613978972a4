"""A callback that saves sample grids and animations during training."""

from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import PeriodicAction
from diffusion_lab.callbacks.progress import long_task
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.generation.conditions_of_images import training_condition_images
from diffusion_lab.generation.grid_columns import num_columns
from diffusion_lab.generation.seeded_images import SeededImages, generate_with_frames
from diffusion_lab.guidance import Guidance
from diffusion_lab.reporting.image_grids import grid, save_animation, save_picture, side_by_side
from diffusion_lab.training.diffusion_module import DiffusionModule

BATCH_SIZE = 16


class SampleImages(PeriodicAction):
    """Callback that saves a grid of samples, and an animation of the sampling, every n steps and at the end.

    A sample of a network that is conditioned on images is to the right of its condition image.
    Image k always has seed k, so the image in a given cell starts from the same noise tensor in all grids. The images
    are divided among the ranks.
    """

    def __init__(
        self,
        folder: str,
        *,
        every_n_steps: int,
        num_images: int = 64,
        num_columns: int | None = None,
        num_frames: int = 24,
        guidance: Guidance | None = None,
    ) -> None:
        """folder: folder for the image files.  num_frames: number of frames in the animation; 0 saves no animation.

        num_columns: number of columns of a grid; None selects one class per column.
        """
        if num_images < 1 or (num_columns is not None and num_columns < 1):
            raise ValueError(f"num_images and num_columns must be at least 1, got {num_images} and {num_columns}.")
        super().__init__(Every(every_n_steps))
        self.folder = Path(folder)
        self.num_images, self.num_columns, self.num_frames = num_images, num_columns, num_frames
        self.guidance = guidance

    def act(self, trainer: Trainer, pl_module: DiffusionModule, *, after_training: bool) -> None:
        images = SeededImages(
            pl_module,
            guidance=self.guidance,
            batch_size=BATCH_SIZE,
            condition_images=training_condition_images(trainer.datamodule),
        )
        batches = Ranks.current().shard(images.batches(range(self.num_images)))
        num_steps = len(pl_module.sampler.times)
        with long_task(trainer, "sampling", num_steps * len(batches), "steps") as advance:
            samples, frames = generate_with_frames(images, batches, self.num_frames, advance)
        if not trainer.is_global_zero:
            return
        columns = self.num_columns or num_columns(images)
        picture = _picture(images, samples, columns)
        name = f"step_{trainer.global_step:07}"
        save_picture(picture, self.folder / f"{name}.png")
        if frames:
            save_animation([grid(frame, columns) for frame in frames], self.folder / f"{name}.webp")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [picture], step=trainer.global_step)
            elif hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image("samples", picture, trainer.global_step, dataformats="HWC")


def _picture(images: SeededImages, samples: Tensor, num_columns: int) -> np.ndarray:
    """Return a grid of the samples with the seeds 0, 1, ..., next to their condition images if there are any."""
    source = images.condition_images
    if source is None:
        return grid(samples, num_columns)
    conditions = torch.cat([source.pictures(seeds) for seeds in images.batches(range(len(samples)))])
    return grid(side_by_side(conditions, samples), num_columns, tile=112)
