"""Super-resolution: the low-resolution image that a network is conditioned on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.networks import Condition
from diffusion_lab.process import widen
from diffusion_lab.randomness import Draws, Purpose


@dataclass(frozen=True)
class LowResolution:
    """Resolution of the low-resolution images, and the noise that is added to them (Ho et al. 2022, section 4.2).

    resolution: height and width of the low-resolution image. Each of its pixels is the mean of the pixels that it
        covers, as in the code of Dhariwal & Nichol (2021).
    max_noise: largest noise level; 0 adds no noise. In training the low-resolution image becomes
        sqrt(1 - level^2) image + level noise, with a level that is uniform in [0, max_noise] and is passed to the
        network. The noise makes the network robust to artifacts in generated images.
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
        """Number of values per image that describe its noise level: 1 if max_noise is above 0, else 0."""
        return int(self.max_noise > 0)

    def condition_channels(self, channels: int) -> int:
        """Return the number of channels of the condition image.  channels: number of channels of an image."""
        return channels

    def training_condition(self, x_0: Tensor, draws: Draws) -> Condition:
        """Return the condition, without labels, for the images x_0 [B, C, H, W] of a training step.

        The noise is zero unless the network is trained on noisy low-resolution images.
        """
        small = self.downsample(x_0)
        noise = draws.noise(small, Purpose.CONDITION_NOISE) if self.max_noise else torch.zeros_like(small)
        return self.condition(None, small, self.max_noise * draws.condition_levels(), noise)

    def downsample(self, images: Tensor) -> Tensor:
        """Downsample images: [B, C, H, W] -> [B, C, resolution, resolution].

        Raises ValueError if H or W is smaller than the resolution.
        """
        if min(images.shape[-2:]) < self.resolution:
            raise ValueError(
                "low_resolution.resolution must be at most the resolution of the images "
                f"({min(images.shape[-2:])}), got {self.resolution}."
            )
        return F.adaptive_avg_pool2d(images, self.resolution)

    def condition(self, label: Tensor | None, small: Tensor, level: Tensor, noise: Tensor) -> Condition:
        """Return the condition of a super-resolution network.

        label: classes, int64 [B].  small: low-resolution images, [B, C, h, w].
        noise: standard normal noise, [B, C, h, w].
        level: standard deviation of the noise, [B].  Raises ValueError unless level is in [0, max_noise].
        """
        if bool((level < 0).any()) or bool((level > self.max_noise).any()):
            raise ValueError(f"level must be in [0, max_noise={self.max_noise}], got {float(level.max()):g}.")
        if not self.max_noise:
            return Condition(label, image=small)
        level = level.to(small.device, small.dtype, non_blocking=small.is_cuda)
        wide = widen(level, small, name="level")
        return Condition(label, image=torch.sqrt(1 - wide**2) * small + wide * noise, low_resolution_noise=level)
