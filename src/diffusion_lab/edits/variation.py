"""Variations of an image: noise is added up to a noise level, and the sampler removes it (SDEdit)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Generator, Task
from diffusion_lab.edits.upsampling import Upsampling
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import ListedTimes, Noise, Sampler


class FromNoisySource(Task):
    """A sample that starts from the noisy source instead of pure noise (Meng et al. 2022, algorithm 1).

    Subclasses are frozen dataclasses with the field
    strength: fraction of the steps of the sampler that are executed, which are the last ones. The source receives the
        noise of the first of these steps, so that a larger strength changes the image more.
    Raises ValueError unless strength is above 0 (which would return the source) and below 1 (a new image).
    """

    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength < 1:
            raise ValueError(
                "strength must be above 0 (which would return the source image) and below 1 (which would return a new "
                f"image), got {self.strength}."
            )

    @property
    def upsampling(self) -> Upsampling:
        return Upsampling(self)

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        sampler, noise = self.last_steps(generator.sampler), generator.noise
        x_0 = generator.to_x_0(sources.images)
        t = torch.full((len(x_0),), sampler.times[0], dtype=torch.float64)
        x_t = sampler.process.q_sample(x_0, t, noise.draw())
        start = StartingFrom(x_t / sampler.initial_std, noise)
        return generator.to_images(sampler.sample(generator.denoiser, start, generator.condition, generator.on_step))

    def last_steps(self, sampler: Sampler) -> Sampler:
        """Return a sampler that executes the last steps of `sampler`, at least one."""
        num_steps = max(round(self.strength * len(sampler.times)), 1)
        times = ListedTimes(sampler.times[-num_steps:])
        return replace(sampler, num_steps=num_steps, time_grid=times)  # type: ignore[type-var]  # a dataclass

    def num_steps(self, sampler: Sampler) -> int:
        return len(self.last_steps(sampler).times)

    def num_evaluations(self, sampler: Sampler) -> int:
        return self.last_steps(sampler).num_evaluations


@dataclass(frozen=True)
class Variation(FromNoisySource):
    """A variation of the source image.  strength: see `FromNoisySource`."""

    name: ClassVar[str] = "variation"

    strength: float = 0.6


@dataclass(frozen=True)
class Style(FromNoisySource):
    """A variation that is guided to the class that `label` gives.  strength: see `FromNoisySource`."""

    name: ClassVar[str] = "style"
    needs_label: ClassVar[bool] = True

    strength: float = 0.7


class StartingFrom(Noise):
    """A noise source whose first draw is given.  first: first draw, [B, C, H, W].  following: source of the others."""

    def __init__(self, first: Tensor, following: Noise) -> None:
        self._first: Tensor | None = first
        self._following = following

    def draw(self) -> Tensor:
        if self._first is None:
            return self._following.draw()
        first, self._first = self._first, None
        return first


class SameNoise(Noise):
    """A noise source whose draws are the same for all images of a batch, without its first draw.

    seed, stage: see `ImageNoise`.  like: a tensor with the shape and on the device of the draws, [B, C, H, W].
    """

    def __init__(self, seed: int, like: Tensor, stage: int = 0) -> None:
        self._noise, self._like = ImageNoise([seed], like.shape[1:], like.device, stage=stage), like
        self._noise.draw()  # the initial noise

    def draw(self) -> Tensor:
        return self._noise.draw().expand_as(self._like)
