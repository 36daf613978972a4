"""A trained network -> numbers, each process with its share of the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.lightning_module import DiffusionModule
from diffusion_lab.metrics.features import to_uint8
from diffusion_lab.metrics.frechet import FrechetDistance
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.networks import Condition
from diffusion_lab.randomness import ImageNoise


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    seed: of all noise; image k is the same for any batch_size and any number of processes.
    rank, world_size: of this process and of all.  weights: see `DiffusionModule.sampled_network`.
    """

    module: DiffusionModule
    store: ImageStore
    seed: int = 0
    batch_size: int = 250
    guidance_scale: float = 1.0
    rank: int = 0
    world_size: int = 1
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        self.module.sampled_network(self.weights)

    def measure(self, metric: FrechetDistance | MeanOverImages) -> float:
        """The number of all processes together; its name is the metric's."""
        metric = metric.to(self.module.device)
        if isinstance(metric, MeanOverImages):
            self._read(metric)
        else:
            self._sample(metric)
        return float(metric.compute())

    def pictures(self, num_images: int) -> Tensor:
        """The samples 0..num_images-1, to look at: [num_images, C, H, W] in [-1, 1]."""
        return self._samples(range(num_images))

    def _sample(self, metric: FrechetDistance) -> None:
        """Shows a distance its samples, and the training images."""
        for batch in self._batches(metric.num_samples, "sampling"):
            metric.update(to_uint8(self._samples(batch)), reference=False)
        images = self.store.load("train")
        for batch in self._batches(len(images), "reading the training images"):
            metric.update(images.gather(np.array(batch)).to(self.module.device), reference=True)

    def _read(self, metric: MeanOverImages) -> None:
        """Measures the images of a split one by one."""
        images, device = self.store.load(metric.split), self.module.device
        denoiser = self.module.denoiser(weights=self.weights)
        for batch in self._batches(min(metric.num_images or len(images), len(images)), "reading images"):
            part = np.array(batch)
            x_0 = images.gather(part).to(device).float() / 127.5 - 1
            condition = Condition(images.label[part].to(device) if self.module.labels.num_classes else None)
            noise = ImageNoise.of_images(self.seed, batch, x_0.shape[1:], device)
            metric.update(metric.quantity(denoiser, x_0, condition, noise))

    def _samples(self, numbers: range) -> Tensor:
        seeds = [self.seed + k for k in numbers]
        return self.module.sample(seeds, guidance_scale=self.guidance_scale, weights=self.weights)

    def _batches(self, num_images: int, description: str) -> Iterator[range]:
        """The share of 0..num_images-1 that falls to this process, cut into batches: no padding, no repeats."""
        first, end = (rank * num_images // self.world_size for rank in (self.rank, self.rank + 1))
        batches = [range(k, min(k + self.batch_size, end)) for k in range(first, end, self.batch_size)]
        console = Console(stderr=True)
        yield from track(batches, description, console=console, disable=self.rank > 0 or not console.is_terminal)
