"""Variance of the reverse step p(x_s | x_t), for ancestral sampling."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from diffusion_lab.process.gaussian import GaussianProcess


class Variance(ABC):
    """A choice of the reverse variance for any two times s < t."""

    @abstractmethod
    def __call__(self, process: GaussianProcess, s: Tensor, t: Tensor) -> Tensor:
        """The variance, float64, shaped as t; 0 where s is 0, since the last step adds no noise."""


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The posterior's variance: best for data at a point (Ho et al. 2020, section 3.2, beta tilde)."""

    def __call__(self, process: GaussianProcess, s: Tensor, t: Tensor) -> Tensor:
        return process.posterior_coefficients(s, t)[2]


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The forward step's variance beta: best for Gaussian data (Ho et al. 2020, section 3.2)."""

    def __call__(self, process: GaussianProcess, s: Tensor, t: Tensor) -> Tensor:
        variance = process.transition(s, t)[1]
        return variance * (s > 0)
