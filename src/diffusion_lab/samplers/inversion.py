"""Inversion: deterministic samplers that run from images to noise."""

from abc import abstractmethod

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.samplers.base import FixedStepSampler, Sampler


class InvertibleSampler(FixedStepSampler):
    """A sampler of the probability flow whose steps can be inverted, unless its settings add noise in the steps."""

    @property
    @abstractmethod
    def added_noise(self) -> str | None:
        """The setting that adds noise in the steps, such as "eta=0.5"; None if the steps add no noise."""

    def has_correction(self, alpha_t: float, sigma_t: float, sigma_s: float) -> bool:
        """Return whether a step between t and s < t uses the mean of the slopes at both ends (Heun's method)."""
        return False

    @torch.no_grad()
    def encode(self, denoiser: DenoiserLike, images: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        """Invert the steps of `sample`: return the noise that generates these images (Song et al. 2021, eq. 13).

        images: [B, C, H, W] in [-1, 1].  Returns initial noise [B, C, H, W], approximately standard normal.
        The inversion is approximate, because an inverted step from s to t evaluates the denoiser at s instead of t. The
        error falls with the number of steps, and faster for samplers of a higher order.
        Raises ValueError if the steps add noise.
        """
        if self.added_noise:
            name, value = self.added_noise.split("=")
            raise ValueError(f"{name} must be 0 to encode images (random steps have no inverse), got {value}.")
        estimate = self.estimator(denoiser, condition)

        def noise_at(x_t: Tensor, t: Tensor, alpha_t: float, sigma_t: float) -> Tensor:
            x_0 = estimate(x_t, t).x_0
            return (x_t - alpha_t * x_0) / sigma_t if sigma_t > 0 else torch.zeros_like(x_t)

        x_s = images
        for t, s in zip(*(times.flip(0) for times in self.intervals()), strict=True):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = (
                map(float, self.process.schedule.coefficients(time)) for time in (s, t)
            )
            # The noise is estimated at s. If s = 0, the clean image contains no noise, and the noise is estimated at t.
            noise = noise_at(x_s, s, alpha_s, sigma_s) if s > 0 else noise_at(alpha_t * x_s, t, alpha_t, sigma_t)
            x_t = alpha_t * (x_s - sigma_s * noise) / alpha_s + sigma_t * noise
            if self.has_correction(alpha_t, sigma_t, sigma_s):
                noise = (noise + noise_at(x_t, t, alpha_t, sigma_t)) / 2
                x_t = alpha_t * (x_s - sigma_s * noise) / alpha_s + sigma_t * noise
            x_s = x_t
        return x_s / self.initial_std


def obstacle_to_inversion(sampler: Sampler) -> str | None:
    """Return the setting, or the name of the sampler, that prevents inversion; None if the sampler can be inverted."""
    if not isinstance(sampler, InvertibleSampler):
        return type(sampler).__name__
    return sampler.added_noise and f"sampler.{sampler.added_noise}"
