"""What samplers do with estimates of x_0 that leave the range of images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Clipping(ABC):
    """A rule for estimates of x_0 out of [-1, 1]."""

    @abstractmethod
    def __call__(self, x_0: Tensor) -> Tensor:
        """x_0: [B, C, H, W].  Returns the same shape."""


@dataclass(frozen=True)
class NoClipping(Clipping):
    """Estimates stay as they are (Song et al. 2021, code)."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0


@dataclass(frozen=True)
class StaticClipping(Clipping):
    """Every pixel is held in [-1, 1] (Ho et al. 2020, code)."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


@dataclass(frozen=True)
class DynamicClipping(Clipping):
    """Each image is held in its own range and brought back to [-1, 1] (Saharia et al. 2022, section 2.3).

    percentile: share of an image's pixels inside its range, in (0, 1]; images within [-1, 1] stay as they are.
    """

    percentile: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}.")

    def __call__(self, x_0: Tensor) -> Tensor:
        # Sorted, not torch.quantile: that refuses images of more than 16 million numbers.
        sizes = x_0.flatten(1).abs().sort(dim=1).values  # [B, C H W]
        place = self.percentile * (sizes.shape[1] - 1)
        low = int(place)
        limit = sizes[:, low].lerp(sizes[:, min(low + 1, sizes.shape[1] - 1)], place - low).clamp(min=1)
        limit = limit.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-limit, limit) / limit
