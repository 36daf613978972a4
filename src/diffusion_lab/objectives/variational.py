"""The variational bound, term by term in bits per dimension, and the objectives made of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.objectives.denoising import Denoising, Objective
from diffusion_lab.process import GaussianProcess, NoiseSchedule, Prediction, TableSchedule, Variance, split_output

BITS = 1 / math.log(2)


def prior_term(x_0: Tensor, process: GaussianProcess) -> Tensor:
    """L_T = KL(q(x_T | x_0) || p(x_T)), bits per dimension [B] (Ho et al. 2020, eq. 5).

    p is what sampling starts from.
    """
    t = torch.full((len(x_0),), process.schedule.t_max, dtype=torch.float64)
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    log_variance_p = 2 * process.widen(process.schedule.prior_std(t), x_0).log()
    return BITS * gaussian_divergence(alpha_t * x_0, 2 * sigma_t.log(), log_variance_p).mean(dim=(1, 2, 3))


def bound_term(
    x_0: Tensor, estimate: Tensor, x_t: Tensor, log_variance: Tensor, s: Tensor, t: Tensor, process: GaussianProcess
) -> Tensor:
    """One term of the bound, bits per dimension [B] (Ho et al. 2020, eq. 5): L_{t-1} where s is above 0, else L_0.

    x_0, x_t, and the estimate of x_0: [B, C, H, W].  log_variance: of p(x_s | x_t), to multiply images.  s, t: [B].
    """
    on_x_0, on_x_t, _ = (process.widen(weight, x_0) for weight in process.posterior_coefficients(s, t))
    true_log_variance = process.widen(process.posterior_log_variance(s, t), x_0)
    divergence = gaussian_divergence(on_x_0 * (x_0 - estimate), true_log_variance, log_variance)
    decoded = -discretized_log_likelihood(x_0, on_x_0 * estimate + on_x_t * x_t, 0.5 * log_variance)
    return BITS * torch.where(process.widen(s, x_0) > 0, divergence, decoded).mean(dim=(1, 2, 3))


def gaussian_divergence(between_means: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) of two diagonal Gaussians for each pixel, in nats; all broadcast against images."""
    difference = log_variance_q - log_variance_p
    return 0.5 * (torch.expm1(difference) - difference + between_means.square() * (-log_variance_p).exp())


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels x in [-1, 1] under a Gaussian cut at the half levels (Ho et al. 2020, eq. 13)."""
    dtype = mean.dtype
    # float64: the difference of two neighbouring values of Phi keeps 3 digits of its gradient in float32.
    x, mean, log_std = x.double(), mean.double(), log_std.double()
    inverse_std = (-log_std).exp()
    # Held at ten million standard deviations, beyond which the gradient of log Phi is no number.
    upper, lower = (((x - mean + half) * inverse_std).clamp(-1e7, 1e7) for half in (1 / 255, -1 / 255))
    # Over the whole line at the end levels. In logarithms, and from the side where the tail is thin, so that nothing
    # cancels: log(Phi(upper) - Phi(lower)) with both far below 0.
    upper = torch.where(x > 1 - 1 / 255, math.inf, upper)
    lower = torch.where(x < -1 + 1 / 255, -math.inf, lower)
    mirrored = upper + lower > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_likelihood: Tensor = log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-7)))
    return log_likelihood.to(dtype)


@dataclass(frozen=True)
class Variational(Objective):
    """L_vlb: T times the bound's term at t, bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, code).

    Its mean over uniform times is the bound without L_T, which has nothing to learn.
    """

    prediction: Prediction
    variance: Variance

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        prediction, variance_output = split_output(_widened(output), channels=x_0.shape[1])
        return self.of(prediction, variance_output, x_0, x_t, t, process)

    def of(
        self, prediction: Tensor, variance_output: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor,
        process: GaussianProcess,
    ) -> Tensor:  # fmt: skip
        """The loss of a network's two halves."""
        s = process.schedule.previous(t)
        estimate = self.prediction.to_x_0(prediction, x_t, t, process)
        log_variance = self.variance.log_variance(process, s, t, like=x_0, output=variance_output)
        return bound_term(x_0, estimate, x_t, log_variance, s, t, process) / process.schedule.t_min

    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        if not isinstance(schedule, TableSchedule):
            raise ValueError(
                "objective=vlb and hybrid need a schedule of steps (linear, cosine, ...), whose chain they bound, "
                f"got the continuous {type(schedule).__name__}."
            )
        if not self.variance.learned and out_channels != channels:
            raise ValueError(f"model.out_channels must be {channels} for a fixed variance, got {out_channels}.")
        self.variance.require(channels, out_channels)


@dataclass(frozen=True)
class Hybrid(Objective):
    """L_hybrid = L_simple + bound_weight L_vlb, the bound teaching the variance alone (Nichol & Dhariwal 2021, eq. 16).

    simple: what teaches the prediction.  bound: what teaches the variance; no gradient of it reaches the mean.
    """

    simple: Denoising
    bound: Variational
    bound_weight: float = 0.001

    def __post_init__(self) -> None:
        if not self.bound.variance.learned:
            raise ValueError(
                "variance must be learned_range or learned_diagonal for objective=hybrid, "
                f"whose bound would teach a fixed one nothing, got {type(self.bound.variance).__name__}."
            )
        if self.bound_weight < 0:
            raise ValueError(f"bound_weight must be at least 0, got {self.bound_weight}.")

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        prediction, variance_output = split_output(_widened(output), channels=x_0.shape[1])
        simple = self.simple(prediction, x_0, x_t, noise, t, process)
        return simple + self.bound_weight * self.bound.of(prediction.detach(), variance_output, x_0, x_t, t, process)

    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        self.bound.require(schedule, channels, out_channels)


def _widened(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))
