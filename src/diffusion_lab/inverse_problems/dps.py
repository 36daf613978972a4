"""Diffusion posterior sampling."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.inverse_problems.gradient_steps import sample_with_gradients
from diffusion_lab.inverse_problems.linearization import Linearization
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import PosteriorSampler, Steps, require_sampler
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import DDIM, Ancestral, FixedStepSampler, Noise, OnStep, Sampler


@dataclass(frozen=True)
class DPS(PosteriorSampler):
    """A step without the measurement, then x_s - step_size grad |y - A x_0| (Chung et al. 2023, algorithm 1, code).

    x_0 is the estimate at x_t, and the gradient is taken with respect to x_t, for images x_t / sqrt(alpha_t^2 +
    sigma_t^2), which are those of the paper for every schedule. The norm is that of one image; the paper's code uses
    the norm of the batch. The result depends on the number of steps, because the step size does not: the paper's
    1000 steps are five times as strong as 200 steps.
    The method takes the samplers Ancestral, which is the paper's, and DDIM.
    step_size: the paper's zeta', 1 by default in its code, and 0.3 to 1 in its experiments.
    Raises ValueError unless step_size is finite and at least 0.

    >>> from diffusion_lab import DPS, Ancestral, AreaDownsampling, Estimate, ImageNoise, LinearSchedule, Measurement
    >>> def denoiser(x_t, t, condition):  # of images whose pixels are independent with variance 1
    ...     return Estimate(x_t * sampler.process.coefficients(t, like=x_t)[0])
    >>> sampler = Ancestral(LinearSchedule(), num_steps=200)
    >>> measurement = Measurement.of(AreaDownsampling((1, 4, 4)), torch.full((2, 1, 4, 4), 0.2))
    >>> DPS(step_size=0.1).sample(sampler, denoiser, measurement, ImageNoise(2, (1, 4, 4))).shape
    torch.Size([2, 1, 4, 4])
    """

    name: ClassVar[str] = "dps"
    step_size: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise ValueError(f"step_size must be a finite number of at least 0, got {self.step_size}.")

    @property
    def num_gradients(self) -> int:
        return 1

    def require(self, sampler: Sampler, measurement: Measurement) -> None:
        require_sampler(self, sampler, (Ancestral, DDIM))

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
        assert isinstance(sampler, FixedStepSampler)
        return sample_with_gradients(
            sampler, denoiser, measurement, noise, condition, on_step, minus_gradient_of_distance, self._weight
        )

    def _weight(self, steps: Steps, k: int) -> float:
        """Return the weight of the gradient with respect to x_t in x_s."""
        return self.step_size * steps.scales[k] * steps.scales[k + 1]


def minus_gradient_of_distance(at_x_t: Linearization, t: Tensor) -> Tensor:
    """Return -grad |y - A x_0| of each image with respect to x_t, [B, C, H, W]; 0 if the distance is 0."""
    residual = at_x_t.residual
    distance = torch.linalg.vector_norm(residual.flatten(1), dim=1).view(-1, *[1] * (residual.ndim - 1))
    direction = torch.where(distance > 0, residual / torch.where(distance > 0, distance, 1.0), 0.0)
    return at_x_t.to_x_t(at_x_t.adjoint(direction))
