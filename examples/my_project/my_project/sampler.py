"""The midpoint method on the probability flow."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import Clipping, FixedStepSampler, StaticClipping, StepContext, TimeGrid, UniformTimes


@dataclass(frozen=True)
class Midpoint(FixedStepSampler):
    """Steps of dx = noise d(sigma) for x / alpha and sigma / alpha, with the noise estimated in the middle of a step.

    A step takes two network evaluations: one at its start, and one at the geometric mean of the noise levels of its
    ends. The last step takes one (Karras et al. 2022, appendix D, with alpha = 1/2).
    """

    process: GaussianProcess
    num_steps: int | None = 18
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        schedule = self.process.continuous.schedule
        alpha_t, sigma_t = schedule.coefficients(t)
        alpha_s, sigma_s = schedule.coefficients(s)
        middle = schedule.at_log_snr((schedule.log_snr(t) + schedule.log_snr(s)) / 2)
        alpha_m, sigma_m = schedule.coefficients(middle)
        return t, torch.stack([alpha_t, sigma_t, alpha_s, sigma_s, middle, alpha_m, sigma_m], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t, alpha_s, sigma_s, middle, alpha_m, sigma_m = coefficients
        x_0 = context.estimate(x_t, t).x_0
        noise = (x_t - alpha_t * x_0) / sigma_t
        if sigma_s > 0 and alpha_t > 0:
            x_m = alpha_m * x_0 + sigma_m * noise
            x_0 = context.estimate(x_m, t.new_full((), middle)).x_0
            noise = (x_m - alpha_m * x_0) / sigma_m
            return alpha_s / alpha_t * x_t + (sigma_s - alpha_s * sigma_t / alpha_t) * noise, x_0
        return alpha_s * x_0 + sigma_s * noise, x_0
