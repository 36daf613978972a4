"""Ancestral sampling: the reverse Markov chain of DDPM."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import FixedLarge, GaussianProcess, Variance, weighted_sum
from diffusion_lab.samplers.base import Noise, OnStep, Sampler, add_noise, reverse_std
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s ~ N(posterior mean at the estimated x_0, variance) (Ho et al. 2020, algorithm 2), for any list of times.

    A classifier's gradient moves the mean by variance x gradient (Dhariwal & Nichol 2021, algorithm 1).
    """

    process: GaussianProcess
    num_steps: int | None = None
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    variance: Variance = field(default_factory=FixedLarge)
    clipping: Clipping = field(default_factory=StaticClipping)

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        weights = torch.stack([on_x_0, on_x_t, s], dim=1).tolist()
        std = reverse_std(self.variance, self.process, t, s)

        x_t = self.start(noise)
        for i, (on_x_0, on_x_t, end) in enumerate(weights):
            answer = self.answer(denoiser, x_t, t[i], condition)
            x_t = weighted_sum(on_x_0, answer.x_0, on_x_t, x_t)
            if answer.gradient is not None:
                x_t = x_t + self._variance(s[i], t[i], answer) * answer.gradient
            if end > 0:
                x_t = add_noise(x_t, std(i, x_t, answer), noise.draw())
            if on_step is not None:
                on_step(i + 1, x_t, answer.x_0)
        return x_t

    def _variance(self, s: Tensor, t: Tensor, answer: Estimate) -> Tensor:
        """Of the step from t to s, also of the last, which adds no noise."""
        ends = s.expand(len(answer.x_0)), t.expand(len(answer.x_0))
        return self.variance.log_variance(self.process, *ends, like=answer.x_0, output=answer.variance_output).exp()
