"""Denoisers that are exact, and samplers watched at every step."""

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
    """E[x_0 | x_t] of images whose pixels are independent draws of N(mean, std^2)."""

    process: GaussianProcess
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        alpha_t, sigma_t = self.process.continuous.coefficients(t, like=x_t)
        gain = alpha_t * self.std**2 / (alpha_t**2 * self.std**2 + sigma_t**2)
        return Estimate(self.mean + gain * (x_t - alpha_t * self.mean))


@dataclass(frozen=True)
class MixtureOracle:
    """E[x_0 | x_t] of images whose pixels are independent draws of a mixture of Gaussians."""

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
        return math.sqrt(sum(weight * (mean**2 + dev**2) for weight, mean, dev in parts) - self.mean**2)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        alpha_t = self.process.continuous.coefficients(t, like=x_t)[0].unsqueeze(-1)
        off, variance = self._around_modes(x_t, t)
        _, means, stds = self._modes(x_t)
        expected = means + alpha_t * stds**2 / variance * off  # of each mode: [B, C, H, W, modes]
        return Estimate((self._log_joint(x_t, t).softmax(-1) * expected).sum(-1))

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Of the noisy pixels, up to a constant: [B, C, H, W].  t: [B]."""
        return self._log_joint(x_t, t).logsumexp(-1)

    def below(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Share of the noisy pixels at t [B] that lie below x_t [B, C, H, W]."""
        off, variance = self._around_modes(x_t, t)
        below_each: Tensor = torch.special.ndtr(off / variance.sqrt())
        return (self._modes(x_t)[0] * below_each).sum(-1)

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """Where the probability flow carries x_t [B, C, H, W], float64, from time t to s.

        Exact: along the flow of one number, the share of numbers below it stays as it is.
        """
        t_all, s_all = (torch.full((len(x_t),), time, dtype=torch.float64) for time in (t, s))
        wanted = self.below(x_t, t_all)
        low, high = torch.full_like(x_t, -1e3), torch.full_like(x_t, 1e3)
        for _ in range(70):
            middle = (low + high) / 2
            over = self.below(middle, s_all) > wanted
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        return (low + high) / 2

    def _modes(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, means, stds = (like.new_tensor(each) for each in (self.weights, self.means, self.stds))
        return weights, means, stds

    def _around_modes(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t less the noisy mean of each mode, and its variance: [B, C, H, W, modes]."""
        alpha_t, sigma_t = (each.unsqueeze(-1) for each in self.process.continuous.coefficients(t, like=x_t))
        _, means, stds = self._modes(x_t)
        return x_t.unsqueeze(-1) - alpha_t * means, alpha_t**2 * stds**2 + sigma_t**2

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        off, variance = self._around_modes(x_t, t)
        return self._modes(x_t)[0].log() - variance.log() / 2 - off**2 / (2 * variance)


class RecordedNoise:
    """The noise of seeds 0, 1, ..., kept, and in float64 so that samplers can be compared to many digits."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.drawn: list[Tensor] = []
        self._noise = ImageNoise(range(shape[0]), shape[1:])

    def draw(self) -> Tensor:
        self.drawn.append(self._noise.draw().double())
        return self.drawn[-1]


def walk(sampler: Sampler, denoiser: DenoiserLike, noise: Noise) -> tuple[Tensor, Tensor]:
    """x_t after each step, and the estimate of x_0 in it: [steps, B, C, H, W] each."""
    steps: list[tuple[Tensor, Tensor]] = []
    sampler.sample(denoiser, noise, Condition(), lambda _, x_t, x_0: steps.append((x_t.clone(), x_0.clone())))
    visited, estimates = zip(*steps, strict=True)
    return torch.stack(visited), torch.stack(estimates)
