"""Where the low-resolution images of super-resolution come from: a network that drew them, or a data set."""

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
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import ImageNoise, Purpose, permutation


class LowResolutionImages(ABC):
    """The small image of each seed.

    low_resolution: as the network was trained on them.  noise: standard deviation of what is added to each, at most what it was
    trained on.  stage: of the network that is told of them, in its cascade.
    """

    low_resolution: LowResolution
    noise: float
    stage: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of an image."""

    @abstractmethod
    def draw(self, seeds: range) -> Tensor:
        """Grey levels, uint8 [B, C, h, w].  seeds: one whole batch."""

    @abstractmethod
    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Their classes, int64 [B], where the images decide them."""

    @abstractmethod
    def require(self, num_classes: int) -> None:
        """Raises ValueError unless their classes are those of a network that knows so many."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """How they are made, for the fingerprint of a number."""

    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        """What the network is told of the images with these seeds."""
        small = self.draw(seeds).to(device).float() / 127.5 - 1
        level = torch.full((len(seeds),), self.noise, dtype=torch.float64)
        noise = ImageNoise(seeds, small.shape[1:], device, stage=self.stage, purpose=Purpose.SAMPLED_CONDITION)
        drawn = noise.draw() if self.noise else torch.zeros_like(small)
        return self.low_resolution.condition(label, small, level, drawn)


def require_noise(noise: float, low_resolution: LowResolution) -> None:
    """Raises ValueError for more noise than a network was trained on."""
    if not 0 <= noise <= low_resolution.max_noise:
        raise ValueError(
            f"low_resolution_noise must be in [0, {low_resolution.max_noise}], as the network for super-resolution was "
            f"trained, got {noise}."
        )


class DownsampledImages(LowResolutionImages):
    """Images of a data set made small, in an order that is drawn once for all: a set may be sorted by class."""

    stage = 0

    def __init__(self, images: Images, split: str, low_resolution: LowResolution, noise: float = 0.0) -> None:
        require_noise(noise, low_resolution)
        self.images, self.split, self.low_resolution, self.noise = images, split, low_resolution, noise
        self._order = permutation(seed=0, epoch=0, size=len(images))

    @property
    def channels(self) -> int:
        return self.images.channels

    def draw(self, seeds: range) -> Tensor:
        pixels = self.images.gather(self._index(seeds))
        # Rounded like images that a network drew: the networks of a cascade exchange bytes.
        return to_uint8(self.low_resolution.of(pixels.float() / 127.5 - 1))

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.images.label[self._index(seeds)]

    def require(self, num_classes: int) -> None:
        label = self.images.label
        if num_classes and len(label) and not 0 <= int(label.min()) <= int(label.max()) < num_classes:
            raise ValueError(
                f"low_resolution images of {self.split} must have labels in 0..{num_classes - 1}, got "
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
    """The training images, made small, of a run that is trained for super-resolution; None for any other."""
    low_resolution = datamodule.low_resolution
    return None if low_resolution is None else DownsampledImages(datamodule.train_images, "train", low_resolution)
