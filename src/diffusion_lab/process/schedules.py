"""Noise schedules: time -> (alpha_t, sigma_t)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class NoiseSchedule(ABC):
    """How signal fades: alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t noise (Kingma et al. 2021, eq. 1)."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time above 0 that a sampler may visit."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The time of pure noise, where sampling starts."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t in float64, shaped as t; t = 0 answers (1, 0).  Raises ValueError for t out of range."""

    @abstractmethod
    def nearest(self, t: Tensor) -> Tensor:
        """The nearest times above 0 at which this schedule is defined, shaped as t, float64."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Maps u, uniform in [0, 1), to a time above 0, uniform over this schedule's times; float64, shaped as u."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told about t: float64, shaped as t."""


class TableSchedule(NoiseSchedule):
    """T discrete steps with variances `betas` (Ho et al. 2020, eq. 2 to 4), at the times k / T, k = 1..T."""

    num_timesteps: int

    @property
    @abstractmethod
    def betas(self) -> Tensor:
        """Variance added by each step: [T] in [0, 1], float64."""

    @property
    def t_min(self) -> float:
        return 1 / self.num_timesteps

    @property
    def t_max(self) -> float:
        return 1.0

    @cached_property
    def _log_alpha_bar(self) -> Tensor:
        # A sum of logarithms: 1 - alpha_bar keeps all its digits near the data, where a product of 1 - beta cancels.
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0)])  # [T + 1]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return (self._log_alpha_bar / 2).exp(), (-torch.expm1(self._log_alpha_bar)).sqrt()  # [T + 1] each

    @property
    def alpha_bar(self) -> Tensor:
        """Signal level alpha_t^2 after each step: [T], float64 (Ho et al. 2020, below eq. 4)."""
        return self._log_alpha_bar[1:].exp()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = self._index(t)
        alphas, sigmas = self._tables
        return alphas[index], sigmas[index]

    def nearest(self, t: Tensor) -> Tensor:
        # Ties go to the even index k - 1, as in the papers' code; 6 decimals first, or float64's last bit breaks them.
        index = (t.double() * self.num_timesteps - 1).round(decimals=6).round()
        return (index.clamp(0, self.num_timesteps - 1) + 1) / self.num_timesteps

    def quantile(self, u: Tensor) -> Tensor:
        step = (u.double() * self.num_timesteps).floor().clamp(0, self.num_timesteps - 1) + 1
        return step / self.num_timesteps

    def network_time(self, t: Tensor) -> Tensor:
        return (self._index(t) - 1).double()

    def _index(self, t: Tensor) -> Tensor:
        step = t.double().cpu() * self.num_timesteps
        index = step.round()
        # float32 times of a 4000-step table are off by up to 2.4e-4 of a step.
        on_grid = (step - index).abs() < 1e-3
        if not bool((on_grid & (index >= 0) & (index <= self.num_timesteps)).all()):
            wrong = t.flatten()[~(on_grid & (index >= 0) & (index <= self.num_timesteps)).flatten()][0].item()
            raise ValueError(
                f"t must be one of 0, 1/{self.num_timesteps}, 2/{self.num_timesteps}, ..., 1 "
                f"for a schedule with num_timesteps={self.num_timesteps}, got {wrong}."
            )
        return index.long()


def _require_steps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be a whole number of at least 1, got {num_timesteps}.")


@dataclass(frozen=True)
class LinearSchedule(TableSchedule):
    """Variances growing linearly (Ho et al. 2020, section 4)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _require_steps(self.num_timesteps)
        for name, beta in (("beta_start", self.beta_start), ("beta_end", self.beta_end)):
            if not 0 <= beta <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {beta}.")

    @cached_property
    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class CosineSchedule(TableSchedule):
    """Signal level falling as a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    offset: keeps sigma_t above 0 near the data.  max_beta: bounds the last steps, where the curve reaches 0.
    """

    num_timesteps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        _require_steps(self.num_timesteps)
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset must be in [0, 1), got {self.offset}.")
        if not 0 < self.max_beta <= 1:
            raise ValueError(f"max_beta must be in (0, 1], got {self.max_beta}.")

    @cached_property
    def betas(self) -> Tensor:
        t = torch.arange(self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps  # [T + 1]
        signal = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=self.max_beta)
