"""Moment matching posterior sampling."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.inverse_problems.conjugate_gradients import conjugate_gradients
from diffusion_lab.inverse_problems.linearization import Linearization
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import ConditionalPosterior
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, widen


@dataclass(frozen=True)
class MMPS(ConditionalPosterior):
    """x_0 + V A^T (A V A^T + noise_std^2 I)^-1 (y - A x_0) with the covariance V of x_0 given x_t (Rozet et al. 2024).

    x_0 is the estimate at x_t, and V = (sigma_t^2 / alpha_t) times its Jacobian (ibid., eq. 12 and 19), of which only
    products are computed. The estimate is exact for Gaussian data. At times without signal (alpha_t = 0), x_0 is
    unchanged. The method takes every sampler.
    num_iterations: number of conjugate gradient iterations per evaluation, with one backward pass each.
    Raises ValueError unless num_iterations is at least 1.

    >>> from diffusion_lab import DDIM, MMPS, AreaDownsampling, Estimate, ImageNoise, Measurement, NoClipping
    >>> from diffusion_lab import VPSchedule
    >>> def denoiser(x_t, t, condition):  # of images whose pixels are independent with variance 1
    ...     return Estimate(x_t * sampler.process.coefficients(t, like=x_t)[0])
    >>> sampler = DDIM(VPSchedule(), num_steps=10, clipping=NoClipping())
    >>> measurement = Measurement.of(AreaDownsampling((1, 4, 4)), torch.full((2, 1, 4, 4), 0.2))
    >>> MMPS().sample(sampler, denoiser, measurement, ImageNoise(2, (1, 4, 4))).mean(dim=(1, 2, 3))
    tensor([0.2000, 0.2000])
    """

    name: ClassVar[str] = "mmps"
    num_iterations: int = 5

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {self.num_iterations}.")

    @property
    def num_gradients(self) -> int:
        return self.num_iterations + 1  # and the product with the solution

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
        scale = widen(torch.where(alpha_t > 0, sigma_t**2 / alpha_t, 0.0), x_t)

        def covariance(u: Tensor) -> Tensor:
            return scale * at_x_t.to_x_t(u)

        solution = conjugate_gradients(
            lambda v: at_x_t.forward(covariance(at_x_t.adjoint(v))) + measurement.noise_std**2 * v,
            at_x_t.residual,
            self.num_iterations,
        )
        return at_x_t.shifted(covariance(at_x_t.adjoint(solution)))
