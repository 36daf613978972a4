"""Estimator of x_0 for samplers: a denoiser with a fixed condition, clipping and the gradient of a classifier."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate, require_estimate
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.clipping import Clipping


@dataclass(frozen=True)
class Estimator:
    """A denoiser whose estimates of x_0 are clipped, and shifted by the gradient of a classifier if there is one."""

    denoiser: DenoiserLike
    condition: Condition
    process: GaussianProcess
    clipping: Clipping

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Return the estimate at t, after the shift.  x_t: [B, C, H, W].  t: [] or [B]."""
        return self.finished(self.unclipped(x_t, t), t)

    def select(self, rows: Tensor) -> "Estimator":
        """Return the estimator for a part of the batch.  rows: indices of the images, int64 [b].

        A denoiser with data of each image, such as measurements, has a method `select` with the same argument.
        """
        select = getattr(self.denoiser, "select", None)
        denoiser = self.denoiser if select is None else select(rows)
        return replace(self, denoiser=denoiser, condition=self.condition.select(rows))

    def finished(self, estimate: Estimate, t: Tensor) -> Estimate:
        """Return an estimate of `unclipped` after clipping and after the shift.  t: [] or [B]."""
        estimate = replace(estimate, x_0=self.clipping(estimate.x_0))
        if estimate.gradient is None:
            return estimate
        x_0 = self._shift(estimate.x_0, estimate.gradient, t.expand(len(estimate.x_0)))
        return Estimate(x_0, estimate.variance_output)

    def unclipped(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Return the estimate with x_0 neither clipped nor shifted, for samplers that do both themselves."""
        # Expanding copies nothing: the denoiser recognizes by the stride that all images have the same time.
        return require_estimate(self.denoiser(x_t, t.expand(len(x_t)), self.condition), self.denoiser)

    def _shift(self, x_0: Tensor, gradient: Tensor, t: Tensor) -> Tensor:
        """Return x_0 with noise replaced by noise - sigma_t gradient (Dhariwal & Nichol 2021, algorithm 2).

        t: [B].  x_0 is unchanged at times without signal (alpha_t = 0), at which x_0 does not depend on the noise.
        """
        alpha_t, sigma_t = self.process.unbounded.schedule.coefficients(t)
        scale = torch.where(alpha_t > 0, sigma_t**2 / alpha_t, 0.0)
        shifted = x_0 + self.process.widen(scale, x_0) * gradient
        # The paper's code does not clip again. If little signal is left, the shift is many times larger than the range
        # of images, and a single DDIM step applies it completely.
        return self.clipping(shifted) if self.clipping.after_guidance else shifted
