"""SDE-DPM-Solver++: a multistep solver of the reverse stochastic differential equation."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.dpm_solver import extrapolate, extrapolation_factors
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes

SOLVER_TYPES = ("midpoint", "heun")


@dataclass(frozen=True)
class DPMSolverSDE(FixedStepSampler):
    """SDE-DPM-Solver++(2M): ancestral steps with x_0 extrapolated from the last two estimates (Lu et al. 2022, eq. 18).

    Without the extrapolation, the sampler is ancestral sampling with the small variance.
    process, num_steps, time_grid, clipping: see `Sampler`.
    solver_type: approximation of the integral over the change of x_0, as in k-diffusion's `sample_dpmpp_2m_sde` and in
        `diffusers`: "midpoint" is eq. 18, "heun" integrates a linear change of x_0 exactly.
    Raises ValueError for another solver_type.

    >>> from diffusion_lab import CosineSchedule, DPMSolverSDE, GaussianProcess
    >>> len(DPMSolverSDE(GaussianProcess(CosineSchedule())).times)
    20
    """

    process: GaussianProcess
    num_steps: int | None = 20
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)
    solver_type: str = added("midpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_type not in SOLVER_TYPES:
            raise ValueError(f"solver_type must be {' or '.join(SOLVER_TYPES)}, got {self.solver_type}.")

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, variance = self.process.posterior_coefficients(s, t)
        factors = extrapolation_factors(self.process, t, s)
        if self.solver_type == "heun":
            # midpoint: (1 - exp(-2h)) / (2r); heun: (1 - (1 - exp(-2h)) / (2h)) / r, where h is the step in log(alpha /
            # sigma). Both are divided by 1 - exp(-2h), which is part of on_x_0.
            twice_h = self.process.schedule.log_snr(s) - self.process.schedule.log_snr(t)
            factors = torch.where(factors == 0, 0.0, 2 * factors * (-1 / torch.expm1(-twice_h) - 1 / twice_h))
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
