"""Super-resolution: the low-resolution image that a network is told beside the noisy one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.networks import Condition


@dataclass(frozen=True)
class LowResolution:
    """How images become small, and how noisy the small ones are (Ho et al. 2022, section 4.2).

    resolution: side of the small image; each of its pixels is the mean of those that it covers, as in the code of
        Dhariwal & Nichol (2021).
    max_noise: in training the small image keeps sqrt(1 - level^2) of itself beside noise of standard deviation level, uniform in
        [0, max_noise] and told to the network, so that it forgives the faults of generated images; 0 adds none.
    """

    resolution: int
    max_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}.")
        if not 0 <= self.max_noise <= 1:
            raise ValueError(f"max_noise must be in [0, 1], got {self.max_noise}.")

    @property
    def num_channels(self) -> int:
        """Numbers that the network is told of the small image's noise."""
        return int(self.max_noise > 0)

    def of(self, images: Tensor) -> Tensor:
        """The small images: [B, C, H, W] -> [B, C, resolution, resolution].  Raises ValueError for smaller images."""
        if min(images.shape[-2:]) < self.resolution:
            raise ValueError(
                f"low_resolution.resolution must be at most the images' side, {min(images.shape[-2:])}, got "
                f"{self.resolution}."
            )
        return F.adaptive_avg_pool2d(images, self.resolution)

    def condition(self, label: Tensor | None, small: Tensor, level: Tensor, noise: Tensor) -> Condition:
        """What the network is told.

        label: int64 [B].  small, noise: [B, C, h, w].  level: [B] in [0, max_noise].  Raises ValueError for others.
        """
        if bool((level < 0).any()) or bool((level > self.max_noise).any()):
            raise ValueError(f"level must be in [0, max_noise={self.max_noise}], got {float(level.max()):g}.")
        if not self.max_noise:
            return Condition(label, None, small)
        level = level.to(small.device, small.dtype, non_blocking=small.is_cuda)
        wide = level.view(-1, 1, 1, 1)
        return Condition(label, level[:, None], torch.sqrt(1 - wide**2) * small + wide * noise)
