"""What all samplers share: their arguments, not their loops."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Variance
from diffusion_lab.samplers.clipping import Clipping
from diffusion_lab.samplers.time_grids import TimeGrid


class Noise(Protocol):
    """A source of standard normal noise for a fixed set of images."""

    def draw(self) -> Tensor:
        """The next noise of every image: [B, C, H, W], float32."""


@dataclass(frozen=True)
class GivenNoise:
    """Noise to start from that is known already, for samplers that draw no more."""

    noise: Tensor

    def draw(self) -> Tensor:
        return self.noise


OnStep = Callable[[int, Tensor, Tensor], None]
"""Told (number of steps done, x_t after the step, estimate of x_0 in it) once for each step."""


StepStd = Callable[[int, Tensor, Estimate], Tensor | float]
"""(number of the step, x_t, estimate in it) -> standard deviation of the noise that the step adds."""


class Sampler(ABC):
    """An algorithm that walks from noise to images along a decreasing list of times.

    Each sampler is a frozen dataclass with these four settings, and its own beside them.
    num_steps: how many times it visits; None is every step of a table.
    """

    process: GaussianProcess
    num_steps: int | None
    time_grid: TimeGrid
    clipping: Clipping

    def __post_init__(self) -> None:
        self.process.validate_times(self.times)

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The times visited, decreasing, all above 0; sampling ends at 0."""
        return self.time_grid(self.process.schedule, self.num_steps)

    @abstractmethod
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] (up to the sampler's clipping)."""

    def steps(self) -> tuple[Tensor, Tensor]:
        """Where each step starts, t, and where it ends, s: [num_steps] each, float64. The last ends at 0."""
        t = torch.tensor(self.times, dtype=torch.float64)
        return t, torch.cat([t[1:], torch.zeros(1, dtype=torch.float64)])  # s is read from the list, never computed

    def start(self, noise: Noise) -> Tensor:
        """What the walk starts from, [B, C, H, W]."""
        return noise.draw() * float(self.process.schedule.prior_std(torch.tensor(self.times[0], dtype=torch.float64)))

    def estimate(self, denoiser: DenoiserLike, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """The denoiser's answer at one time t [], moved by a classifier's gradient if there is one."""
        answer = self.answer(denoiser, x_t, t, condition)
        if answer.gradient is None:
            return answer
        return Estimate(self.shifted(answer, t.expand(len(x_t))), answer.variance_output)

    def answer(self, denoiser: DenoiserLike, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """The denoiser's answer at one time t [], x_0 held in range by the clipping, and its gradient as it is."""
        answer = denoiser(x_t, t.expand(len(x_t)), condition)
        return Estimate(self.clipping(answer.x_0), answer.variance_output, answer.gradient)

    def shifted(self, answer: Estimate, t: Tensor) -> Tensor:
        """x_0 after noise - sigma_t gradient has taken the place of noise (Dhariwal & Nichol 2021, algorithm 2).

        t: [B].  Where no signal is left, noise says nothing of x_0.
        """
        if answer.gradient is None:
            return answer.x_0
        alpha_t, sigma_t = self.process.continuous.schedule.coefficients(t)
        length = torch.where(alpha_t > 0, sigma_t**2 / alpha_t, 0.0)
        # The paper's code holds x_0 in range before it is moved and not after. With little signal left the move is many
        # times the range, and one step of DDIM would carry it all: here x_0 is held in range again.
        return self.clipping(answer.x_0 + self.process.widen(length, answer.x_0) * answer.gradient)


def add_noise(x: Tensor, std: Tensor | float, noise: Tensor) -> Tensor:
    """X + std * noise, in x's own memory: x must be the sampler's.  x, noise: [B, C, H, W]."""
    return x.add_(noise, alpha=std) if isinstance(std, float) else x.addcmul_(std, noise)


def reverse_std(variance: Variance, process: GaussianProcess, t: Tensor, s: Tensor) -> StepStd:
    """The standard deviation of each step of a walk: a table where the variance is fixed, asked of each estimate if learned."""
    if not variance.learned:
        table = variance.stds(process, s, t)
        return lambda i, x_t, estimate: table[i]

    def learned(i: int, x_t: Tensor, estimate: Estimate) -> Tensor:
        ends = s[i].expand(len(x_t)), t[i].expand(len(x_t))
        return variance.std(process, *ends, like=x_t, output=estimate.variance_output)

    return learned
