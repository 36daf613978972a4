"""Denoising diffusion implicit models."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, weighted_sum
from diffusion_lab.samplers.base import Noise, OnStep, Sampler, add_noise
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) noise_t + std * fresh noise (Song et al. 2021, eq. 12).

    eta: 0 is deterministic; 1 is ancestral sampling with the small variance (Song et al. 2021, eq. 16).
    """

    process: GaussianProcess
    num_steps: int | None = 50
    eta: float = 0.0
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        variance = self.eta**2 * self.process.posterior_coefficients(s, t)[2]
        # With the noise in x_t written out as (x_t - alpha_t x_0) / sigma_t, a step is one weight on x_0 and one on
        # x_t. Where the first step of a schedule adds no noise, sigma_t is 0 and so is the weight.
        kept = torch.where(sigma_t > 0, (sigma_s**2 - variance).clamp(min=0).sqrt() / sigma_t, 0.0)
        weights = torch.stack([alpha_s - kept * alpha_t, kept, variance.sqrt()], dim=1).tolist()

        x_t = self.start(noise)
        for i, (on_x_0, on_x_t, std) in enumerate(weights):
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            x_t = weighted_sum(on_x_0, x_0, on_x_t, x_t)
            if std > 0:
                x_t = add_noise(x_t, std, noise.draw())
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t

    @torch.no_grad()
    def encode(self, denoiser: DenoiserLike, images: Tensor, condition: Condition) -> Tensor:
        """The noise that `sample` would turn into these images: its steps walked backwards (Song et al. 2021, eq. 13).

        images: [B, C, H, W] in [-1, 1].  Returns noise to start from, [B, C, H, W], about standard normal. More steps
        come closer, since a step back asks the denoiser at its own start. Raises ValueError where eta is above 0.
        """
        if self.eta:
            raise ValueError(
                f"eta must be 0 to encode images (only then is a step a function to invert), got {self.eta}."
            )
        x_s = images
        for t, s in zip(*(times.flip(0) for times in self.steps()), strict=True):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = (
                map(float, self.process.schedule.coefficients(at)) for at in (s, t)
            )
            # Where is the denoiser asked for the noise in x_s? At s; but the image itself, which has none, at t.
            x, at, alpha, sigma = (x_s, s, alpha_s, sigma_s) if s > 0 else (alpha_t * x_s, t, alpha_t, sigma_t)
            x_0 = self.estimate(denoiser, x, at, condition).x_0
            noise = (x - alpha * x_0) / sigma if sigma > 0 else torch.zeros_like(x)
            x_s = alpha_t * (x_s - sigma_s * noise) / alpha_s + sigma_t * noise
        return x_s / float(self.process.schedule.prior_std(torch.tensor(self.times[0], dtype=torch.float64)))
