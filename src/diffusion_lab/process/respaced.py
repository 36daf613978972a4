"""The chain of the times that a sampler visits, a subset of the times of a schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule


@dataclass(frozen=True)
class Respaced(NoiseSchedule):
    """A schedule whose steps are the given times only (Nichol & Dhariwal 2021, section 4, code).

    The first step of a chain has the log-variance of its second step, see `GaussianProcess.posterior_log_variance`. In
    a respaced chain, this is the second step of the chain instead of the second step of the schedule.
    schedule: the schedule with all steps.  times: decreasing times of the schedule above 0.
    """

    schedule: NoiseSchedule
    times: Sequence[float]

    @property
    def t_min(self) -> float:
        return self.times[-1]

    @property
    def t_max(self) -> float:
        return self.times[0]

    @property
    def continuous(self) -> NoiseSchedule:
        return self.schedule.continuous

    @property
    def _increasing(self) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float64).flip(0)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.coefficients(t)

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.nearest(self.schedule.at_log_snr(log_snr))

    def nearest(self, t: Tensor) -> Tensor:
        times = self._increasing
        return times[(t.double().unsqueeze(-1) - times).abs().argmin(-1)]

    def quantile(self, u: Tensor) -> Tensor:
        return self._increasing[(u.double() * len(self.times)).long().clamp(max=len(self.times) - 1)]

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)

    def previous(self, t: Tensor) -> Tensor:
        times = torch.cat([torch.zeros(1, dtype=torch.float64), self._increasing])
        return times[torch.searchsorted(times, t.double().contiguous()) - 1]

    def following(self, t: Tensor) -> Tensor:
        times = self._increasing
        index = torch.searchsorted(times, t.double().contiguous(), right=True)
        return times[index.clamp(max=len(times) - 1)]
