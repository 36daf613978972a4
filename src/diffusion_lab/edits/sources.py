"""A batch of source images."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffusion_lab.low_resolution import LowResolution


@dataclass(frozen=True, eq=False)
class Sources:
    """Source images of a batch of results. Several results may have the same source.

    images: source images, [B, C, H, W] in [-1, 1].
    numbers: number of each source in the set of all sources, which is the seed of its random mask and of the noise in
        its measurement.
    mask: gray levels of the mask of each source, from a mask file or from its transparent pixels, uint8 [B, 1, H, W];
        white pixels are filled. None if there is neither, and for downsampled sources.
    original: sources that were downsampled for a network of a cascade; None for other sources.
    """

    images: Tensor
    numbers: Sequence[int]
    mask: Tensor | None = None
    original: "Sources | None" = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: [C, H, W]."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def at(self, resolution: int) -> "Sources":
        """Return the sources for a network of another resolution: each pixel is the mean of the pixels it covers."""
        if resolution == self.images.shape[-1]:
            return self
        return Sources(LowResolution(resolution).downsample(self.images), self.numbers, original=self)
