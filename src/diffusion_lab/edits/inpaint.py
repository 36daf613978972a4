"""Inpainting: filling of masked pixels."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.contracts import require_instance
from diffusion_lab.edits.masks import Half, Mask, require_partial
from diffusion_lab.edits.restoration import Restoration
from diffusion_lab.edits.sources import Sources
from diffusion_lab.edits.task import Decode, Generator
from diffusion_lab.errors import UserError
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
    def upsampling(self) -> "Inpaint":
        return self

    @property
    def hides_source(self) -> bool:
        return self.mask.hides_source

    def hole(self, sources: Sources) -> Tensor:
        """Return whether each pixel is filled, bool [B, 1, H, W]; downsampled pixels are known if all they cover is."""
        if sources.original is None:
            return self.mask.hole(sources)
        return F.adaptive_max_pool2d(self.hole(sources.original).float(), sources.image_shape[1:]) > 0

    def operator(self, sources: Sources) -> Inpainting:
        return Inpainting(sources.image_shape, self.hole(sources))

    def require(self, sampler: Sampler, sources: Sources, decode: Decode | None) -> None:
        if sources.original is None:
            require_partial(self.hole(sources), sources)
        else:
            self._require_known(sources)
        super().require(sampler, sources, decode)

    def edit(self, sources: Sources, generator: Generator) -> Tensor:
        images = super().edit(sources, generator)
        return torch.where(self.hole(sources), images, sources.images) if self.pastes else images

    def _require_known(self, sources: Sources) -> None:
        """Raise UserError unless downsampled sources have known pixels."""
        assert sources.original is not None
        require_partial(self.hole(sources.original), sources.original)
        _, height, width = sources.image_shape
        for number, hole in zip(sources.numbers, self.hole(sources), strict=True):
            if hole.all():
                raise UserError(
                    f"`mask` must leave known pixels in the images of {height} x {width} pixels of `run`, which are "
                    f"known if all pixels they cover are, got a mask that leaves none of source image {number}."
                )
