"""Schedules of T steps: the variances that each adds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process.tables import TableSchedule


@dataclass(frozen=True)
class LinearSchedule(TableSchedule):
    """Variances growing linearly (Ho et al. 2020, section 4)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class LinearScaledSchedule(TableSchedule):
    """Variances growing linearly, times 1000 / T: about the same curve for any T (Nichol & Dhariwal 2021, code)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        scale = 1000 / self.num_timesteps
        return torch.linspace(scale * self.beta_start, scale * self.beta_end, self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class QuadraticSchedule(TableSchedule):
    """Square roots of the variances growing linearly (Rombach et al. 2022, code; "scaled_linear" elsewhere)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        for name, beta in (("beta_start", self.beta_start), ("beta_end", self.beta_end)):
            if not 0 <= beta <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {beta}.")
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=torch.float64)
        return roots**2


@dataclass(frozen=True)
class CosineSchedule(TableSchedule):
    """Signal level falling as a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    offset: keeps sigma_t above 0 near the data.  max_beta: bounds the last steps, where the curve reaches 0.
    """

    num_timesteps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset must be in [0, 1), got {self.offset}.")
        t = torch.arange(self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps  # [T + 1]
        signal = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _steps_of(signal, self.max_beta)


@dataclass(frozen=True)
class SigmoidSchedule(TableSchedule):
    """Signal level falling as a sigmoid (Jabri et al. 2022, algorithm 1).

    start, end: the part of the sigmoid that is used.  temperature: above 1 flattens it.
    """

    num_timesteps: int = 1000
    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0
    max_beta: float = 0.999
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        if not self.start < self.end:
            raise ValueError(f"start must be below end={self.end}, got {self.start}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        at = torch.linspace(self.start, self.end, self.num_timesteps + 1, dtype=torch.float64) / self.temperature
        level = at.sigmoid()
        return _steps_of((level[-1] - level) / (level[-1] - level[0]), self.max_beta)


@dataclass(frozen=True)
class SigmoidBetaSchedule(TableSchedule):
    """Variances growing as a sigmoid over -6..6 (Xu et al. 2022, code of GeoDiff)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        rise = torch.linspace(-6, 6, self.num_timesteps, dtype=torch.float64).sigmoid()
        return rise * (self.beta_end - self.beta_start) + self.beta_start


@dataclass(frozen=True)
class ConstantSchedule(TableSchedule):
    """The same variance in every step (Ho et al. 2020, section 4, "constant")."""

    num_timesteps: int = 1000
    beta: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        return torch.full((self.num_timesteps,), self.beta, dtype=torch.float64)


@dataclass(frozen=True)
class JSDSchedule(TableSchedule):
    """Variances 1/T, 1/(T-1), ..., 1: signal falls evenly to 0 (Sohl-Dickstein et al. 2015, section 2.4.1)."""

    num_timesteps: int = 1000
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        return 1 / torch.arange(self.num_timesteps, 0, -1, dtype=torch.float64)


@dataclass(frozen=True)
class WarmupSchedule(TableSchedule):
    """Variances growing linearly for a share of the steps, then constant (Ho et al. 2020, code, "warmup").

    fraction: of the steps that grow.
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    fraction: float = 0.1
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def _curve(self) -> Tensor:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {self.fraction}.")
        betas = torch.full((self.num_timesteps,), self.beta_end, dtype=torch.float64)
        num_growing = int(self.num_timesteps * self.fraction)
        betas[:num_growing] = torch.linspace(self.beta_start, self.beta_end, num_growing, dtype=torch.float64)
        return betas


@dataclass(frozen=True, init=False)
class CustomSchedule(TableSchedule):
    """Exactly these variances."""

    variances: tuple[float, ...]
    zero_terminal_snr: bool

    def __init__(self, betas: Sequence[float], *, zero_terminal_snr: bool = False) -> None:
        object.__setattr__(self, "variances", tuple(betas))
        object.__setattr__(self, "zero_terminal_snr", zero_terminal_snr)
        self.__post_init__()

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.variances)

    def _curve(self) -> Tensor:
        return torch.tensor(self.variances, dtype=torch.float64)


def _steps_of(signal: Tensor, max_beta: float) -> Tensor:
    """The variances [T] whose signal levels fall along `signal` [T + 1], none above max_beta."""
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}.")
    return (1 - signal[1:] / signal[:-1]).clamp(max=max_beta)
