"""Denoising diffusion restoration models."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measured_spectrum import MeasuredSpectrum
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import PosteriorSampler, Steps, require_sampler, require_spectral
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import DDIM, Noise, OnStep, Sampler


@dataclass(frozen=True)
class DDRM(PosteriorSampler):
    """Steps in the spectrum V^T x of an operator A = U S V^T, another one for each kind of coefficient (Kawar 2022).

    With x_0 the estimate at x_t, y' = U^T y / S and its noise n = noise_std / S, x_s is (Kawar et al. 2022, eq. 8)
    - without measurement: alpha_s x_0 + sigma_s (sqrt(1 - eta^2) noise_t + eta * fresh noise);
    - if y' has more noise than x_s (sigma_s < alpha_s n): noise_t is replaced by (y' - x_0) / n;
    - if y' has less noise: alpha_s (eta_b y' + (1 - eta_b) x_0), and fresh noise up to a total variance of sigma_s^2.
    The method takes DDIM with eta=0, of which it uses the times and the clipping, and every operator with known
    singular values.
    eta: fraction of fresh noise in the first two kinds, 0.85 in the paper.
    eta_b: weight of the measurement in the last kind, 1 in the paper.
    Raises ValueError unless both are in [0, 1].

    >>> from diffusion_lab import DDIM, DDRM, AreaDownsampling, Estimate, ImageNoise, Measurement, VPSchedule
    >>> measurement = Measurement.of(AreaDownsampling((1, 4, 4)), torch.full((2, 1, 4, 4), 0.2))
    >>> def gray(x_t, t, condition):
    ...     return Estimate(x_0=torch.zeros_like(x_t))
    >>> images = DDRM().sample(DDIM(VPSchedule(), num_steps=10), gray, measurement, ImageNoise(2, (1, 4, 4)))
    >>> images.mean(dim=(1, 2, 3))
    tensor([0.2000, 0.2000])
    """

    name: ClassVar[str] = "ddrm"
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("eta", self.eta), ("eta_b", self.eta_b)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        require_sampler(self, sampler, (DDIM,))
        assert isinstance(sampler, DDIM)
        if sampler.eta != 0:
            raise UserError(
                f"`sampler.eta` must be 0 for posterior=ddrm, whose fraction of fresh noise is `posterior.eta`, got "
                f"{sampler.eta}."
            )
        require_spectral(self, measurement)

    @torch.no_grad()
    def sample(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        self.require(sampler, measurement)
        assert isinstance(sampler, DDIM)
        steps = Steps(sampler, denoiser, noise, condition)
        x_t = steps.start()
        measured = MeasuredSpectrum.of(measurement, require_spectral(self, measurement), like=x_t)
        x_t = measured.insert(x_t, x_t / sampler.initial_std, steps.alphas[0], steps.sigmas[0])
        for k in range(len(steps)):
            x_0 = steps.estimate(x_t, k)
            fresh = steps.noise.draw() if steps.sigmas[k + 1] > 0 else torch.zeros_like(x_t)
            x_t = self._step(x_t, x_0, fresh, steps, k, measured)
            if on_step is not None:
                on_step(k + 1, x_t, x_0)
        return x_t

    def _step(
        self, x_t: Tensor, x_0: Tensor, fresh: Tensor, steps: Steps, k: int, measured: MeasuredSpectrum
    ) -> Tensor:
        """Return state k + 1, [B, C, H, W].  x_t, x_0, fresh: state k, its estimate, and standard normal noise."""
        operator = measured.operator
        alpha_s, sigma_s = steps.alphas[k + 1], steps.sigmas[k + 1]
        x_0, fresh = operator.to_spectrum(x_0), operator.to_spectrum(fresh)
        noise_t = operator.to_spectrum(x_t) - steps.alphas[k] * x_0
        noise_t = noise_t / steps.sigmas[k] if steps.sigmas[k] > 0 else torch.zeros_like(noise_t)
        noisier = measured.is_measured & (sigma_s < alpha_s * measured.std)
        towards_y = (measured.mean - x_0) / torch.where(noisier, measured.std, 1.0)
        eta_rest = (1 - self.eta**2) ** 0.5
        x_s = alpha_s * x_0 + sigma_s * (eta_rest * torch.where(noisier, towards_y, noise_t) + self.eta * fresh)
        std = (sigma_s**2 - (alpha_s * self.eta_b * measured.std) ** 2).clamp(min=0).sqrt()
        by_y = alpha_s * (self.eta_b * measured.mean + (1 - self.eta_b) * x_0) + std * fresh
        return operator.from_spectrum(torch.where(measured.is_measured & ~noisier, by_y, x_s))
