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
