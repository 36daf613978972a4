"""How often a classifier of noisy images is right, during training."""

from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor

from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.progress import long_task
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.randomness import ImageNoise, permutation
from diffusion_lab.training.classifier_module import ClassifierModule

QUARTERS = (0.0, 0.25, 0.5, 0.75)
"""Shares of the schedule's times at which images are classified."""


class MeasureAccuracy(Callback):
    """Every n steps: the share of images that are classified rightly, at quarters of the schedule's times.

    They are images of the first of these splits that there is: `validation`, `test`, held out, trained on; drawn once
    for all. The name of the number says the split, and the time. Noise is the same at every measurement.
    """

    def __init__(self, *, every_n_steps: int, num_images: int = 2000, batch_size: int = 200) -> None:
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size must be at least 1, got {num_images} and {batch_size}.")
        self.every, self.num_images, self.batch_size = Every(every_n_steps), num_images, batch_size
        self._images: tuple[str, Images] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: ClassifierModule) -> None:
        self.every.start_at(trainer.global_step)
        self._images = self._images or measured_images(trainer.datamodule.store)

    def on_train_batch_end(self, trainer: Trainer, pl_module: ClassifierModule, *args: Any) -> None:
        if self.every.due(trainer.global_step):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ClassifierModule) -> None:
        if self.every.left_over(trainer.global_step):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: ClassifierModule) -> None:
        split, images = self._images = self._images or measured_images(trainer.datamodule.store)
        chosen = permutation(seed=0, epoch=0, size=len(images))[: self.num_images]  # a set may be sorted by class
        whole = range(len(chosen))
        starts = range(0, len(whole), self.batch_size)
        batches = Ranks.current().shard([whole[k : k + self.batch_size] for k in starts])
        module.eval()
        right = torch.zeros(len(QUARTERS), dtype=torch.float64)
        counting = long_task(trainer, f"classifying images of {split}", len(batches), "batches")
        with Ranks.current().raise_together(), counting as advance:
            for batch in batches:
                right += _right(module, images, chosen[batch.start : batch.stop])
                advance(1)
        module.train()
        total = torch.stack(Ranks.current().all_gather_object(right)).sum(dim=0)
        shares = (total / len(whole)).tolist()
        numbers = {f"accuracy_{split}_t{share:g}": value for share, value in zip(QUARTERS, shares, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})


@torch.no_grad()
def _right(module: ClassifierModule, images: Images, batch: np.ndarray) -> Tensor:
    """How many of the images of a batch [B] are classified rightly at each time: float64 [len(QUARTERS)]."""
    x_0 = images.gather(batch).to(module.device).float() / 127.5 - 1
    label, schedule = images.label[batch].to(module.device), module.process.schedule
    noise = ImageNoise.of_images(0, batch.tolist(), x_0.shape[1:], module.device).draw()
    counts = []
    with module.trainer.precision_plugin.forward_context():
        for share in QUARTERS:
            t = schedule.quantile(torch.full((len(batch),), share, dtype=torch.float64))
            logits = module.classifier.logits(module.process.q_sample(x_0, t, noise), t)
            counts.append((logits.argmax(dim=1) == label).sum())
    return torch.stack(counts).double().cpu()


def measured_images(store: ImageStore) -> tuple[str, Images]:
    """The split that is measured, and its images.  Raises ValueError where its labels are of no use."""
    splits = [*store.splits(), "train"]
    split = next(name for name in ("validation", "test", "held_out", "train") if name in splits)
    return split, store.load(split)
