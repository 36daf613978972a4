"""Ancestral sampling: the reverse Markov chain of DDPM."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import FixedLarge, GaussianProcess, Variance
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.sampler import Noise, OnStep, Sampler
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s ~ N(posterior mean at the estimated x_0, variance) (Ho et al. 2020, algorithm 2), for any list of times."""

    process: GaussianProcess
    num_steps: int = 1000
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    variance: Variance = field(default_factory=FixedLarge)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
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
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        weights = torch.stack([on_x_0, on_x_t, self.variance(self.process, s, t).sqrt()], dim=1).tolist()

        x_t = noise.draw() * float(self.process.schedule.coefficients(t[0])[1])
        for i, (on_x_0, on_x_t, deviation) in enumerate(weights):
            x_0 = self.clipping(denoiser(x_t, t[i].expand(len(x_t)), condition).x_0)
            x_t = on_x_0 * x_0 + on_x_t * x_t
            if deviation > 0:
                x_t = x_t + deviation * noise.draw()
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t
