"""Annealed Langevin dynamics: the sampler of score-based models."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class AnnealedLangevin(FixedStepSampler):
    """num_updates Langevin updates at each noise level, from the highest to the lowest (Song & Ermon 2019, alg. 1).

    The result is the estimate of x_0 at the last level (Song & Ermon 2020, technique 5 and appendix). If alpha changes
    between levels, x is rescaled accordingly.
    process, num_steps, time_grid, clipping: see `Sampler`.
    num_updates: number of updates at each noise level, each with one network evaluation.
    step_size: size of an update, in units of the variance sigma_t^2 of the noise level; the paper uses
        epsilon / sigma_L^2 = 0.2.
    Raises ValueError unless num_updates is at least 1 and step_size is in (0, 4).

    >>> from diffusion_lab import AnnealedLangevin, GaussianProcess, VESchedule
    >>> sampler = AnnealedLangevin(GaussianProcess(VESchedule()), num_steps=10, num_updates=5)
    >>> round(sampler.initial_std)  # sigma at t = 1
    50
    """

    process: GaussianProcess
    num_steps: int | None = 100
    num_updates: int = 10
    step_size: float = 0.2
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_updates < 1:
            raise ValueError(f"num_updates must be at least 1, got {self.num_updates}.")
        if not 0 < self.step_size < 4:
            raise ValueError(f"step_size must be in (0, 4) (larger steps diverge), got {self.step_size}.")

    @property
    def num_evaluations(self) -> int:
        return len(self.times) * self.num_updates + 1

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        rescaling = torch.ones_like(t)
        rescaling[:-1] = torch.where(alpha_t[:-1] > 0, alpha_t[1:] / alpha_t[:-1], 1.0)
        return t, torch.stack([s, alpha_t, sigma_t, rescaling], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, alpha_t, sigma_t, rescaling = coefficients
        for _ in range(self.num_updates):
            x_0 = context.estimate(x_t, t).x_0
            # The score is -(x_t - alpha_t x_0) / sigma_t^2, whose denominator is the unit of step_size.
            drift = -self.step_size / 2 * (x_t - alpha_t * x_0)
            x_t = x_t + drift + self.step_size**0.5 * sigma_t * context.noise.draw()
        if s > 0:
            return rescaling * x_t, x_0
        x_0 = context.estimate(x_t, t).x_0
        return x_0, x_0
