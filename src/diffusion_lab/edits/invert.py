"""Inversion: images to noise, and back to images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Decode, Generator, Task
from diffusion_lab.errors import UserError
from diffusion_lab.samplers import GivenNoise, InvertibleSampler, Sampler, obstacle_to_inversion


@dataclass(frozen=True)
class Invert(Task):
    """The reconstruction of the source from the noise to which the sampler encodes it.

    See Song et al. (2021), section 5.4, for DDIM.
    """

    name: ClassVar[str] = "invert"

    def require(self, sampler: Sampler, sources: Sources, decode: Decode | None) -> None:
        if got := obstacle_to_inversion(sampler):
            raise UserError(
                "`sampler` must be ddim with sampler.eta=0 or heun with sampler.churn.amount=0 for task=invert, "
                f"got {got}."
            )

    def noise(self, sources: Sources, generator: Generator) -> Tensor:
        """Return the noise from which the sampler generates the source images, [B, C, H, W]."""
        assert isinstance(generator.sampler, InvertibleSampler)
        return generator.sampler.encode(generator.denoiser, generator.to_x_0(sources.images), generator.condition)

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        noise = GivenNoise(self.noise(sources, generator))
        return generator.to_images(
            generator.sampler.sample(generator.denoiser, noise, generator.condition, generator.on_step)
        )

    def num_evaluations(self, sampler: Sampler) -> int:
        return 2 * sampler.num_evaluations
