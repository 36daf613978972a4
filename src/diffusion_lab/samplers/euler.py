"""Euler's method on the probability flow."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess, weighted_sum
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Euler(FixedStepSampler):
    """Euler steps of dx = noise d(sigma) for the estimated noise (Karras et al. 2022, eq. 1 and 4; k-diffusion).

    x and sigma are divided by alpha. Without churn, each step equals a DDIM step with eta=0.
    process, num_steps, time_grid, clipping: see `Sampler`.  churn: see `Churn`.

    >>> from diffusion_lab import EDMSchedule, Euler, GaussianProcess, KarrasTimes
    >>> sampler = Euler(GaussianProcess(EDMSchedule()), num_steps=3, time_grid=KarrasTimes())
    >>> [round(t, 3) for t in sampler.times]
    [80.0, 2.515, 0.002]
    """

    process: GaussianProcess
    num_steps: int | None = 50
    churn: Churn = field(default_factory=Churn)
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        t, scale, std = self.churn(self.process, t)
        alpha_t, sigma_t = self.process.unbounded.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        on_x_t = torch.where(sigma_t > 0, sigma_s / sigma_t, 0.0)
        return t, torch.stack([scale, std, alpha_s - on_x_t * alpha_t, on_x_t], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        scale, std, on_x_0, on_x_t = coefficients
        if std > 0:
            x_t = scale * x_t + std * context.noise.draw()
        x_0 = context.estimate(x_t, t).x_0
        return weighted_sum(on_x_0, x_0, on_x_t, x_t), x_0
