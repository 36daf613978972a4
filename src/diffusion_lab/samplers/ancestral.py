"""Ancestral sampling: the reverse Markov chain of DDPM."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.process import FixedLarge, GaussianProcess, Variance, weighted_sum
from diffusion_lab.samplers.base import FixedStepSampler, StepContext, add_noise
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Ancestral(FixedStepSampler):
    """x_s ~ N(posterior mean at the estimated x_0, variance) (Ho et al. 2020, algorithm 2), for any list of times.

    The gradient of a classifier shifts the mean by variance * gradient (Dhariwal & Nichol 2021, algorithm 1).
    process, num_steps, time_grid, clipping: see `Sampler`.
    variance: variance of a step; a learned variance requires a network that outputs it.

    >>> from diffusion_lab import Ancestral, CosineSchedule, GaussianProcess
    >>> len(Ancestral(GaussianProcess(CosineSchedule())).times)  # every step of the schedule
    1000
    """

    process: GaussianProcess
    num_steps: int | None = None
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    variance: Variance = field(default_factory=FixedLarge)
    clipping: Clipping = field(default_factory=StaticClipping)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        return t, torch.stack([s, on_x_0, on_x_t, fixed_stds(self.variance, self.process, t, s)], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, on_x_0, on_x_t, fixed_std = coefficients
        estimate = context.estimate.without_shift(x_t, t)
        x_s = weighted_sum(on_x_0, estimate.x_0, on_x_t, x_t)
        if estimate.gradient is not None:
            x_s = x_s + self._variance(t, s, estimate) * estimate.gradient
        if s > 0:
            std = learned_std(self.variance, self.process, t, s, estimate) if self.variance.learned else fixed_std
            x_s = add_noise(x_s, std, context.noise.draw())
        return x_s, estimate.x_0

    def _variance(self, t: Tensor, s: float, estimate: Estimate) -> Tensor:
        """Return the variance that scales the gradient of a classifier in the step from t to s.

        It is positive in the last step (s = 0) too, although that step adds no noise.
        """
        ends = _expand(t, s, estimate.x_0)
        return self.variance.log_variance(self.process, *ends, like=estimate.x_0, output=estimate.variance_output).exp()


def fixed_stds(variance: Variance, process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """Return the standard deviation of the noise of each step from t to s: float64 [num_steps], or NaN if learned."""
    if variance.learned:
        return torch.full_like(t, math.nan)
    return torch.tensor(variance.stds(process, s, t), dtype=torch.float64)


def learned_std(variance: Variance, process: GaussianProcess, t: Tensor, s: float, estimate: Estimate) -> Tensor:
    """Return the standard deviation of the noise of the step from t to s, [B, C, H, W], from the network output."""
    ends = _expand(t, s, estimate.x_0)
    return variance.std(process, *ends, like=estimate.x_0, output=estimate.variance_output)


def _expand(t: Tensor, s: float, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and t for each image: float64 [B] each."""
    return t.new_full((), s).expand(len(images)), t.expand(len(images))
