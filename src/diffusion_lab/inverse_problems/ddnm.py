"""Denoising diffusion null-space models."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate, require_estimate
from diffusion_lab.errors import UserError
from diffusion_lab.inverse_problems.measured_spectrum import MeasuredSpectrum
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import ConditionalPosterior, Steps, require_sampler, require_spectral
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers import DDIM, Ancestral, Noise, OnStep, Sampler


@dataclass(frozen=True)
class DDNM(ConditionalPosterior):
    """x_0 + A^+ (y - A x_0): the estimate with its measured part replaced by that of y (Wang et al. 2023, algorithm 1).

    Without measurement noise, the method takes every sampler. With noise (DDNM+, section 3.3 and appendix I), a step
    x_s = a x_0 + b x_t + std * noise has, for each coefficient with the singular value S, a correction of x_0 that is
    scaled by min(1, std S / (a noise_std)), and noise that is reduced by the noise in the correction. It takes DDIM
    with eta above 0, and Ancestral with a fixed variance. The noise of y is the same in all steps, so that samples of
    many short steps follow it; the paper's code has the steps of `DDRM` in this case. Time travel, the paper's jumps,
    is not part of this method. The operator has known singular values.

    >>> from diffusion_lab import DDIM, DDNM, AreaDownsampling, Estimate, ImageNoise, Measurement, VPSchedule
    >>> measurement = Measurement.of(AreaDownsampling((1, 4, 4)), torch.full((2, 1, 4, 4), 0.2))
    >>> def gray(x_t, t, condition):
    ...     return Estimate(x_0=torch.zeros_like(x_t))
    >>> images = DDNM().sample(DDIM(VPSchedule(), num_steps=10), gray, measurement, ImageNoise(2, (1, 4, 4)))
    >>> images.mean(dim=(1, 2, 3))
    tensor([0.2000, 0.2000])
    """

    name: ClassVar[str] = "ddnm"

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        require_spectral(self, measurement)
        if measurement.noise_std == 0:
            return
        require_sampler(self, sampler, (DDIM, Ancestral), "with measurement noise")
        if isinstance(sampler, DDIM) and sampler.eta == 0:
            raise UserError(
                "`sampler.eta` must be above 0 for posterior=ddnm with measurement noise, whose steps adjust the noise "
                "of the sampler, got 0."
            )
        if isinstance(sampler, Ancestral) and sampler.variance.learned:
            raise UserError(
                "`sampler.variance` must be fixed for posterior=ddnm with measurement noise, got "
                f"{type(sampler.variance).__name__}."
            )

    def estimate(
        self,
        denoiser: DenoiserLike,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        measurement: Measurement,
        process: GaussianProcess,
    ) -> Estimate:
        estimate = require_estimate(denoiser(x_t, t, condition), denoiser)
        correction = measurement.operator.pseudo_inverse(measurement.residual(estimate.x_0))
        return replace(estimate, x_0=estimate.x_0 + correction)

    def sample(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if measurement.noise_std == 0:
            return super().sample(sampler, denoiser, measurement, noise, condition, on_step)
        self.require(sampler, measurement)
        assert isinstance(sampler, DDIM | Ancestral)
        return self._sample_with_noise(sampler, denoiser, measurement, noise, condition, on_step)

    @torch.no_grad()
    def _sample_with_noise(
        self,
        sampler: DDIM | Ancestral,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None,
        on_step: OnStep | None,
    ) -> Tensor:
        steps = Steps(sampler, denoiser, noise, condition)
        x_t = steps.start()
        measured = MeasuredSpectrum.of(measurement, require_spectral(self, measurement), like=x_t)
        for k, (on_x_0, on_x_t, std) in enumerate(_reverse_coefficients(sampler)):
            x_0 = steps.estimate(x_t, k)
            fresh = steps.noise.draw() if std > 0 else torch.zeros_like(x_t)
            x_t = on_x_t * x_t + _noisy_mean(on_x_0, std, x_0, fresh, measured)
            if on_step is not None:
                on_step(k + 1, x_t, x_0)
        return x_t


def _noisy_mean(on_x_0: float, std: float, x_0: Tensor, fresh: Tensor, measured: MeasuredSpectrum) -> Tensor:
    """Return on_x_0 * (corrected x_0) + noise, whose noise and that of the correction have the variance std^2 at least.

    x_0: the estimate, [B, C, H, W].  fresh: standard normal noise, [B, C, H, W].
    """
    operator, added_std = measured.operator, on_x_0 * measured.std
    x_0 = operator.to_spectrum(x_0)
    scale = torch.where(added_std > std, std / torch.where(added_std > std, added_std, 1.0), 1.0)
    corrected = x_0 + torch.where(measured.is_measured, scale * (measured.mean - x_0), 0.0)
    remaining = (std**2 - (scale * added_std) ** 2).clamp(min=0).sqrt()
    return operator.from_spectrum(on_x_0 * corrected + remaining * operator.to_spectrum(fresh))


def _reverse_coefficients(sampler: DDIM | Ancestral) -> list[list[float]]:
    """Return the weights of x_0 and x_t and the standard deviation of the noise in each step of a sampler."""
    t, s = sampler.intervals()
    table = sampler.prepare_steps(t, s)[1]
    coefficients = table[:, :3] if isinstance(sampler, DDIM) else table[:, 1:4]
    coefficients[:, 2] = torch.where(s > 0, coefficients[:, 2], 0.0)
    return coefficients.tolist()
