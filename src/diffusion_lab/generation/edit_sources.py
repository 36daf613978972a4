"""The source images of an edit, with their classes and masks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.edits import Sources
from diffusion_lab.pixels import from_uint8


@dataclass(frozen=True, eq=False)
class EditSources:
    """Source images of an edit, numbered from 0.

    images: prepared images.  name: name of the split, folder or file, for the names of metric values.
    has_labels: whether the labels of the images are classes of the network.
    masks: gray levels of the masks, uint8 [N, 1, H, W], or [1, 1, H, W] for all images; None if there are none.
    resolution: resolution to which a network of a cascade receives them downsampled; None for their own.
    """

    images: Images
    name: str
    has_labels: bool = False
    masks: Tensor | None = None
    resolution: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """Return source images, uint8 [B, C, H, W]."""
        return self.images.gather(np.array(numbers))

    def batch(self, numbers: Sequence[int], device: torch.device) -> Sources:
        """Return source images and their masks.  numbers: numbers of the images."""
        mask = self.masks
        if mask is not None:
            mask = (mask[torch.tensor(numbers)] if len(mask) > 1 else mask.expand(len(numbers), -1, -1, -1)).to(device)
        sources = Sources(from_uint8(self.pixels(numbers).to(device)), list(numbers), mask)
        return sources if self.resolution is None else sources.at(self.resolution)

    def at(self, resolution: int) -> "EditSources":
        """Return the sources for a network of this resolution: downsampled, unless it is their own.

        Raises ValueError if it is above their own.
        """
        if resolution > self.images.resolution:
            raise ValueError(
                f"`cascade` must list runs whose resolutions are above that of `run` ({resolution}), got a run with "
                f"{self.images.resolution}."
            )
        return self if resolution == self.images.resolution else replace(self, resolution=resolution)

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """Return the class of each source image, int64 [B], or None if the classes are unknown."""
        return self.images.label[torch.tensor(numbers)] if self.has_labels else None

    def protocol(self) -> dict[str, Any]:
        """Return the settings that determine the sources, for fingerprints."""
        masks = {} if self.masks is None else {"masks": hashlib.sha256(self.masks.numpy().tobytes()).hexdigest()}
        resolution = {} if self.resolution is None else {"resolution": self.resolution}
        return {"content": self.images.fingerprint, "size": len(self)} | masks | resolution
