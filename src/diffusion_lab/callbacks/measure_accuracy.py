"""A callback that measures the accuracy of a classifier on noisy images during training."""

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import PeriodicAction, log_metrics
from diffusion_lab.callbacks.progress import long_task
from diffusion_lab.data.image_store import ImageStore, load_images
from diffusion_lab.data.images import Images
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import ImageNoise, permutation
from diffusion_lab.training.classifier_module import ClassifierModule

QUARTERS = (0.0, 0.25, 0.5, 0.75)
"""Quantiles of the diffusion time at which noisy images are classified."""


class MeasureAccuracy(PeriodicAction):
    """Callback that measures the accuracy of a classifier on noisy images every n steps, at four noise levels.

    A last measurement follows the last checkpoint of a run.

    The images are a fixed random subset of the first split that exists among `validation`, `test`, `held_out` and
    `train`. The name of each metric contains the split and the quantile of the diffusion time. All measurements use
    the same noise.
    """

    def __init__(self, *, every_n_steps: int, num_images: int = 2000, batch_size: int = 200) -> None:
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size must be at least 1, got {num_images} and {batch_size}.")
        super().__init__(Every(every_n_steps))
        self.num_images, self.batch_size = num_images, batch_size
        self._images: tuple[str, Images] | None = None

    def act(self, trainer: Trainer, pl_module: ClassifierModule, *, after_training: bool) -> None:
        log_metrics(trainer, self._measure(trainer, pl_module), after_training=after_training)

    def _measure(self, trainer: Trainer, module: ClassifierModule) -> dict[str, float]:
        """Return the accuracies by name, and store them in the metrics of the trainer."""
        split, images = self._images = self._images or measured_images(trainer.datamodule.store)
        chosen = permutation(seed=0, epoch=0, size=len(images))[: self.num_images]  # data sets may be sorted by class
        positions = range(len(chosen))
        starts = range(0, len(positions), self.batch_size)
        batches = Ranks.current().shard([positions[k : k + self.batch_size] for k in starts])
        module.eval()
        num_correct = torch.zeros(len(QUARTERS), dtype=torch.float64)
        progress = long_task(trainer, f"classifying images of {split}", len(batches), "batches")
        with Ranks.current().raise_together(), progress as advance:
            for batch in batches:
                num_correct += _count_correct(module, images, chosen[batch.start : batch.stop])
                advance(1)
        module.train()
        total = torch.stack(Ranks.current().all_gather_object(num_correct)).sum(dim=0)
        accuracies = (total / len(positions)).tolist()
        metrics = {f"accuracy_{split}_t{quarter:g}": value for quarter, value in zip(QUARTERS, accuracies, strict=True)}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        return metrics


@torch.no_grad()
def _count_correct(module: ClassifierModule, images: Images, batch: np.ndarray) -> Tensor:
    """Return how many images of a batch [B] are classified correctly at each time quantile: float64 [len(QUARTERS)]."""
    x_0 = from_uint8(images.gather(batch).to(module.device))
    label, schedule = images.label[batch].to(module.device), module.process.schedule
    noise = ImageNoise.of_images(0, batch.tolist(), x_0.shape[1:], module.device).draw()
    counts = []
    with module.trainer.precision_plugin.forward_context():
        for quarter in QUARTERS:
            t = schedule.quantile(torch.full((len(batch),), quarter, dtype=torch.float64))
            logits = module.classifier.logits(module.process.q_sample(x_0, t, noise), t)
            counts.append((logits.argmax(dim=1) == label).sum())
    return torch.stack(counts).double().cpu()


def measured_images(store: ImageStore) -> tuple[str, Images]:
    """Return the name and the images of the split to measure on.  Raises the same errors as `ImageStore.load`."""
    splits = [*store.splits(), "train"]
    split = next(name for name in ("validation", "test", "held_out", "train") if name in splits)
    return split, load_images(store, split)
