"""Schedules with T discrete steps, stored as precomputed tables, and their interpolation to continuous times."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule, validated_times

MAX_TIMESTEPS = 1_000_000
"""Largest T, 250 times that of the papers: the tables of a config of other people must not fill the memory."""


class TableSchedule(NoiseSchedule):
    """A discrete schedule: T variances `betas` at the times k / T, k = 1..T (Ho et al. 2020, eq. 2 to 4).

    num_timesteps: number of steps T.
    zero_terminal_snr: whether the variances are changed such that the last alpha is 0 (Lin et al. 2024, algorithm 1).

    Raises ValueError unless num_timesteps is at least 1, all variances are in [0, 1], and those before the last step
    are below 1; and if zero_terminal_snr cannot be achieved. The methods raise ValueError for times other than k / T.
    """

    num_timesteps: int
    zero_terminal_snr: bool

    @abstractmethod
    def unscaled_betas(self) -> Tensor:
        """Return the variances before the rescaling of `zero_terminal_snr`: [T], float64."""

    def __post_init__(self) -> None:
        _validate_num_timesteps(self.num_timesteps)
        betas = self.unscaled_betas()
        invalid = betas[~((betas >= 0) & (betas <= 1))]
        if len(invalid):
            raise ValueError(f"betas must be in [0, 1], got {float(invalid[0]):g} from {type(self).__name__}.")
        if bool((betas[:-1] == 1).any()):
            raise ValueError("betas must be below 1 before the last step (a beta of 1 removes all signal), got 1.")
        if self.zero_terminal_snr and (betas[-1] == 1 or not bool(betas[1:].any())):
            raise ValueError(
                "zero_terminal_snr must be false if the last alpha is already 0, if the schedule has a single step, "
                "or if no step after the first adds noise, got true."
            )

    @cached_property
    def betas(self) -> Tensor:
        """Variance that each step adds: [T] in [0, 1], float64."""
        return _to_zero_terminal_snr(self.unscaled_betas()) if self.zero_terminal_snr else self.unscaled_betas()

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
        # A sum of logarithms keeps all digits of 1 - alpha_bar at small times. A product of 1 - beta would lose digits.
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0)])  # [T + 1]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return (self._log_alpha_bar / 2).exp(), (-torch.expm1(self._log_alpha_bar)).sqrt()  # [T + 1] each

    @property
    def alpha_bar(self) -> Tensor:
        """alpha_t^2 after each step: [T], float64 (Ho et al. 2020, below eq. 4)."""
        return self._log_alpha_bar[1:].exp()

    @property
    def steps(self) -> Tensor:
        """All times above 0 in increasing order: [T], float64."""
        return torch.arange(1, self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = self._index(t)
        alphas, sigmas = self._tables
        return alphas[index], sigmas[index]

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        table = -self.log_snr(self.steps)  # increasing
        target = -log_snr.double()
        above = torch.searchsorted(table, target).clamp(1, max(self.num_timesteps - 1, 1))
        low, high = table[above - 1], table[above.clamp(max=self.num_timesteps - 1)]
        index = torch.where((target == low) | (target - low <= high - target), above - 1, above)
        return (index.clamp(max=self.num_timesteps - 1) + 1).double() / self.num_timesteps

    def nearest(self, t: Tensor) -> Tensor:
        # Ties round to the even index k - 1, as in the code of the papers. The rounding to 6 decimals removes the error
        # of float64, which would otherwise break ties.
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
        # The tolerance accepts float32 times, whose error reaches 2.4e-4 of a step in a schedule of 4000 steps.
        is_step = ((step - index).abs() < 1e-3) & (index >= 0) & (index <= self.num_timesteps)
        if not bool(is_step.all()):
            raise ValueError(
                f"t must be one of 0, 1/{self.num_timesteps}, 2/{self.num_timesteps}, ..., 1 for a schedule with "
                f"num_timesteps={self.num_timesteps}, got {t.flatten()[~is_step.flatten()][0].item()}."
            )
        return index.long()


@dataclass(frozen=True)
class Interpolated(NoiseSchedule):
    """A discrete schedule interpolated to every time in [0, 1].

    It allows solvers that choose their own times to use networks that were trained on discrete steps. Between two steps
    the angle atan(sigma / alpha) is linear in t, so that alpha^2 + sigma^2 stays 1, and the network receives a
    fractional step index. At the steps the values are those of the discrete schedule.

    table: the discrete schedule.
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
        t = validated_times(t, self.t_max)
        step = t * self.table.num_timesteps
        below = step.floor().clamp(max=self.table.num_timesteps - 1).long()
        angle = torch.lerp(self._angles[below], self._angles[below + 1], step - below)
        nearest_step = step.round() / self.table.num_timesteps
        alphas, sigmas = self.table.coefficients(nearest_step)
        is_step = (step - step.round()).abs() < 1e-9
        return torch.where(is_step, alphas, angle.cos()), torch.where(is_step, sigmas, angle.sin())

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-log_snr.double() / 2))
        num_timesteps = self.table.num_timesteps
        below = (torch.searchsorted(self._angles, angle.contiguous()) - 1).clamp(0, num_timesteps - 1)
        low, high = self._angles[below], self._angles[below + 1]
        fraction = torch.where(high > low, (angle - low) / (high - low), 0.0).clamp(0, 1)
        return ((below + fraction) / num_timesteps).clamp(self.t_min, self.t_max)

    def nearest(self, t: Tensor) -> Tensor:
        return t.double().clamp(self.t_min, self.t_max)

    def quantile(self, u: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * u.double()

    def network_time(self, t: Tensor) -> Tensor:
        return validated_times(t, self.t_max) * self.table.num_timesteps - 1

    def previous(self, t: Tensor) -> Tensor:
        return (t.double() - self.t_min).clamp(min=0)

    def following(self, t: Tensor) -> Tensor:
        return (t.double() + self.t_min).clamp(max=self.t_max)


def _to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return variances whose sqrt(alpha_bar) is shifted and scaled to end at 0 (Lin et al. 2024, algorithm 1)."""
    root = (torch.log1p(-betas).cumsum(0) / 2).exp()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([betas[:1], 1 - (root[1:] / root[:-1]) ** 2])


def _validate_num_timesteps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be a whole number of at least 1, got {num_timesteps}.")
    if num_timesteps > MAX_TIMESTEPS:
        raise ValueError(f"num_timesteps must be at most {MAX_TIMESTEPS:,}, got {num_timesteps}.")
