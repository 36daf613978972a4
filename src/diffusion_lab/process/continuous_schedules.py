"""Schedules in closed form, defined at every time of a range."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule, within


class ContinuousSchedule(NoiseSchedule):
    """alpha and sigma as functions of t in (0, t_max]."""

    @abstractmethod
    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t for t above 0, float64."""

    @abstractmethod
    def _at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha is `ratio`."""

    @property
    def continuous(self) -> NoiseSchedule:
        return self

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = within(t, self.t_max)
        alpha_t, sigma_t = self._curve(t)
        # Time 0 is the clean image, also where the curve itself ends at a little noise (ve).
        return torch.where(t > 0, alpha_t, 1.0), torch.where(t > 0, sigma_t, 0.0)

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        # Held where its square is a number, for the log-SNR of no signal at all.
        ratio = torch.exp(-log_snr.double() / 2).clamp(1e-150, 1e150)
        return self.nearest(self._at_noise_to_signal(ratio))

    def nearest(self, t: Tensor) -> Tensor:
        return t.double().clamp(self.t_min, self.t_max)

    def quantile(self, u: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * u.double()


class UnitTimeSchedule(ContinuousSchedule):
    """Time in (0, 1].  first: the smallest time visited."""

    first: float

    def __post_init__(self) -> None:
        if not 0 < self.first < 1:
            raise ValueError(f"first must be in (0, 1), got {self.first}.")

    @property
    def t_min(self) -> float:
        return self.first

    @property
    def t_max(self) -> float:
        return 1.0


@dataclass(frozen=True)
class EDMSchedule(ContinuousSchedule):
    """alpha = 1, sigma = t: time is the noise level itself (Karras et al. 2022, section 3)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _require_growing("sigma", self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def network_time(self, t: Tensor) -> Tensor:
        return t.double().log() / 4  # c_noise of Karras et al. (2022), Table 1

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def _at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class RectifiedFlowSchedule(UnitTimeSchedule):
    """alpha = 1 - t, sigma = t: straight lines from image to noise (Liu et al. 2023, eq. 1).

    first: the smallest time visited; between it and 0 the noise is below a grey level.
    """

    first: float = 1e-3

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * t.double()  # the range that the sinusoids of a DDPM network are made for

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def _at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class VPSchedule(UnitTimeSchedule):
    """Variance-preserving SDE with beta(t) growing linearly (Song et al. 2021, eq. 32 and 33).

    first: the smallest time visited (appendix C: 1e-3 to sample, 1e-5 to train and for likelihoods).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: float = 1e-3

    def __post_init__(self) -> None:
        _require_growing("beta", self.beta_min, self.beta_max)
        super().__post_init__()

    def network_time(self, t: Tensor) -> Tensor:
        return 999 * t.double()  # Song et al. (2021), code

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha_bar = -(t**2 * (self.beta_max - self.beta_min) / 2 + t * self.beta_min)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def _at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        # log(1 + ratio^2) is the integral of beta: a quadratic equation for t, in the form that keeps its digits.
        integral = torch.where(ratio > 1e8, 2 * ratio.log(), torch.log1p(ratio.clamp(max=1e8) ** 2))
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class VESchedule(UnitTimeSchedule):
    """Variance-exploding SDE: alpha = 1, sigma growing geometrically (Song et al. 2021, eq. 30).

    first: the smallest time visited (appendix C: 1e-5).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    first: float = 1e-5

    def __post_init__(self) -> None:
        _require_growing("sigma", self.sigma_min, self.sigma_max)
        super().__post_init__()

    def network_time(self, t: Tensor) -> Tensor:
        return (self.coefficients(t)[1] / 2).log()  # c_noise of Karras et al. (2022), Table 1

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def _at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


def _require_growing(name: str, low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"{name}_min and {name}_max must be above 0 and grow, got {low} and {high}.")
