"""Cascades: what one network drew is what the next one enlarges."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffusion_lab.generation.low_resolution_images import LowResolutionImages, require_noise
from diffusion_lab.generation.seeded_images import SeededImages, weights_sha256
from diffusion_lab.low_resolution import LowResolution


class CascadeImages(LowResolutionImages):
    """The images of the stage before, in a cascade: image k of this stage is made of image k of that one."""

    def __init__(self, images: SeededImages, low_resolution: LowResolution, noise: float = 0.0) -> None:
        """Raises ValueError where they are not of the side and the noise that the network was trained on."""
        require_noise(noise, low_resolution)
        if images.shape[-1] != low_resolution.resolution:
            raise ValueError(
                f"cascade must go on from images of side {low_resolution.resolution}, as the network for "
                f"super-resolution was trained, got {images.shape[-1]}."
            )
        self.images, self.low_resolution, self.noise = images, low_resolution, noise
        self.stage = 1 if images.small is None else images.small.stage + 1

    @property
    def channels(self) -> int:
        return self.images.shape[0]

    def draw(self, seeds: range) -> Tensor:
        return self.images.draw(seeds)

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.images.labels(seeds)

    def require(self, num_classes: int) -> None:
        known = self.images.guidance.num_classes(self.images.module.labels)
        if num_classes not in (0, known):
            raise ValueError(
                f"cascade must begin with a run that is told the {num_classes} classes of the one that enlarges, got "
                f"one of {known}."
            )

    def protocol(self) -> dict[str, Any]:
        network = self.images.module.sampled_network(self.images.weights)
        return {
            "from": self.images.protocol() | {"weights_sha256": weights_sha256(network)},
            "resolution": self.low_resolution.resolution,
            "noise": float(self.noise),
        }
