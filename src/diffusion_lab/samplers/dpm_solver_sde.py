"""SDE-DPM-Solver++: a multistep solver of the reverse stochastic differential equation."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.dpm_solver import extrapolate, extrapolation_factors
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DPMSolverSDE(FixedStepSampler):
    """SDE-DPM-Solver++(2M): ancestral steps with x_0 extrapolated from the last two estimates (Lu et al. 2022, eq. 18).

    Without the extrapolation, the sampler is ancestral sampling with the small variance.
    process, num_steps, time_grid, clipping: see `Sampler`.

    >>> from diffusion_lab import CosineSchedule, DPMSolverSDE, GaussianProcess
    >>> len(DPMSolverSDE(GaussianProcess(CosineSchedule())).times)
    20
    """

    process: GaussianProcess
    num_steps: int | None = 20
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, variance = self.process.posterior_coefficients(s, t)
        factors = extrapolation_factors(self.process, t, s)
        return t, torch.stack([on_x_0, on_x_t, factors, variance.sqrt()], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, factor, std = coefficients
        x_0 = context.estimate(x_t, t).x_0
        extrapolated = extrapolate(x_0, context.previous, factor)
        context.previous = x_0
        x_s = on_x_0 * extrapolated + on_x_t * x_t
        if std > 0:
            x_s = x_s + std * context.noise.draw()
        return x_s, x_0
