"""Heun's method on the probability flow: the sampler of EDM."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Heun(FixedStepSampler):
    """An Euler step, then the same step with the mean of the slopes at both ends (Karras et al. 2022, algorithm 2).

    x and sigma are divided by alpha. A step takes two network evaluations. The last step and a step that starts from
    pure noise (alpha_t = 0) take one.
    The method needs a time grid whose noise levels sigma / alpha are dense near the data and finite at the noise, as
    `KarrasTimes(sigma_max=80)` chooses them. The mean of two slopes is wrong for a step from nearly pure noise: the
    last step of `CosineSchedule` has sigma / alpha = 20,000, and the first of 20 steps of `UniformTimes` ends at 12,
    which turns the samples into noise.
    process, num_steps, time_grid, clipping: see `Sampler`.  churn: see `Churn`.

    >>> from diffusion_lab import EDMSchedule, GaussianProcess, Heun, KarrasTimes
    >>> sampler = Heun(GaussianProcess(EDMSchedule()), num_steps=18, time_grid=KarrasTimes())
    >>> sampler.num_evaluations  # as in Karras et al. (2022), Table 2
    35
    """

    process: GaussianProcess
    num_steps: int | None = 18
    churn: Churn = field(default_factory=Churn)
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    @property
    def num_evaluations(self) -> int:
        *_, alpha_t, _, _, sigma_s = self.prepare_steps(*self.intervals())[1].unbind(dim=1)
        return len(self.times) + int(((sigma_s > 0) & (alpha_t > 0)).sum())

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        t, scale, std = self.churn(self.process, t)
        alpha_t, sigma_t = self.process.continuous.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        return t, torch.stack([s, scale, std, alpha_t, sigma_t, alpha_s, sigma_s], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, scale, std, alpha_t, sigma_t, alpha_s, sigma_s = coefficients
        if std > 0:
            x_t = scale * x_t + std * context.noise.draw()
        x_0 = context.estimate(x_t, t).x_0
        slope = (x_t - alpha_t * x_0) / sigma_t if sigma_t > 0 else torch.zeros_like(x_t)
        x_s = alpha_s * x_0 + sigma_s * slope
        if sigma_s > 0 and alpha_t > 0:
            x_0 = context.estimate(x_s, t.new_full((), s)).x_0
            slope = (slope + (x_s - alpha_s * x_0) / sigma_s) / 2
            x_s = alpha_s / alpha_t * x_t + (sigma_s - alpha_s * sigma_t / alpha_t) * slope
        return x_s, x_0
