"""What a network's output means: its training target, and the clean image that it stands for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Prediction(ABC):
    """A linear view of (x_0, noise) at a given noise level. All tensors [B, C, H, W], coefficients [B, 1, 1, 1]."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """What the network should answer."""

    @abstractmethod
    def to_x_0(self, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        """The clean image that an answer stands for."""


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (Ho et al. 2020, eq. 12 and 15)."""

    def target(self, x_0: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return noise

    def to_x_0(self, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return (x_t - sigma_t * output) / alpha_t


@dataclass(frozen=True)
class X0(Prediction):
    """The clean image (Ho et al. 2020, section 3.2; Salimans & Ho 2022, section 4)."""

    def target(self, x_0: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return x_0

    def to_x_0(self, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class V(Prediction):
    """v = alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, section 4 and appendix D)."""

    def target(self, x_0: Tensor, noise: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        return alpha_t * noise - sigma_t * x_0

    def to_x_0(self, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        # Divided by alpha^2 + sigma^2 = 1 for a variance-preserving schedule, so that the inverse is exact for all.
        return (alpha_t * x_t - sigma_t * output) / (alpha_t**2 + sigma_t**2)
