"""Sources of low-resolution images for super-resolution: the previous network of a cascade, or a data set."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.generation.condition_images import ConditionImages, ShuffledImages
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8, to_uint8
from diffusion_lab.randomness import ImageNoise, Purpose


class LowResolutionImages(ConditionImages):
    """A source of low-resolution images, with one image for each seed.

    low_resolution: settings that the super-resolution network was trained with.
    noise: standard deviation of the noise added to each image, at most low_resolution.max_noise.
    """

    field = "low_resolution"
    low_resolution: LowResolution
    noise: float

    @abstractmethod
    def pixels(self, seeds: range) -> Tensor:
        """Return the low-resolution images, uint8 [B, C, h, w].  seeds: seeds of one full batch."""

    def noise_of(self, seeds: range, like: Tensor) -> Tensor:
        """Return the standard normal noise of the low-resolution images `like` [B, C, h, w] of `seeds`."""
        return ImageNoise(seeds, like.shape[1:], like.device, purpose=Purpose.SAMPLED_CONDITION).draw()

    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        small = from_uint8(self.pixels(seeds).to(device))
        level = torch.full((len(seeds),), self.noise, dtype=torch.float64)
        noise = self.noise_of(seeds, small) if self.noise else torch.zeros_like(small)
        return self.low_resolution.condition(label, small, level, noise)

    def condition_of(
        self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]
    ) -> Condition:
        small = self.low_resolution.downsample(x_0)
        return self.low_resolution.condition(label, small, torch.zeros(len(x_0)), torch.zeros_like(small))

    def pictures(self, seeds: range) -> Tensor:
        return self.pixels(seeds)


def require_noise(noise: float, low_resolution: LowResolution) -> None:
    """Raise ValueError if the noise level is outside the range that the super-resolution network was trained on."""
    if not isinstance(noise, int | float) or not 0 <= noise <= low_resolution.max_noise:
        raise ValueError(
            f"low_resolution_noise must be in [0, {low_resolution.max_noise}] (the range that the super-resolution "
            f"network was trained on), got {noise}."
        )


class DownsampledImages(LowResolutionImages):
    """Downsampled images of a data set."""

    def __init__(self, images: Images, split: str, low_resolution: LowResolution, noise: float = 0.0) -> None:
        require_noise(noise, low_resolution)
        self.data, self.low_resolution, self.noise = ShuffledImages(images, split), low_resolution, noise

    @property
    def channels(self) -> int:
        return self.data.images.channels

    def pixels(self, seeds: range) -> Tensor:
        # Rounded to uint8, because a network in a cascade also receives uint8 images from the previous network.
        return to_uint8(self.low_resolution.downsample(from_uint8(self.data.pixels(seeds))))

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.data.labels(seeds)

    def require(self, num_classes: int) -> None:
        self.data.require(num_classes)

    def protocol(self) -> dict[str, Any]:
        return self.data.protocol() | {"resolution": self.low_resolution.resolution, "noise": float(self.noise)}
