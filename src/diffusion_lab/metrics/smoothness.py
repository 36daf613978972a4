"""Smoothness of a sequence of frames."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_lab.features import Features

BATCH_SIZE = 64
"""Number of frames whose features are extracted at a time."""


@dataclass(frozen=True)
class Smoothness:
    """Distances between the features of neighboring frames: their mean, and the largest divided by the mean.

    The ratio is 1 for frames that change evenly. A large ratio is a jump.
    features: feature network, whose pooled features are compared.

    >>> from diffusion_lab import FashionCNN, Smoothness
    >>> still = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    >>> Smoothness(FashionCNN()).distances(still, is_closed=False)
    tensor([0., 0.], dtype=torch.float64)
    """

    features: Features

    choice: ClassVar[str] = "smoothness"

    def protocol(self) -> dict[str, Any]:
        """Return the feature network, for fingerprints."""
        names = ("name", "weights_sha256", "resize")
        return {"features": {name: getattr(self.features, name) for name in names} | {"output": "pooled"}}

    def distances(self, frames: Tensor, *, is_closed: bool) -> Tensor:
        """Return the Euclidean distance between the features of each frame and of the next, float64.

        frames: uint8 [N, C, H, W].  is_closed: whether the first frame follows the last.
        Returns [N] for a closed sequence, [N - 1] for an open one.
        """
        parts = [self.features(frames[k : k + BATCH_SIZE])["pooled"] for k in range(0, len(frames), BATCH_SIZE)]
        features = torch.cat(parts).double().flatten(1)
        distances: Tensor = (features.roll(-1, dims=0) - features).norm(dim=1)
        return distances if is_closed else distances[:-1]
