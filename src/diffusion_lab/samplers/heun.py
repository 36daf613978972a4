"""Heun's method on the probability flow: the sampler of EDM."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import StepContext
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.inversion import InvertibleSampler
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes

# Above sigma_max of Karras et al. (2022): 80 for EDM, 113 after the churn of its first step, 152 for the VP sampler.
# The mean of the two slopes multiplies the difference of the estimates of x_0 at both ends by (r - 1) / 2, where r is
# the ratio of their noise levels: by 800 in the first of 20 evenly spaced steps of `CosineSchedule`, from 20,000 to 12.
MAX_LEVEL = 200.0


@dataclass(frozen=True)
class Heun(InvertibleSampler):
    """An Euler step, then the same step with the mean of the slopes at both ends (Karras et al. 2022, algorithm 2).

    x and sigma are divided by alpha. A step takes two network evaluations. The last step and the steps that start from
    nearly pure noise, at a noise level sigma / alpha above 200, take one. Churn that raises times above t_max raises
    this limit by its largest factor, sqrt(2).
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
        *_, alpha_t, sigma_t, _, sigma_s = self.prepare_steps(*self.intervals())[1].unbind(dim=1)
        return len(self.times) + sum(map(self.has_correction, *(x.tolist() for x in (alpha_t, sigma_t, sigma_s))))

    @property
    def added_noise(self) -> str | None:
        return f"churn.amount={self.churn.amount}" if self.churn.amount else None

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        t, scale, std = self.churn(self.process, t)
        alpha_t, sigma_t = self.process.unbounded.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        return t, torch.stack([s, scale, std, alpha_t, sigma_t, alpha_s, sigma_s], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, scale, std, alpha_t, sigma_t, alpha_s, sigma_s = coefficients
        if std > 0:
            x_t = scale * x_t + std * context.noise.draw()
        x_0 = context.estimate(x_t, t).x_0
        slope = (x_t - alpha_t * x_0) / sigma_t if sigma_t > 0 else torch.zeros_like(x_t)
        x_s = alpha_s * x_0 + sigma_s * slope
        if self.has_correction(alpha_t, sigma_t, sigma_s):
            x_0 = context.estimate(x_s, t.new_full((), s)).x_0
            slope = (slope + (x_s - alpha_s * x_0) / sigma_s) / 2
            x_s = alpha_s / alpha_t * x_t + (sigma_s - alpha_s * sigma_t / alpha_t) * slope
        return x_s, x_0

    def has_correction(self, alpha_t: float, sigma_t: float, sigma_s: float) -> bool:
        """Return whether a step from t, after churn, to s evaluates the slope at s."""
        return sigma_s > 0 and sigma_t <= self._max_level * alpha_t * (1 + 1e-6)  # tolerance for rounded time grids

    @cached_property
    def _max_level(self) -> float:
        exceeds = self.churn.exceeds(self.process, torch.tensor(self.times, dtype=torch.float64))
        return MAX_LEVEL * math.sqrt(2) if exceeds else MAX_LEVEL  # the largest factor of churn
