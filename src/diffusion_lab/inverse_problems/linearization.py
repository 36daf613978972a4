"""The estimate of x_0 and its measurement as functions of x_t, with products of their Jacobians."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lab.denoiser import DenoiserLike, Estimate, require_estimate
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.networks import Condition


@dataclass(frozen=True)
class Linearization:
    """The estimate of x_0 at x_t, linearized in x_t, and the measurement of the estimate, linearized in x_0.

    In pixel space the measurement is linear. In a latent space, the measured images are the decoded estimate, and the
    linearized operator is the product of A and the Jacobian of the decoder.
    x_t: noisy images with a gradient, [B, C, H, W].  differentiable: the estimate as a function of x_t.
    x_0: the estimate of x_0 as the input of the decoder.  images: the decoded estimate, or x_0 in pixel space.
    """

    x_t: Tensor
    differentiable: Estimate
    x_0: Tensor
    images: Tensor
    measurement: Measurement

    @staticmethod
    def at(
        denoiser: DenoiserLike, x_t: Tensor, t: Tensor, condition: Condition, measurement: Measurement
    ) -> "Linearization":
        """Evaluate a denoiser at x_t [B, C, H, W] and t [B].

        Works inside `torch.no_grad` and `torch.inference_mode`. Raises ValueError if the estimate of the denoiser is
        not a differentiable function of x_t.
        """
        with with_gradients():
            x_t = x_t.detach().clone().requires_grad_()
            estimate = require_estimate(denoiser(x_t, t, _copied(condition)), denoiser)
            if not estimate.x_0.requires_grad:
                raise ValueError(
                    "`denoiser` must return an x_0 that is a differentiable function of x_t for a posterior sampler "
                    "that uses its gradient, got an x_0 without gradient."
                )
            x_0 = estimate.x_0.detach().clone().requires_grad_(measurement.decode is not None)
            images = x_0 if measurement.decode is None else _decoded(measurement.decode, x_0)
        return Linearization(x_t, estimate, x_0, images, measurement)

    @property
    def estimate(self) -> Estimate:
        """The estimate of the denoiser, without gradient."""
        estimate = self.differentiable
        variance_output, gradient = (
            None if part is None else part.detach() for part in (estimate.variance_output, estimate.gradient)
        )
        return Estimate(estimate.x_0.detach(), variance_output, gradient, estimate.clip_mean)

    def shifted(self, shift: Tensor) -> Estimate:
        """Return the estimate of the denoiser with x_0 + shift instead of x_0.  shift: [B, C, H, W]."""
        return replace(self.estimate, x_0=self.estimate.x_0 + shift)

    @property
    def residual(self) -> Tensor:
        """Y minus the measurement of the estimate, [B, *measurement_shape]."""
        return self.measurement.residual(self.images.detach())

    def adjoint(self, v: Tensor) -> Tensor:
        """Return the product of the transposed linearized operator with v [B, *measurement_shape]: [B, C, H, W]."""
        images = self.measurement.operator.adjoint(v)
        return images if self.measurement.decode is None else self._grad(self.images, self.x_0, images)

    def forward(self, u: Tensor) -> Tensor:
        """Return the product of the linearized operator with u [B, C, H, W]: [B, *measurement_shape]."""
        if self.measurement.decode is None:
            return self.measurement.operator.forward(u)
        # The gradient of v -> <J^T v, u>, which is linear in v, is J u.
        with with_gradients():
            v = torch.zeros_like(self.images, requires_grad=True)
            pulled = torch.autograd.grad(self.images, self.x_0, v, create_graph=True)[0]
            return self.measurement.operator.forward(self._grad(pulled, v, u))

    def to_x_t(self, u: Tensor) -> Tensor:
        """Return the product of the transposed Jacobian of the estimate with u [B, C, H, W]: [B, C, H, W]."""
        return self._grad(self.differentiable.x_0, self.x_t, u)

    @staticmethod
    def _grad(output: Tensor, argument: Tensor, vector: Tensor) -> Tensor:
        with torch.inference_mode(False):
            gradient: Tensor = torch.autograd.grad(output, argument, vector.detach().clone(), retain_graph=True)[0]
        return gradient


@contextmanager
def with_gradients() -> Iterator[None]:
    """Enable gradients, also inside `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _copied(condition: Condition) -> Condition:
    """Return a condition whose parts can be used in a backward pass, also if they were created in inference mode."""
    parts = (getattr(condition, field.name) for field in fields(condition))
    return Condition(*(part.clone() if part is not None and part.is_inference() else part for part in parts))


def _decoded(decode: Callable[[Tensor], Tensor], x_0: Tensor) -> Tensor:
    """Return decode(x_0), of which second derivatives exist: fused attention kernels have only first derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        return decode(x_0)
