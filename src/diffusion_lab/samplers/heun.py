"""Heun's method on the probability flow: EDM's sampler."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import Noise, OnStep, Sampler
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Heun(Sampler):
    """An Euler step, then the same step with the mean of the slopes at both ends (Karras et al. 2022, algorithm 2).

    In x and sigma over alpha. Two evaluations a step, one in the last, and in a first step from no signal at all.
    """

    process: GaussianProcess
    num_steps: int | None = 18
    churn: Churn = field(default_factory=Churn)
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        t, scale, added = self.churn(self.process, t)
        alpha_t, sigma_t = self.process.continuous.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        table = torch.stack([alpha_t, sigma_t, alpha_s, sigma_s, scale, added], dim=1).tolist()

        x_t = self.start(noise)
        for i, (alpha_t, sigma_t, alpha_s, sigma_s, rescaled, churned) in enumerate(table):
            if churned > 0:
                x_t = rescaled * x_t + churned * noise.draw()
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            slope = (x_t - alpha_t * x_0) / sigma_t if sigma_t > 0 else torch.zeros_like(x_t)
            x_s = alpha_s * x_0 + sigma_s * slope
            if sigma_s > 0 and alpha_t > 0:
                x_0 = self.estimate(denoiser, x_s, s[i], condition).x_0
                slope = (slope + (x_s - alpha_s * x_0) / sigma_s) / 2
                x_s = alpha_s / alpha_t * x_t + (sigma_s - alpha_s * sigma_t / alpha_t) * slope
            x_t = x_s
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t
