"""Noise schedules with T discrete steps, defined by the variance of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process.tables import TableSchedule


@dataclass(frozen=True)
class LinearSchedule(TableSchedule):
    """Linearly increasing variances (Ho et al. 2020, section 4).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.  beta_start, beta_end: variances of the first and last step.

    >>> from diffusion_lab import LinearSchedule
    >>> print(f"{LinearSchedule().alpha_bar[-1]:.1e}")  # signal that is left in x_T
    4.0e-05
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class LinearScaledSchedule(TableSchedule):
    """Linear variances times 1000 / T, for a similar alpha_bar curve at any T (Nichol & Dhariwal 2021, code).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.
    beta_start, beta_end: variances of the first and the last step for T = 1000.

    >>> from diffusion_lab import LinearScaledSchedule
    >>> print(f"{LinearScaledSchedule(100).betas[0]:.3f}")  # 10 times the variance for 1000 steps
    0.001
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        scale = 1000 / self.num_timesteps
        return torch.linspace(scale * self.beta_start, scale * self.beta_end, self.num_timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class QuadraticSchedule(TableSchedule):
    """Variances with linearly increasing square roots (Rombach et al. 2022, code; "scaled_linear" in `diffusers`).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.  beta_start, beta_end: variances of the first and last step.

    >>> from diffusion_lab import QuadraticSchedule
    >>> QuadraticSchedule(3, 0.01, 0.09).betas  # the squares of 0.1, 0.2 and 0.3
    tensor([0.0100, 0.0400, 0.0900], dtype=torch.float64)
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        for name, beta in (("beta_start", self.beta_start), ("beta_end", self.beta_end)):
            if not 0 <= beta <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {beta}.")
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=torch.float64)
        return roots**2


@dataclass(frozen=True)
class CosineSchedule(TableSchedule):
    """Variances for which alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.
    offset: shift of the cosine, in [0, 1), which keeps sigma_t above 0 near the data.
    max_beta: upper bound of the variances, in (0, 1], which keeps alpha_bar above 0.

    >>> from diffusion_lab import CosineSchedule
    >>> CosineSchedule().coefficients(torch.tensor([0.5]))  # alpha and sigma
    (tensor([0.7027], dtype=torch.float64), tensor([0.7114], dtype=torch.float64))
    """

    num_timesteps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset must be in [0, 1), got {self.offset}.")
        t = torch.arange(self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps  # [T + 1]
        alpha_bar = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _betas_from_alpha_bar(alpha_bar, self.max_beta)


@dataclass(frozen=True)
class SigmoidSchedule(TableSchedule):
    """Variances for which alpha_bar falls as a sigmoid (Jabri et al. 2022, algorithm 1).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.
    start, end: interval of the sigmoid that is used.
    temperature: divisor of start and end; larger values bring the curve of alpha_bar closer to a straight line.
    max_beta: upper bound of the variances, in (0, 1], which keeps alpha_bar above 0.

    >>> from diffusion_lab import SigmoidSchedule
    >>> print(f"{SigmoidSchedule(1000).alpha_bar[499]:.2f}")  # the curve is symmetric about the middle
    0.50
    """

    num_timesteps: int = 1000
    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0
    max_beta: float = 0.999
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        if not self.start < self.end:
            raise ValueError(f"start must be below end={self.end}, got {self.start}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        logits = torch.linspace(self.start, self.end, self.num_timesteps + 1, dtype=torch.float64) / self.temperature
        level = logits.sigmoid()
        return _betas_from_alpha_bar((level[-1] - level) / (level[-1] - level[0]), self.max_beta)


@dataclass(frozen=True)
class SigmoidBetaSchedule(TableSchedule):
    """Variances that increase as a sigmoid over [-6, 6] (Xu et al. 2022, GeoDiff code).

    num_timesteps, zero_terminal_snr: see `TableSchedule`.
    beta_start, beta_end: values that the variances approach at the first and at the last step.

    >>> from diffusion_lab import SigmoidBetaSchedule
    >>> SigmoidBetaSchedule(3, 0.0, 0.02).betas
    tensor([4.9452e-05, 1.0000e-02, 1.9951e-02], dtype=torch.float64)
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        level = torch.linspace(-6, 6, self.num_timesteps, dtype=torch.float64).sigmoid()
        return level * (self.beta_end - self.beta_start) + self.beta_start


@dataclass(frozen=True)
class ConstantSchedule(TableSchedule):
    """The same variance for every step (Ho et al. 2020, section 4, "constant").

    num_timesteps, zero_terminal_snr: see `TableSchedule`.  beta: variance of each step.

    >>> from diffusion_lab import ConstantSchedule
    >>> ConstantSchedule(3, beta=0.5).alpha_bar
    tensor([0.5000, 0.2500, 0.1250], dtype=torch.float64)
    """

    num_timesteps: int = 1000
    beta: float = 0.02
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        return torch.full((self.num_timesteps,), self.beta, dtype=torch.float64)


@dataclass(frozen=True)
class JSDSchedule(TableSchedule):
    """Variances 1/T, 1/(T-1), ..., 1: alpha_bar falls linearly to 0 (Sohl-Dickstein et al. 2015, section 2.4.1).

    num_timesteps: see `TableSchedule`.  zero_terminal_snr: must be False, because the last alpha is 0 already.

    >>> from diffusion_lab import JSDSchedule
    >>> JSDSchedule(4).alpha_bar
    tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    num_timesteps: int = 1000
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        return 1 / torch.arange(self.num_timesteps, 0, -1, dtype=torch.float64)


@dataclass(frozen=True)
class WarmupSchedule(TableSchedule):
    """Variances that first increase linearly and then stay constant (Ho et al. 2020, code, "warmup").

    num_timesteps, zero_terminal_snr: see `TableSchedule`.
    beta_start, beta_end: variance of the first step, and variance of the steps after the increase.
    fraction: fraction of the steps with increasing variances, in [0, 1].

    >>> from diffusion_lab import WarmupSchedule
    >>> WarmupSchedule(5, 0.1, 0.3, fraction=0.6).betas
    tensor([0.1000, 0.2000, 0.3000, 0.3000, 0.3000], dtype=torch.float64)
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    fraction: float = 0.1
    zero_terminal_snr: bool = field(default=False, kw_only=True)

    def unscaled_betas(self) -> Tensor:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {self.fraction}.")
        betas = torch.full((self.num_timesteps,), self.beta_end, dtype=torch.float64)
        num_increasing = int(self.num_timesteps * self.fraction)
        betas[:num_increasing] = torch.linspace(self.beta_start, self.beta_end, num_increasing, dtype=torch.float64)
        return betas


@dataclass(frozen=True, init=False)
class CustomSchedule(TableSchedule):
    """A schedule with the given variances.

    betas: variances of the T steps, in [0, 1].  zero_terminal_snr: see `TableSchedule`.

    >>> from diffusion_lab import CustomSchedule
    >>> CustomSchedule([0.1, 0.5]).alpha_bar
    tensor([0.9000, 0.4500], dtype=torch.float64)
    """

    variances: tuple[float, ...]
    zero_terminal_snr: bool

    def __init__(self, betas: Sequence[float], *, zero_terminal_snr: bool = False) -> None:
        object.__setattr__(self, "variances", tuple(betas))
        object.__setattr__(self, "zero_terminal_snr", zero_terminal_snr)
        self.__post_init__()

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        return len(self.variances)

    def unscaled_betas(self) -> Tensor:
        return torch.tensor(self.variances, dtype=torch.float64)


def _betas_from_alpha_bar(alpha_bar: Tensor, max_beta: float) -> Tensor:
    """Return the variances [T] that result in the curve `alpha_bar` [T + 1], clipped to at most max_beta."""
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}.")
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)
