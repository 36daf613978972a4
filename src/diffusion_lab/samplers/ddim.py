"""Denoising diffusion implicit models."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.sampler import Noise, OnStep, Sampler
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - deviation^2) noise_t + deviation * fresh noise (Song et al. 2021, eq. 12).

    eta: 0 is deterministic; 1 is ancestral sampling with the small variance (Song et al. 2021, eq. 16).
    """

    process: GaussianProcess
    num_steps: int = 50
    eta: float = 0.0
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")
        self.process.validate_times(self.times)

    @cached_property
    def times(self) -> tuple[float, ...]:
        return self.time_grid(self.process.schedule, self.num_steps)

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t = torch.tensor(self.times, dtype=torch.float64)
        s = torch.cat([t[1:], torch.zeros(1, dtype=torch.float64)])  # the next time is read from the list
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        variance = self.eta**2 * self.process.posterior_coefficients(s, t)[2]
        # With the noise in x_t written out as (x_t - alpha_t x_0) / sigma_t, a step is one weight on x_0 and one on
        # x_t. Where the first step of a schedule adds no noise, sigma_t is 0 and so is the weight.
        kept = torch.where(sigma_t > 0, (sigma_s**2 - variance).clamp(min=0).sqrt() / sigma_t, 0.0)
        weights = torch.stack([alpha_s - kept * alpha_t, kept, variance.sqrt()], dim=1).tolist()

        x_t = noise.draw() * float(sigma_t[0])
        for i, (on_x_0, on_x_t, deviation) in enumerate(weights):
            x_0 = self.clipping(denoiser(x_t, t[i].expand(len(x_t)), condition).x_0)
            x_t = on_x_0 * x_0 + on_x_t * x_t
            if deviation > 0:
                x_t = x_t + deviation * noise.draw()
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t
