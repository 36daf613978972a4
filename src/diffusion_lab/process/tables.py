"""Schedules of T steps as tables, at their steps and between them."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule, within


class TableSchedule(NoiseSchedule):
    """T discrete steps with variances `betas` (Ho et al. 2020, eq. 2 to 4), at the times k / T, k = 1..T."""

    num_timesteps: int
    zero_terminal_snr: bool

    @abstractmethod
    def _curve(self) -> Tensor:
        """The variances before anything is asked of their end: [T], float64."""

    def __post_init__(self) -> None:
        _require_steps(self.num_timesteps)
        curve = self._curve()
        wrong = curve[~((curve >= 0) & (curve <= 1))]
        if len(wrong):
            raise ValueError(f"betas must be in [0, 1], got {float(wrong[0]):g}; {type(self).__name__} gives it.")
        if bool((curve[:-1] == 1).any()):
            raise ValueError("betas must be below 1 before the last step, got 1: no signal would be left to the rest.")
        if self.zero_terminal_snr and (curve[-1] == 1 or not bool(curve[1:].any())):
            raise ValueError(
                "zero_terminal_snr must be false for one step, where the last alpha is 0 already, "
                "and where no step after the first adds noise."
            )

    @cached_property
    def betas(self) -> Tensor:
        """Variance added by each step: [T] in [0, 1], float64."""
        return _to_zero_terminal_snr(self._curve()) if self.zero_terminal_snr else self._curve()

    @property
    def t_min(self) -> float:
        return 1 / self.num_timesteps

    @property
    def t_max(self) -> float:
        return 1.0

    @cached_property
    def continuous(self) -> "Interpolated":
        return Interpolated(self)

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

    @property
    def steps(self) -> Tensor:
        """All times above 0, growing: [T], float64."""
        return torch.arange(1, self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = self._index(t)
        alphas, sigmas = self._tables
        return alphas[index], sigmas[index]

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        table = -self.log_snr(self.steps)  # grows
        wanted = -log_snr.double()
        above = torch.searchsorted(table, wanted).clamp(1, max(self.num_timesteps - 1, 1))
        low, high = table[above - 1], table[above.clamp(max=self.num_timesteps - 1)]
        index = torch.where((wanted == low) | (wanted - low <= high - wanted), above - 1, above)
        return (index.clamp(max=self.num_timesteps - 1) + 1).double() / self.num_timesteps

    def nearest(self, t: Tensor) -> Tensor:
        # Ties go to the even index k - 1, as in the papers' code; 6 decimals first, or float64's last bit breaks them.
        index = (t.double() * self.num_timesteps - 1).round(decimals=6).round()
        return (index.clamp(0, self.num_timesteps - 1) + 1) / self.num_timesteps

    def quantile(self, u: Tensor) -> Tensor:
        step = (u.double() * self.num_timesteps).floor().clamp(0, self.num_timesteps - 1) + 1
        return step / self.num_timesteps

    def network_time(self, t: Tensor) -> Tensor:
        return (self._index(t) - 1).double()

    def previous(self, t: Tensor) -> Tensor:
        return (self._index(t) - 1).clamp(min=0).double() / self.num_timesteps

    def following(self, t: Tensor) -> Tensor:
        return (self._index(t) + 1).clamp(max=self.num_timesteps).double() / self.num_timesteps

    def _index(self, t: Tensor) -> Tensor:
        step = t.double().cpu() * self.num_timesteps
        index = step.round()
        # float32 times of a 4000-step table are off by up to 2.4e-4 of a step.
        on_grid = ((step - index).abs() < 1e-3) & (index >= 0) & (index <= self.num_timesteps)
        if not bool(on_grid.all()):
            raise ValueError(
                f"t must be one of 0, 1/{self.num_timesteps}, 2/{self.num_timesteps}, ..., 1 for a schedule with "
                f"num_timesteps={self.num_timesteps}, got {t.flatten()[~on_grid.flatten()][0].item()}."
            )
        return index.long()


@dataclass(frozen=True)
class Interpolated(NoiseSchedule):
    """A table at every time in [0, 1]: for solvers that choose their own times, on networks that learned steps.

    Between two steps the angle atan(sigma / alpha) grows evenly, so that alpha^2 + sigma^2 stays 1; the network is told
    the broken index. At the steps themselves it is the table.
    """

    table: TableSchedule

    @property
    def t_min(self) -> float:
        return self.table.t_min

    @property
    def t_max(self) -> float:
        return self.table.t_max

    @property
    def continuous(self) -> "Interpolated":
        return self

    @cached_property
    def _angles(self) -> Tensor:
        alphas, sigmas = self.table.coefficients(torch.cat([torch.zeros(1, dtype=torch.float64), self.table.steps]))
        return torch.atan2(sigmas, alphas)  # [T + 1]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = within(t, self.t_max)
        step = t * self.table.num_timesteps
        below = step.floor().clamp(max=self.table.num_timesteps - 1).long()
        angle = torch.lerp(self._angles[below], self._angles[below + 1], step - below)
        on_step = step.round() / self.table.num_timesteps
        alphas, sigmas = self.table.coefficients(on_step)
        exact = (step - step.round()).abs() < 1e-9
        return torch.where(exact, alphas, angle.cos()), torch.where(exact, sigmas, angle.sin())

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-log_snr.double() / 2))
        last = self.table.num_timesteps
        below = (torch.searchsorted(self._angles, angle.contiguous()) - 1).clamp(0, last - 1)
        low, high = self._angles[below], self._angles[below + 1]
        share = torch.where(high > low, (angle - low) / (high - low), 0.0).clamp(0, 1)
        return ((below + share) / last).clamp(self.t_min, self.t_max)

    def nearest(self, t: Tensor) -> Tensor:
        return t.double().clamp(self.t_min, self.t_max)

    def quantile(self, u: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * u.double()

    def network_time(self, t: Tensor) -> Tensor:
        return within(t, self.t_max) * self.table.num_timesteps - 1

    def previous(self, t: Tensor) -> Tensor:
        return (t.double() - self.t_min).clamp(min=0)

    def following(self, t: Tensor) -> Tensor:
        return (t.double() + self.t_min).clamp(max=self.t_max)


def _to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The variances whose roots of signal levels are moved and stretched to end at 0 (Lin et al. 2024, algorithm 1)."""
    root = (torch.log1p(-betas).cumsum(0) / 2).exp()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([betas[:1], 1 - (root[1:] / root[:-1]) ** 2])


def _require_steps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be a whole number of at least 1, got {num_timesteps}.")
