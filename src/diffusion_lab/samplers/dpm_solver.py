"""DPM-Solver++: a multistep solver of the probability flow in log-SNR."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DPMSolver(FixedStepSampler):
    """DPM-Solver++(2M): x_0 is extrapolated from the last two estimates (Lu et al. 2022, algorithm 2).

    The solver has order 2 with one network evaluation per step. The first step and the last step, which ends at time 0,
    have order 1.
    process, num_steps, time_grid, clipping: see `Sampler`.

    >>> from diffusion_lab import CosineSchedule, DPMSolver, GaussianProcess, LogSNRTimes
    >>> sampler = DPMSolver(GaussianProcess(CosineSchedule()), num_steps=4, time_grid=LogSNRTimes())
    >>> [round(t, 3) for t in sampler.times]
    [1.0, 0.995, 0.477, 0.001]
    """

    process: GaussianProcess
    num_steps: int | None = 20
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        on_x_t = torch.where(sigma_t > 0, sigma_s / sigma_t, 0.0)
        # The paper's alpha_s (1 - exp(-h)), where h is the step in log(alpha / sigma), in a form that is finite at both
        # ends of every schedule.
        on_x_0 = alpha_s - on_x_t * alpha_t
        return t, torch.stack([on_x_0, on_x_t, extrapolation_factors(self.process, t, s)], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, factor = coefficients
        x_0 = context.estimate(x_t, t).x_0
        extrapolated = extrapolate(x_0, context.previous, factor)
        context.previous = x_0
        return on_x_0 * extrapolated + on_x_t * x_t, x_0


def extrapolation_factors(process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """Return 1 / (2 r) of Lu et al. (2022), algorithm 2, for each step from t to s, float64 [num_steps].

    r is the length of the previous step divided by the length of this step, in log-SNR. The factor is 0 for the first
    step, and if one of the two steps ends at time 0 or starts from pure noise (alpha_t = 0).
    """
    length = (process.schedule.log_snr(s) - process.schedule.log_snr(t)) / 2
    factors = torch.zeros_like(length)
    factors[1:] = length[1:] / (2 * length[:-1])
    return torch.where(factors.isfinite(), factors, 0.0)


def extrapolate(x_0: Tensor, previous: Tensor | None, factor: float) -> Tensor:
    """Return x_0 + factor * (x_0 - previous).  previous: estimate of the previous step, None in the first step."""
    return x_0 if previous is None or factor == 0 else x_0 + factor * (x_0 - previous)
