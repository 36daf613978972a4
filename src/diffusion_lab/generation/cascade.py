"""Cascades: each super-resolution network upsamples the images that the previous network generated."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffusion_lab.generation.batched_images import BatchedImages, weights_sha256
from diffusion_lab.generation.low_resolution_images import LowResolutionImages, require_noise
from diffusion_lab.low_resolution import LowResolution


class CascadeImages(LowResolutionImages):
    """Low-resolution images for one stage of a cascade: the images that the previous stage generates or edits.

    The stage generates its image k from image k of the previous stage.
    """

    def __init__(self, images: BatchedImages, low_resolution: LowResolution, noise: float = 0.0) -> None:
        """Raise ValueError unless the super-resolution network accepts the resolution of `images` and the noise level.

        images: images of the previous stage.
        low_resolution: low-resolution settings that the super-resolution network was trained with.
        noise: standard deviation of the noise that is added to the images.
        """
        require_noise(noise, low_resolution)
        if images.shape[-1] != low_resolution.resolution:
            raise ValueError(
                f"`cascade` must list runs that were trained with low_resolution.resolution={images.shape[-1]} (the "
                f"resolution of the images of the previous run), got a run with {low_resolution.resolution}."
            )
        self.images, self.low_resolution, self.noise = images, low_resolution, noise
        self.stage = images.stage + 1

    @property
    def channels(self) -> int:
        return self.images.shape[0]

    def pixels(self, seeds: range) -> Tensor:
        return self.images.generate(seeds)

    def noise_of(self, seeds: range, like: Tensor) -> Tensor:
        return self.images.condition_noise(seeds, like.shape[1:], self.stage)

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.images.labels(seeds)

    def require(self, num_classes: int) -> None:
        previous = self.images.guidance.num_classes(self.images.module.labels)
        if num_classes not in (0, previous):
            raise ValueError(
                f"`cascade` must list runs without classes or with as many classes as the previous run ({previous}), "
                f"got a run with {num_classes} classes."
            )

    def protocol(self) -> dict[str, Any]:
        network = self.images.module.sampled_network(self.images.weights)
        return {
            "from": self.images.protocol() | {"weights_sha256": weights_sha256(network)},
            "resolution": self.low_resolution.resolution,
            "noise": float(self.noise),
        }
