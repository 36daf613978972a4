"""Denoising diffusion implicit models."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, weighted_sum
from diffusion_lab.samplers.base import FixedStepSampler, StepContext, add_noise
from diffusion_lab.samplers.clipping import Clipping, NoClipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DDIM(FixedStepSampler):
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

    @torch.no_grad()
    def encode(self, denoiser: DenoiserLike, images: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """Invert the steps of `sample`: return the noise that generates these images (Song et al. 2021, eq. 13).

        images: [B, C, H, W] in [-1, 1].  Returns initial noise [B, C, H, W], approximately standard normal.
        The inversion is approximate, because an inverted step from s to t evaluates the denoiser at s instead of t. The
        error falls with the number of steps.
        Raises ValueError if eta is above 0.
        """
        if self.eta:
            raise ValueError(f"eta must be 0 to encode images (random steps have no inverse), got {self.eta}.")
        estimate = self.estimator(denoiser, condition)
        x_s = images
        for t, s in zip(*(times.flip(0) for times in self.intervals()), strict=True):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = (
                map(float, self.process.schedule.coefficients(time)) for time in (s, t)
            )
            # The noise is estimated at s. If s = 0, the clean image contains no noise, and the noise is estimated at t.
            x, time, alpha, sigma = (x_s, s, alpha_s, sigma_s) if s > 0 else (alpha_t * x_s, t, alpha_t, sigma_t)
            x_0 = estimate(x, time).x_0
            noise = (x - alpha * x_0) / sigma if sigma > 0 else torch.zeros_like(x)
            x_s = alpha_t * (x_s - sigma_s * noise) / alpha_s + sigma_t * noise
        return x_s / self.initial_std
