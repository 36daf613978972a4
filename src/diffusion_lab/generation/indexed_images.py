"""Sets of images that are measured: images that a network generates, or stored images of another origin."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images


class IndexedImages(ABC):
    """Images, uint8 [C, H, W], each with an index.

    batch_size: number of images per batch.  action: how the images are obtained, for progress displays and durations.
    """

    batch_size: int
    action: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: [C, H, W]."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the images and of their features."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes of the images; 0 if their classes are unknown."""

    @abstractmethod
    def pixels(self, indices: range) -> Tensor:
        """Return images, uint8 [B, C, H, W].  indices: consecutive indices in one full batch."""

    @abstractmethod
    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Return the class of each image, int64 [B], or None if the classes are unknown."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the settings that determine the images, for fingerprints."""

    def batches(self, indices: range) -> list[range]:
        """Split a range of indices into full batches; the first and the last range may be a part of a full batch."""
        first, last = indices.start // self.batch_size, -(-indices.stop // self.batch_size)
        full_batches = (range(k * self.batch_size, (k + 1) * self.batch_size) for k in range(first, last))
        return [range(max(batch.start, indices.start), min(batch.stop, indices.stop)) for batch in full_batches]


class StoredImages(IndexedImages):
    """Images of unknown origin, such as the samples of another program, in a fixed order.

    images: decoded images.  preparation: settings with which they were decoded, for fingerprints.
    device: device on which they are measured.
    """

    action = "reading"

    def __init__(
        self, images: Images, preparation: dict[str, Any], *, batch_size: int = 100, device: torch.device | str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.images, self.preparation, self.batch_size = images, preparation, batch_size
        self._device = torch.device(device)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.channels, self.images.resolution, self.images.resolution

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def num_classes(self) -> int:
        return 0

    def pixels(self, indices: range) -> Tensor:
        return self.images.gather(np.array(indices)).to(self.device)

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        return None

    def protocol(self) -> dict[str, Any]:
        return {
            "images": {"origin": "unknown", "content": self.images.fingerprint},
            "preparation": self.preparation,
            "batch_size": self.batch_size,
        }
