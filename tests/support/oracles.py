"""Exact denoisers, and the trajectories of samplers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import Noise, Sampler


@dataclass(frozen=True)
class GaussianOracle:
    """E[x_0 | x_t] of images whose pixels are independent samples of N(mean, std^2)."""

    process: GaussianProcess
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        alpha_t, sigma_t = self.process.unbounded.coefficients(t, like=x_t)
        gain = alpha_t * self.std**2 / (alpha_t**2 * self.std**2 + sigma_t**2)
        return Estimate(self.mean + gain * (x_t - alpha_t * self.mean))


@dataclass(frozen=True)
class MixtureOracle:
    """E[x_0 | x_t] of images whose pixels are independent samples of a mixture of Gaussians."""

    process: GaussianProcess
    means: tuple[float, ...] = (-0.6, 0.2, 0.7)
    stds: tuple[float, ...] = (0.15, 0.2, 0.1)
    weights: tuple[float, ...] = (0.3, 0.4, 0.3)

    @property
    def mean(self) -> float:
        return sum(weight * mean for weight, mean in zip(self.weights, self.means, strict=True))

    @property
    def std(self) -> float:
        parts = zip(self.weights, self.means, self.stds, strict=True)
        return math.sqrt(sum(weight * (mean**2 + std**2) for weight, mean, std in parts) - self.mean**2)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        alpha_t = self.process.unbounded.coefficients(t, like=x_t)[0]
        difference, variance = self._difference_to_modes(x_t, t)
        _, means, stds = self._modes(x_t)
        expected = means + alpha_t * stds**2 / variance * difference  # of each mode: [modes, B, C, H, W]
        return Estimate((self.log_joint(x_t, t).softmax(0) * expected).sum(0))

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the log-density of the noisy pixels up to a constant: [B, C, H, W].  t: [B]."""
        return self.log_joint(x_t, t).logsumexp(0)

    def below(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the cumulative distribution function of the noisy pixels at x_t [B, C, H, W].  t: [B]."""
        difference, variance = self._difference_to_modes(x_t, t)
        below_each: Tensor = torch.special.ndtr(difference / variance.sqrt())
        return (self._modes(x_t)[0] * below_each).sum(0)

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """Return the exact solution of the probability flow from x_t [B, C, H, W], float64, at time t to time s.

        The flow of a single pixel preserves the value of the cumulative distribution function.
        """
        t_all, s_all = (torch.full((len(x_t),), time, dtype=torch.float64) for time in (t, s))
        target = self.below(x_t, t_all)
        low, high = torch.full_like(x_t, -1e3), torch.full_like(x_t, 1e3)
        for _ in range(70):
            middle = (low + high) / 2
            over = self.below(middle, s_all) > target
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        return (low + high) / 2

    def _modes(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each = torch.tensor([self.weights, self.means, self.stds], dtype=torch.float64).to(like).view(3, -1, 1, 1, 1, 1)
        return each[0], each[1], each[2]

    def _difference_to_modes(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t minus the noisy mean of each mode, [modes, B, C, H, W], and the variances, [modes, B, 1, 1, 1]."""
        alpha_t, sigma_t = self.process.unbounded.coefficients(t, like=x_t)
        _, means, stds = self._modes(x_t)
        return x_t - alpha_t * means, alpha_t**2 * stds**2 + sigma_t**2

    def log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the log-density of the noisy pixels and each mode up to a constant: [modes, B, C, H, W]."""
        difference, variance = self._difference_to_modes(x_t, t)
        return self._modes(x_t)[0].log() - variance.log() / 2 - difference**2 / (2 * variance)


class RecordedNoise:
    """The recorded noise of seeds 0, 1, ..., in float64, so that samplers can be compared precisely."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.drawn: list[Tensor] = []
        self._noise = ImageNoise(range(shape[0]), shape[1:])

    def draw(self) -> Tensor:
        self.drawn.append(self._noise.draw().double())
        return self.drawn[-1]


def walk(sampler: Sampler, denoiser: DenoiserLike, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return x_t after each step and the estimate of x_0 in each step: [steps, B, C, H, W] each."""
    steps: list[tuple[Tensor, Tensor]] = []
    sampler.sample(denoiser, noise, Condition(), lambda _, x_t, x_0: steps.append((x_t.clone(), x_0.clone())))
    visited, estimates = zip(*steps, strict=True)
    return torch.stack(visited), torch.stack(estimates)
