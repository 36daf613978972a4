"""Sources of low-resolution images for super-resolution: the previous network of a cascade, or a data set."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8, to_uint8
from diffusion_lab.randomness import ImageNoise, Purpose, permutation


class LowResolutionImages(ABC):
    """A source of low-resolution images, with one image for each seed.

    low_resolution: settings that the super-resolution network was trained with.
    noise: standard deviation of the noise added to each image, at most low_resolution.max_noise.
    stage: index of the super-resolution network in its cascade.
    """

    low_resolution: LowResolution
    noise: float
    stage: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of each image."""

    @abstractmethod
    def pixels(self, seeds: range) -> Tensor:
        """Return the low-resolution images, uint8 [B, C, h, w].  seeds: seeds of one full batch."""

    @abstractmethod
    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Return the classes of the images, int64 [B], or None if the source has no classes."""

    @abstractmethod
    def require(self, num_classes: int) -> None:
        """Raise ValueError if the images do not fit a network that is conditioned on num_classes classes."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the settings that determine the images, for fingerprints."""

    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        """Return the condition of the super-resolution network for the images of `seeds`.

        label: classes, int64 [B].
        """
        small = from_uint8(self.pixels(seeds).to(device))
        level = torch.full((len(seeds),), self.noise, dtype=torch.float64)
        noise = ImageNoise(seeds, small.shape[1:], device, stage=self.stage, purpose=Purpose.SAMPLED_CONDITION)
        drawn = noise.draw() if self.noise else torch.zeros_like(small)
        return self.low_resolution.condition(label, small, level, drawn)


def require_noise(noise: float, low_resolution: LowResolution) -> None:
    """Raise ValueError if the noise level is outside the range that the super-resolution network was trained on."""
    if not 0 <= noise <= low_resolution.max_noise:
        raise ValueError(
            f"low_resolution_noise must be in [0, {low_resolution.max_noise}] (the range that the super-resolution "
            f"network was trained on), got {noise}."
        )


class DownsampledImages(LowResolutionImages):
    """Downsampled images of a data set, in a fixed random order, since data sets may be sorted by class."""

    stage = 0

    def __init__(self, images: Images, split: str, low_resolution: LowResolution, noise: float = 0.0) -> None:
        require_noise(noise, low_resolution)
        self.images, self.split, self.low_resolution, self.noise = images, split, low_resolution, noise
        self._order = permutation(seed=0, epoch=0, size=len(images))

    @property
    def channels(self) -> int:
        return self.images.channels

    def pixels(self, seeds: range) -> Tensor:
        pixels = self.images.gather(self._index(seeds))
        # Rounded to uint8, because a network in a cascade also receives uint8 images from the previous network.
        return to_uint8(self.low_resolution.downsample(from_uint8(pixels)))

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.images.label[self._index(seeds)]

    def require(self, num_classes: int) -> None:
        label = self.images.label
        if num_classes and len(label) and not 0 <= int(label.min()) <= int(label.max()) < num_classes:
            raise ValueError(
                f"the labels of the {self.split} images must be in 0..{num_classes - 1} (the network's classes), got "
                f"{int(label.min())}..{int(label.max())}."
            )

    def protocol(self) -> dict[str, Any]:
        return {
            "from": f"images of {self.split}",
            "fingerprint": self.images.fingerprint,
            "resolution": self.low_resolution.resolution,
            "noise": float(self.noise),
        }

    def _index(self, seeds: Sequence[int]) -> np.ndarray:
        order: np.ndarray = self._order[np.array(seeds) % len(self.images)]
        return order


def training_low_resolution_images(datamodule: ImageDataModule) -> LowResolutionImages | None:
    """Return the downsampled training images of a super-resolution run, or None for other runs."""
    low_resolution = datamodule.low_resolution
    return None if low_resolution is None else DownsampledImages(datamodule.train_images, "train", low_resolution)
