"""Inpainting: filling of masked pixels."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.contracts import require_instance
from diffusion_lab.edits.masks import Half, Mask, require_partial
from diffusion_lab.edits.restoration import Restoration
from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Decode, Generator
from diffusion_lab.inverse_problems import Inpainting, PiGDM, PosteriorSampler
from diffusion_lab.samplers import Sampler


@dataclass(frozen=True)
class Inpaint(Restoration):
    """Filling of the pixels that a mask chooses.

    The known pixels of the source replace those of the result at the end, unless the measurement has noise.
    mask: rule that chooses the pixels.  posterior, noise: see `Restoration`.
    """

    name: ClassVar[str] = "inpaint"

    mask: Mask = field(default_factory=Half)
    posterior: PosteriorSampler = field(default_factory=PiGDM)
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_instance(self.mask, Mask, "mask")

    @property
    def pastes(self) -> bool:
        return self.noise == 0

    @property
    def hides_source(self) -> bool:
        return self.mask.hides_source

    def operator(self, sources: Sources) -> Inpainting:
        return Inpainting(sources.image_shape, self.mask.hole(sources))

    def require(self, sampler: Sampler, sources: Sources, decode: Decode | None) -> None:
        require_partial(self.mask.hole(sources), sources)
        super().require(sampler, sources, decode)

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        images = super().edit(sources, generator)
        return torch.where(self.mask.hole(sources), images, sources.images) if self.pastes else images
