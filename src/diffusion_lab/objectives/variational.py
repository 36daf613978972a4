"""The terms of the variational bound in bits per dimension, and the objectives that contain them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.fingerprints import describe
from diffusion_lab.objectives.denoising import Denoising, Objective
from diffusion_lab.process import GaussianProcess, NoiseSchedule, Prediction, TableSchedule, Variance, split_output

BITS_PER_NAT = 1 / math.log(2)


def prior_term(x_0: Tensor, process: GaussianProcess) -> Tensor:
    """Return L_T = KL(q(x_T | x_0) || p(x_T)) in bits per dimension: [B] (Ho et al. 2020, eq. 5).

    p(x_T) is the distribution from which sampling starts.  x_0: [B, C, H, W] in [-1, 1].
    """
    t = torch.full((len(x_0),), process.schedule.t_max, dtype=torch.float64)
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    log_variance_p = 2 * process.widen(process.schedule.prior_std(t), x_0).log()
    return BITS_PER_NAT * gaussian_divergence(alpha_t * x_0, 2 * sigma_t.log(), log_variance_p).mean(dim=(1, 2, 3))


def bound_term(
    x_0: Tensor, estimate: Tensor, x_t: Tensor, log_variance: Tensor, s: Tensor, t: Tensor, process: GaussianProcess
) -> Tensor:
    """Return L_0 if s = 0 and L_{t-1} if s > 0, in bits per dimension: [B] (Ho et al. 2020, eq. 5).

    x_0, x_t: [B, C, H, W].  estimate: estimate of x_0, [B, C, H, W].  s, t: [B].
    log_variance: log-variance of p(x_s | x_t), [B, 1, 1, 1] or [B, C, H, W].
    """
    on_x_0, on_x_t, _ = (process.widen(weight, x_0) for weight in process.posterior_coefficients(s, t))
    true_log_variance = process.widen(process.posterior_log_variance(s, t), x_0)
    divergence = gaussian_divergence(on_x_0 * (x_0 - estimate), true_log_variance, log_variance)
    decoded = -discretized_log_likelihood(x_0, on_x_0 * estimate + on_x_t * x_t, 0.5 * log_variance)
    return BITS_PER_NAT * torch.where(process.widen(s, x_0) > 0, divergence, decoded).mean(dim=(1, 2, 3))


def gaussian_divergence(between_means: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """Return KL(q || p) of two diagonal Gaussians per pixel, in nats.

    between_means: difference between the means of q and p.  log_variance_q, log_variance_p: log-variances of q and p.
    The arguments may have different shapes, which are broadcast.
    """
    difference = log_variance_q - log_variance_p
    return 0.5 * (torch.expm1(difference) - difference + between_means.square() * (-log_variance_p).exp())


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability of 8-bit pixels x in [-1, 1] under a discretized Gaussian (Ho et al. 2020, eq. 13).

    The arguments may have different shapes, which are broadcast. Returns one value per pixel and channel, in nats,
    with the dtype of mean.
    """
    dtype = mean.dtype
    # float64: in float32 the gradient of the difference of two nearly equal values of Phi keeps 3 digits only.
    x, mean, log_std = x.double(), mean.double(), log_std.double()
    inverse_std = (-log_std).exp()
    # Clipped at 10 million standard deviations, because the gradient of log Phi is NaN for larger values.
    upper, lower = (((x - mean + half) * inverse_std).clamp(-1e7, 1e7) for half in (1 / 255, -1 / 255))
    # The intervals of the first and the last level extend to infinity. log(Phi(upper) - Phi(lower)) is computed from
    # log Phi. Intervals above the mean are mirrored to the lower tail, where the difference loses no digits.
    upper = torch.where(x > 1 - 1 / 255, math.inf, upper)
    lower = torch.where(x < -1 + 1 / 255, -math.inf, lower)
    mirrored = upper + lower > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_likelihood: Tensor = log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-7)))
    return log_likelihood.to(dtype)


@dataclass(frozen=True)
class Variational(Objective):
    """L_vlb: T times one term of the bound, bits per dimension (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, code).

    The mean over uniform times is the bound without L_T, which has no parameters. The schedule must be discrete.
    prediction: quantity that the network predicts.  variance: variance of the reverse step, fixed or learned.

    >>> from diffusion_lab import X0, FixedSmall, GaussianProcess, LinearSchedule, Variational
    >>> x_0, noise, t = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.tensor([0.1, 1.0])
    >>> process, output = GaussianProcess(LinearSchedule()), x_0  # the exact estimate
    >>> Variational(X0(), FixedSmall())(output, x_0, process.q_sample(x_0, t, noise), noise, t, process)
    tensor([0., 0.])
    """

    prediction: Prediction
    variance: Variance

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        prediction, variance_output = split_output(_at_least_float32(output), channels=x_0.shape[1])
        return self.loss(prediction, variance_output, x_0, x_t, t, process)

    def loss(
        self, prediction: Tensor, variance_output: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor,
        process: GaussianProcess,
    ) -> Tensor:  # fmt: skip
        """Return the loss [B] for the two halves of the network output."""
        s = process.schedule.previous(t)
        estimate = self.prediction.to_x_0(prediction, x_t, t, process)
        log_variance = self.variance.log_variance(process, s, t, like=x_0, output=variance_output)
        return bound_term(x_0, estimate, x_t, log_variance, s, t, process) / process.schedule.t_min

    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        if not isinstance(schedule, TableSchedule):
            raise ValueError(
                "`schedule` must have discrete steps (linear, cosine, ...) for the objectives Variational and Hybrid "
                f"(objective=vlb or hybrid), got the continuous {type(schedule).__name__}."
            )
        if not self.variance.learned and out_channels != channels:
            raise ValueError(
                f"`out_channels` of the network must be {channels} for a fixed variance, got {out_channels}."
            )
        self.variance.require(channels, out_channels)


@dataclass(frozen=True)
class Hybrid(Objective):
    """L_hybrid = L_simple + bound_weight L_vlb, where L_vlb trains only the variance (Nichol & Dhariwal 2021, eq. 16).

    simple: loss of the prediction.  bound: loss of the variance, whose gradient does not reach the prediction.
    bound_weight: weight of the bound.
    Raises ValueError if the variance of the bound is fixed, if its prediction is not that of `simple`, or if
    bound_weight is below 0.

    >>> from diffusion_lab import Denoising, Epsilon, Hybrid, LearnedRange, LinearSchedule, Variational
    >>> objective = Hybrid(Denoising(Epsilon()), Variational(Epsilon(), LearnedRange()))
    >>> objective.require(LinearSchedule(), channels=3, out_channels=6)  # 3 channels of the noise, 3 of the variance
    """

    simple: Denoising
    bound: Variational
    bound_weight: float = 0.001

    def __post_init__(self) -> None:
        if not self.bound.variance.learned:
            raise ValueError(
                "`variance` must be LearnedRange or LearnedDiagonal for the objective Hybrid, whose bound trains only "
                f"the variance, got the fixed variance {type(self.bound.variance).__name__} (use "
                "variance=learned_range with objective=hybrid)."
            )
        if describe(self.bound.prediction) != describe(self.simple.prediction):
            raise ValueError(
                f"`bound` must have the prediction of `simple` ({self.simple.prediction}), got {self.bound.prediction}."
            )
        if self.bound_weight < 0:
            raise ValueError(f"bound_weight must be at least 0, got {self.bound_weight}.")

    @property
    def prediction(self) -> Prediction:
        """Quantity that the network predicts."""
        return self.simple.prediction

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        prediction, variance_output = split_output(_at_least_float32(output), channels=x_0.shape[1])
        simple = self.simple(prediction, x_0, x_t, noise, t, process)
        return simple + self.bound_weight * self.bound.loss(prediction.detach(), variance_output, x_0, x_t, t, process)

    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        self.bound.require(schedule, channels, out_channels)


def _at_least_float32(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))
