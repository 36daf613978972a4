"""Euler's method on the probability flow."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, weighted_sum
from diffusion_lab.samplers.base import Noise, OnStep, Sampler
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Euler(Sampler):
    """dx = noise d(sigma), for x and sigma both over alpha (Karras et al. 2022, eq. 1 and 4; k-diffusion).

    Without churn it is DDIM with eta 0, step for step.
    """

    process: GaussianProcess
    num_steps: int | None = 50
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
        kept = torch.where(sigma_t > 0, sigma_s / sigma_t, 0.0)
        weights = torch.stack([alpha_s - kept * alpha_t, kept, scale, added], dim=1).tolist()

        x_t = self.start(noise)
        for i, (on_x_0, on_x_t, rescaled, churned) in enumerate(weights):
            if churned > 0:
                x_t = rescaled * x_t + churned * noise.draw()
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            x_t = weighted_sum(on_x_0, x_0, on_x_t, x_t)
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t
