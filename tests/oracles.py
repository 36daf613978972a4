"""A denoiser that is exact, and samplers watched at every step."""

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
    """E[x_0 | x_t] of images whose pixels are independent draws of N(mean, deviation^2)."""

    process: GaussianProcess
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        alpha_t, sigma_t = self.process.coefficients(t, like=x_t)
        gain = alpha_t * self.deviation**2 / (alpha_t**2 * self.deviation**2 + sigma_t**2)
        return Estimate(self.mean + gain * (x_t - alpha_t * self.mean))


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
    sampler.sample(denoiser, noise, Condition(), lambda _, x_t, x_0: steps.append((x_t, x_0)))
    visited, estimates = zip(*steps, strict=True)
    return torch.stack(visited), torch.stack(estimates)
