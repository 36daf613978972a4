"""Inversion: images to noise, and back to images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Generator, Task
from diffusion_lab.errors import UserError
from diffusion_lab.samplers import DDIM, GivenNoise, Sampler


@dataclass(frozen=True)
class Invert(Task):
    """The reconstruction of the source from the noise to which DDIM encodes it (Song et al. 2021, section 5.4)."""

    name: ClassVar[str] = "invert"

    def require(self, sampler: Sampler, sources: Sources, *, in_latents: bool) -> None:
        if not isinstance(sampler, DDIM) or sampler.eta > 0:
            got = f"sampler.eta={sampler.eta}" if isinstance(sampler, DDIM) else type(sampler).__name__
            raise UserError(f"`sampler` must be ddim with sampler.eta=0 for task=invert, got {got}.")

    def noise(self, sources: Sources, generator: Generator) -> Tensor:
        """Return the noise from which the sampler generates the source images, [B, C, H, W]."""
        assert isinstance(generator.sampler, DDIM)
        return generator.sampler.encode(generator.denoiser, generator.to_x_0(sources.images), generator.condition)

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        noise = GivenNoise(self.noise(sources, generator))
        return generator.to_images(
            generator.sampler.sample(generator.denoiser, noise, generator.condition, generator.on_step)
        )

    def num_evaluations(self, sampler: Sampler) -> int:
        return 2 * sampler.num_evaluations
