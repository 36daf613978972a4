"""Denoising diffusion implicit models."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.process import GaussianProcess, weighted_sum
from diffusion_lab.samplers.base import StepContext, add_noise
from diffusion_lab.samplers.clipping import Clipping, NoClipping, StaticClipping
from diffusion_lab.samplers.inversion import InvertibleSampler
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DDIM(InvertibleSampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) noise_t + std * fresh noise (Song et al. 2021, eq. 12).

    x_0 and noise_t are the estimates at x_t, and std is eta times the standard deviation of q(x_s | x_t, x_0).
    process, num_steps, time_grid, clipping: see `Sampler`.
    eta: 0 gives deterministic sampling; 1 gives ancestral sampling with the small variance (Song et al. 2021, eq. 16).
    noise_after_clipping: whether noise_t is computed from the clipped estimate of x_0 (Dhariwal & Nichol 2021, code).
        If false, clipping has no effect on noise_t, as in `DDIMPipeline` of `diffusers` by default.
    Raises ValueError unless eta is in [0, 1].

    >>> from diffusion_lab import DDIM, CosineSchedule, GaussianProcess
    >>> DDIM(GaussianProcess(CosineSchedule()), num_steps=4).times
    (1.0, 0.667, 0.334, 0.001)
    """

    process: GaussianProcess
    num_steps: int | None = 50
    eta: float = 0.0
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)
    noise_after_clipping: bool = added(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")

    def without_effect(self, *, classifier: bool) -> tuple[str, ...]:
        names = super().without_effect(classifier=classifier)
        return (*names, "noise_after_clipping") if isinstance(self.clipping, NoClipping) else names

    @property
    def added_noise(self) -> str | None:
        return f"eta={self.eta}" if self.eta else None

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        variance = self.eta**2 * self.process.posterior_coefficients(s, t)[2]
        # With noise_t = (x_t - alpha_t x_0) / sigma_t, a step has one weight on x_0 and one on x_t. If the first step
        # of a schedule adds no noise, sigma_t is 0 and so is the weight on x_t.
        on_x_t = torch.where(sigma_t > 0, (sigma_s**2 - variance).clamp(min=0).sqrt() / sigma_t, 0.0)
        on_clipped = on_x_t * alpha_t * (not self.noise_after_clipping)
        return t, torch.stack([alpha_s - on_x_t * alpha_t, on_x_t, variance.sqrt(), on_clipped], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        on_x_0, on_x_t, std, on_clipped = coefficients
        estimate = context.estimate.unclipped(x_t, t)
        x_0 = context.estimate.finished(estimate, t).x_0
        x_s = weighted_sum(on_x_0, x_0, on_x_t, x_t)
        if on_clipped:  # noise_t of the estimate before clipping
            x_s = x_s + on_clipped * (context.estimate.clipping(estimate.x_0) - estimate.x_0)
        if std > 0:
            x_s = add_noise(x_s, std, context.noise.draw())
        return x_s, x_0
