"""Ancestral sampling: the reverse Markov chain of DDPM."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.denoiser import Estimate
from diffusion_lab.process import FixedLarge, FixedSmall, GaussianProcess, Variance, weighted_sum
from diffusion_lab.process.respaced import Respaced
from diffusion_lab.samplers.base import FixedStepSampler, StepContext, add_noise
from diffusion_lab.samplers.clipping import Clipping, NoClipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class Ancestral(FixedStepSampler):
    """x_s ~ N(posterior mean at the estimated x_0, variance) (Ho et al. 2020, algorithm 2), for any list of times.

    The gradient of a classifier shifts the mean by variance * gradient (Dhariwal & Nichol 2021, algorithm 1). The mean
    may be the output of the network, see `PosteriorMean`.
    process, num_steps, time_grid, clipping: see `Sampler`.
    variance: variance of a step; a learned variance requires a network that outputs it.
    chain_variance: whether the variance of the last step, which only scales the gradient of a classifier, is that of
        the chain of the sampler's times (Dhariwal & Nichol 2021, code). `FixedSmall` is 0 in this step, and the other
        variances use the posterior variance of the chain's second to last step. False uses the posterior variance of
        the schedule's second step.

    >>> from diffusion_lab import Ancestral, CosineSchedule, GaussianProcess
    >>> len(Ancestral(GaussianProcess(CosineSchedule())).times)  # every step of the schedule
    1000
    """

    process: GaussianProcess
    num_steps: int | None = None
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    variance: Variance = field(default_factory=FixedLarge)
    clipping: Clipping = field(default_factory=StaticClipping)
    chain_variance: bool = added(default=False)

    @cached_property
    def _chain(self) -> GaussianProcess:
        return GaussianProcess(Respaced(self.process.schedule, self.times))

    def without_effect(self, *, classifier: bool) -> tuple[str, ...]:
        t, s = self.intervals()
        last = [process.posterior_log_variance(s[-1:], t[-1:]) for process in (self.process, self._chain)]
        differs = isinstance(self.variance, FixedSmall) or not torch.equal(*last)
        clips_output = not isinstance(self.clipping, NoClipping) and bool(self.process.is_one_step(s, t).any())
        used = {"chain_variance": classifier and differs, "clip_mean": clips_output}
        # The mean is shifted instead of x_0, so that no x_0 is clipped after the shift.
        others = [name for name in super().without_effect(classifier=False) if name not in used]
        return (*others, *(name for name, has_effect in used.items() if not has_effect))

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        fixed_std, is_one_step = fixed_stds(self.variance, self.process, t, s), self.process.is_one_step(s, t)
        return t, torch.stack([s, on_x_0, on_x_t, fixed_std, is_one_step.double()], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, on_x_0, on_x_t, fixed_std, is_one_step = coefficients
        estimate = context.estimate.unclipped(x_t, t)
        x_0 = context.estimate.clipping(estimate.x_0)
        # The mean of one step of the schedule at the unclipped x_0 is the output of a network that predicts this mean.
        uses_output = is_one_step and not estimate.clip_mean
        x_s = weighted_sum(on_x_0, estimate.x_0 if uses_output else x_0, on_x_t, x_t)
        if estimate.gradient is not None:
            x_s = x_s + self._gradient_scale(t, s, estimate) * estimate.gradient
        if s > 0:
            std = learned_std(self.variance, self.process, t, s, estimate) if self.variance.learned else fixed_std
            x_s = add_noise(x_s, std, context.noise.draw())
        return x_s, x_0

    def _gradient_scale(self, t: Tensor, s: float, estimate: Estimate) -> Tensor:
        """Return the variance of the step from t to s, which scales the gradient of a classifier."""
        ends, like, output = _expand(t, s, estimate.x_0), estimate.x_0, estimate.variance_output
        if self.chain_variance:
            return self.variance.variance(self._chain, *ends, like=like, output=output)
        return self.variance.log_variance(self.process, *ends, like=like, output=output).exp()


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
