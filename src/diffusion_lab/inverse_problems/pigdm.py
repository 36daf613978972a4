"""Pseudoinverse-guided diffusion models."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.inverse_problems.conjugate_gradients import conjugate_gradients
from diffusion_lab.inverse_problems.gradient_steps import sample_with_gradients
from diffusion_lab.inverse_problems.linearization import Linearization
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.operators import SpectralOperator
from diffusion_lab.inverse_problems.posterior import ConditionalPosterior, Steps, require_sampler
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, widen
from diffusion_lab.samplers import DDIM, Noise, OnStep, Sampler

STEP_WEIGHTS = ("exact", "paper")


@dataclass(frozen=True)
class PiGDM(ConditionalPosterior):
    """x_0 + (sigma_t^2 / alpha_t) grad log N(y; A x_0, r_t^2 A A^T + noise_std^2 I) (Song et al. 2023, eq. 5 to 7).

    x_0 is the estimate at x_t, the gradient is taken with respect to x_t, and r_t^2 = sigma_t^2 / (alpha_t^2 +
    sigma_t^2) is the variance of x_0 given x_t for N(0, I) data, for which the estimate is exact. At times without
    signal (alpha_t = 0), x_0 is unchanged. The method takes every sampler. Natural images have directions with a
    variance far above 1. There the estimate overshoots at high noise levels, so that samplers must clip x_0.
    step_weights: "exact" for this estimate; "paper" for a step of DDIM without the measurement, then x_s + alpha_t
        r_t^2 grad log N (ibid., algorithm 1), which takes DDIM only. The weight of the gradient in a step does not
        depend on the length of the step, so that it is too large by a factor that grows with the number of steps.
    num_iterations: number of conjugate gradient iterations for an operator without known singular values, and in latent
        spaces.
    Raises ValueError for other step_weights, and unless num_iterations is at least 1.

    >>> from diffusion_lab import DDIM, AreaDownsampling, Estimate, ImageNoise, Measurement, NoClipping, PiGDM
    >>> from diffusion_lab import VPSchedule
    >>> def denoiser(x_t, t, condition):  # of images whose pixels are independent with variance 1
    ...     return Estimate(x_t * sampler.process.coefficients(t, like=x_t)[0])
    >>> sampler = DDIM(VPSchedule(), num_steps=10, clipping=NoClipping())
    >>> measurement = Measurement.of(AreaDownsampling((1, 4, 4)), torch.full((2, 1, 4, 4), 0.2))
    >>> PiGDM().sample(sampler, denoiser, measurement, ImageNoise(2, (1, 4, 4))).mean(dim=(1, 2, 3))
    tensor([0.2000, 0.2000])
    """

    name: ClassVar[str] = "pigdm"
    step_weights: str = "exact"
    num_iterations: int = 20

    def __post_init__(self) -> None:
        if self.step_weights not in STEP_WEIGHTS:
            raise ValueError(f"step_weights must be {' or '.join(STEP_WEIGHTS)}, got {self.step_weights}.")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {self.num_iterations}.")

    @property
    def num_gradients(self) -> int:
        return 1

    def estimate(
        self,
        denoiser: DenoiserLike,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        measurement: Measurement,
        process: GaussianProcess,
    ) -> Estimate:
        alpha_t, sigma_t = process.unbounded.schedule.coefficients(t)
        at_x_t = Linearization.at(denoiser, x_t, t, condition, measurement)
        gradient = self._scaled_gradient(at_x_t, t, process)
        # sigma_t^2 / alpha_t, divided by r_t^2, which is a factor of the correction: both are 0 at times without noise.
        weight = torch.where(alpha_t > 0, (alpha_t**2 + sigma_t**2) / alpha_t, 0.0)
        return at_x_t.shifted(widen(weight, x_t) * gradient)

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        if self.step_weights == "paper":
            require_sampler(self, sampler, (DDIM,), "with step_weights=paper")

    def sample(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        measurement: Measurement,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if self.step_weights == "exact":
            return super().sample(sampler, denoiser, measurement, noise, condition, on_step)
        self.require(sampler, measurement)
        assert isinstance(sampler, DDIM)

        def gradient(at_x_t: Linearization, t: Tensor) -> Tensor:
            return self._scaled_gradient(at_x_t, t, sampler.process)

        return sample_with_gradients(sampler, denoiser, measurement, noise, condition, on_step, gradient, paper_weight)

    def _scaled_gradient(self, at_x_t: Linearization, t: Tensor, process: GaussianProcess) -> Tensor:
        """Return r_t^2 grad log N(y; A x_0, r_t^2 A A^T + noise_std^2 I) with respect to x_t, [B, C, H, W].  t: [B]."""
        alpha_t, sigma_t = process.unbounded.schedule.coefficients(t)
        r_squared = sigma_t**2 / (alpha_t**2 + sigma_t**2)
        return at_x_t.to_x_t(self._correction(at_x_t, widen(r_squared, at_x_t.x_t)))

    def _correction(self, at_x_t: Linearization, r_squared: Tensor) -> Tensor:
        """Return r^2 A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x_0), [B, C, H, W].  r_squared: [B, 1, 1, 1]."""
        measurement = at_x_t.measurement
        operator, variance = measurement.operator, measurement.noise_std**2
        if measurement.decode is None and isinstance(operator, SpectralOperator):
            return spectral_correction(operator, at_x_t.residual, r_squared, variance)
        r_wide = r_squared.view(-1, *[1] * (at_x_t.residual.ndim - 1))
        solution = conjugate_gradients(
            lambda v: r_wide * at_x_t.forward(at_x_t.adjoint(v)) + variance * v,
            r_wide * at_x_t.residual,
            self.num_iterations,
        )
        return at_x_t.adjoint(solution)


def spectral_correction(operator: SpectralOperator, residual: Tensor, r_squared: Tensor, variance: float) -> Tensor:
    """Return r^2 A^T (r^2 A A^T + variance I)^-1 residual, which is A^+ residual without noise, [B, C, H, W].

    residual: [B, *measurement_shape].  r_squared: [B, 1, 1, 1].
    """
    if variance == 0:
        return operator.pseudo_inverse(residual)
    values = operator.singular_values_like(residual)
    gain = r_squared * values / (r_squared * values**2 + variance)
    return operator.from_spectrum(gain * operator.measurement_to_spectrum(residual))


def paper_weight(steps: Steps, k: int) -> float:
    """Return the weight of r_t^2 grad log N in x_s, which is alpha_t for images x_t / sqrt(alpha_t^2 + sigma_t^2)."""
    return steps.alphas[k] * steps.scales[k + 1]
