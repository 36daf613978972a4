"""The Gaussian forward process and its reversal given the clean image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule

SMALLEST = 1e-30
"""Variances below it have no finite logarithm in float32's range of exponents."""


@dataclass(frozen=True)
class GaussianProcess:
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2) and all that follows from it, for any schedule."""

    schedule: NoiseSchedule

    @property
    def continuous(self) -> "GaussianProcess":
        """The process at every time between those of its schedule."""
        return GaussianProcess(self.schedule.continuous)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, ready to multiply images `like` [B, C, H, W]: [B, 1, 1, 1].  t: [B]."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return self.widen(alpha_t, like), self.widen(sigma_t, like)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noisy image x_t = alpha_t x_0 + sigma_t noise (Ho et al. 2020, eq. 4; Kingma et al. 2021, eq. 1).

        x_0, noise: [B, C, H, W].  t: [B].  Returns x_t: [B, C, H, W].
        Raises ValueError unless t holds one time per image and noise is shaped as x_0.
        """
        if noise.shape != x_0.shape:
            raise ValueError(f"noise must be shaped as x_0, {list(x_0.shape)}, got {list(noise.shape)}.")
        alpha_t, sigma_t = self.coefficients(t, like=x_0)
        return alpha_t * x_0 + sigma_t * noise

    def q_step(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One noising step, x_t from x_s for s < t: q(x_t | x_s) (Ho et al. 2020, eq. 2; Kingma et al. 2021, eq. 20).

        x_s, noise: [B, C, H, W].  s, t: [B].  Returns x_t: [B, C, H, W].
        """
        scale, variance = self.transition(s, t)
        return self.widen(scale, x_s) * x_s + self.widen(variance.sqrt(), x_s) * noise

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and variance of q(x_t | x_s), in float64, shaped as t (Kingma et al. 2021, eq. 20 and 21).

        For neighbouring steps of a table they are sqrt(1 - beta) and beta (Ho et al. 2020, eq. 2).
        """
        alpha_s, sigma_s = self.schedule.coefficients(s)
        alpha_t, sigma_t = self.schedule.coefficients(t)
        scale = alpha_t / alpha_s
        return scale, (sigma_t**2 - scale**2 * sigma_s**2).clamp(min=0)

    def q_posterior(self, x_0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, C, H, W] and variance [B, 1, 1, 1] of q(x_s | x_t, x_0), s < t (Ho et al. 2020, eq. 6 and 7)."""
        on_x_0, on_x_t, variance = self.posterior_coefficients(s, t)
        mean = self.widen(on_x_0, x_0) * x_0 + self.widen(on_x_t, x_t) * x_t
        return mean, self.widen(variance, x_0)

    def posterior_coefficients(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of x_0 and x_t in the posterior mean, and its variance, in float64, shaped as t.

        Ho et al. (2020), eq. 7, for any two times s < t as in Kingma et al. (2021), appendix A.2.
        """
        alpha_s, sigma_s = self.schedule.coefficients(s)
        _, sigma_t = self.schedule.coefficients(t)
        scale, variance = self.transition(s, t)
        # A first step may add no noise at all (beta = 0): x_t is x_0 then, and 0 / 0 has to read "all weight on x_0".
        noisy = sigma_t > 0
        on_x_0 = torch.where(noisy, alpha_s * variance / sigma_t**2, alpha_s)
        on_x_t = torch.where(noisy, scale * sigma_s**2 / sigma_t**2, 0.0)
        return on_x_0, on_x_t, torch.where(noisy, variance * sigma_s**2 / sigma_t**2, 0.0)

    def transition_log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the variance of q(x_t | x_s), float64, shaped as t: log beta for neighbouring steps."""
        return self.transition(s, t)[1].clamp(min=SMALLEST).log()

    def posterior_log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the posterior's variance, float64, shaped as t; where s is 0, that of the step after.

        The variance itself is 0 there, and its logarithm is needed: the rule is that of Ho et al. (2020), code.
        """
        first = s == 0
        after = torch.where(first, self.schedule.following(t), t)
        variance = self.posterior_coefficients(torch.where(first, t, s), after)[2]
        alone = first & (after == t)  # no step follows
        return torch.where(alone, self.transition(s, t)[1], variance).clamp(min=SMALLEST).log()

    def validate_times(self, times: Sequence[float]) -> None:
        """Raises ValueError unless times fall strictly, are above 0, and belong to the schedule."""
        if not times or any(s >= t for t, s in pairwise(times)) or times[-1] <= 0:
            raise ValueError(f"times must be a strictly decreasing list of numbers above 0, got {list(times)}.")
        self.schedule.coefficients(torch.tensor(times, dtype=torch.float64))

    @staticmethod
    def widen(value: Tensor, like: Tensor) -> Tensor:
        """One number for each image, ready to multiply images: [B] -> [B, 1, 1, 1], as `like` in device and dtype.

        Raises ValueError for any other shape.
        """
        # The one place where this is done: left to broadcasting, B would pair with the width when they are equal.
        if value.shape != like.shape[:1]:
            raise ValueError(f"t must hold one time per image, [{like.shape[0]}], got {list(value.shape)}.")
        # CUDA is not waited for: a step that waits each time it moves a number leaves the device idle. Others must be:
        # on Apple's, a number that is freed before it has arrived arrives as another.
        return value.to(like.device, like.dtype, non_blocking=like.is_cuda).view(-1, *[1] * (like.ndim - 1))


def weighted_sum(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """A x + b y, in two passes over memory instead of three.  x, y: [B, C, H, W]."""
    return torch.mul(x, a).add_(y, alpha=b)
