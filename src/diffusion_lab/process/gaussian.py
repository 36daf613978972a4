"""The Gaussian forward process and its posterior given the clean image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lab.contracts import described, require_instance
from diffusion_lab.process.schedule_base import NoiseSchedule, require_falling_snr

SMALLEST_VARIANCE = 1e-30
"""Lower bound of a variance before its logarithm is taken, so that exp(log_variance) does not underflow in float32."""


@dataclass(frozen=True)
class GaussianProcess:
    """The forward process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2) of a schedule, its transitions and posteriors.

    schedule: noise schedule, which defines alpha_t and sigma_t.
    Raises ValueError for a schedule whose signal-to-noise ratio rises, see `require_falling_snr`.
    In all methods, images are [B, C, H, W], and times are [B], in the range of the schedule.

    >>> from diffusion_lab import GaussianProcess, RectifiedFlowSchedule
    >>> process, x_0 = GaussianProcess(RectifiedFlowSchedule()), torch.ones(2, 3, 8, 8)
    >>> x_t = process.q_sample(x_0, t=torch.tensor([0.25, 0.5]), noise=torch.zeros_like(x_0))
    >>> x_t[:, 0, 0, 0]
    tensor([0.7500, 0.5000])
    """

    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        require_instance(self.schedule, NoiseSchedule, "schedule")
        require_falling_snr(self.schedule)

    @staticmethod
    def of(process: "GaussianProcess | NoiseSchedule", name: str = "process") -> "GaussianProcess":
        """Return a process; a schedule stands for its process.  name: name of the argument, for the error message.

        Raises ValueError for any other object.
        """
        given = GaussianProcess(process) if isinstance(process, NoiseSchedule) else process
        if isinstance(getattr(given, "process", None), GaussianProcess):  # a module in training, or a denoiser
            raise ValueError(
                f"`{name}` must be a diffusion_lab.GaussianProcess, got {described(given)}; pass its .process."
            )
        require_instance(given, GaussianProcess, name)
        return given

    @cached_property  # samplers read it in each step, and its checks take a quarter of a millisecond
    def continuous(self) -> "GaussianProcess":
        """The same process with the continuous extension of its schedule."""
        return GaussianProcess(self.schedule.continuous)

    @cached_property
    def unbounded(self) -> "GaussianProcess":
        """The same process with times above t_max, where its schedule is defined; see `NoiseSchedule.unbounded`."""
        return GaussianProcess(self.schedule.unbounded)

    def adds_noise_of(self, other: "GaussianProcess", times: Sequence[float]) -> bool:
        """Return whether this process, or its continuous extension, adds the same noise as `other` at these times.

        times: decreasing times of `other`, which may be another object, a continuous extension of this process, or a
            process with fewer steps.
        """
        if self is other:
            return True
        t = torch.tensor(times, dtype=torch.float64)
        return times[0] <= self.schedule.t_max and all(
            torch.allclose(one, own, rtol=1e-3, atol=1e-3)
            for one, own in zip(other.schedule.coefficients(t), self.schedule.continuous.coefficients(t), strict=True)
        )

    def is_one_step(self, s: Tensor, t: Tensor) -> Tensor:
        """Return whether s is one step of the schedule before t: bool, in the shape of t."""
        return (self.schedule.following(s) - t.double()).abs() < 1e-9

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each [B, 1, 1, 1], with the device and dtype of `like` [B, C, H, W].  t: [B]."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return self.widen(alpha_t, like), self.widen(sigma_t, like)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the noisy image x_t = alpha_t x_0 + sigma_t noise (Ho et al. 2020, eq. 4; Kingma et al. 2021, eq. 1).

        x_0, noise: [B, C, H, W].  t: [B].  Returns x_t: [B, C, H, W].
        Raises ValueError unless t has one time per image and noise has the shape of x_0.
        """
        if noise.shape != x_0.shape:
            raise ValueError(f"noise must have the shape of x_0, {list(x_0.shape)}, got {list(noise.shape)}.")
        alpha_t, sigma_t = self.coefficients(t, like=x_0)
        return alpha_t * x_0 + sigma_t * noise

    def q_step(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Sample x_t from q(x_t | x_s) for s < t (Ho et al. 2020, eq. 2; Kingma et al. 2021, eq. 20).

        x_s, noise: [B, C, H, W].  s, t: [B].  Returns x_t: [B, C, H, W].
        """
        scale, variance = self.transition(s, t)
        return self.widen(scale, x_s) * x_s + self.widen(variance.sqrt(), x_s) * noise

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and variance of q(x_t | x_s), float64, in the shape of t (Kingma et al. 2021, eq. 20 and 21).

        For adjacent steps of a discrete schedule, the results are sqrt(1 - beta) and beta (Ho et al. 2020, eq. 2).
        """
        alpha_s, sigma_s = self.schedule.coefficients(s)
        alpha_t, sigma_t = self.schedule.coefficients(t)
        scale = alpha_t / alpha_s
        return scale, (sigma_t**2 - scale**2 * sigma_s**2).clamp(min=0)

    def q_posterior(self, x_0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [B, C, H, W] and variance [B, 1, 1, 1] of q(x_s | x_t, x_0), s < t (Ho et al. 2020, eq. 6, 7)."""
        on_x_0, on_x_t, variance = self.posterior_coefficients(s, t)
        mean = self.widen(on_x_0, x_0) * x_0 + self.widen(on_x_t, x_t) * x_t
        return mean, self.widen(variance, x_0)

    def posterior_coefficients(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of x_0 and x_t in the posterior mean, and the variance, float64, in the shape of t.

        Ho et al. (2020), eq. 7, generalized to any two times s < t as in Kingma et al. (2021), appendix A.2.
        """
        alpha_s, sigma_s = self.schedule.coefficients(s)
        _, sigma_t = self.schedule.coefficients(t)
        scale, variance = self.transition(s, t)
        # The first step may add no noise (beta = 0). Then x_t = x_0, and the weight 0 / 0 is replaced by 1 on x_0.
        has_noise = sigma_t > 0
        on_x_0 = torch.where(has_noise, alpha_s * variance / sigma_t**2, alpha_s)
        on_x_t = torch.where(has_noise, scale * sigma_s**2 / sigma_t**2, 0.0)
        return on_x_0, on_x_t, torch.where(has_noise, variance * sigma_s**2 / sigma_t**2, 0.0)

    def transition_log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the log-variance of q(x_t | x_s), float64, in the shape of t. It is log beta for adjacent steps."""
        return self.transition(s, t)[1].clamp(min=SMALLEST_VARIANCE).log()

    def posterior_log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the log-variance of q(x_s | x_t, x_0), float64, in the shape of t.

        For s = 0 the posterior variance is 0 and has no logarithm. It is replaced by the posterior variance of
        the reverse step that starts one step after t and ends at t, as in the code of Ho et al. (2020). If t is the
        last step or the schedule has no steps, it is replaced by the variance of q(x_t | x_s).
        """
        is_last = s == 0
        following = torch.where(is_last, self.schedule.following(t), t)
        variance = self.posterior_coefficients(torch.where(is_last, t, s), following)[2]
        has_no_following = is_last & (following == t)
        return torch.where(has_no_following, self.transition(s, t)[1], variance).clamp(min=SMALLEST_VARIANCE).log()

    def validate_times(self, times: Sequence[float]) -> None:
        """Raise ValueError unless `times` is a strictly decreasing, non-empty list of times above 0 of the schedule."""
        if not times or any(s >= t for t, s in pairwise(times)) or times[-1] <= 0:
            raise ValueError(
                f"times must be a strictly decreasing list of numbers above 0, got {list(times)}; check the settings "
                "of `time_grid`."
            )
        self.schedule.coefficients(torch.tensor(times, dtype=torch.float64))

    @staticmethod
    def widen(value: Tensor, like: Tensor) -> Tensor:
        """Reshape one value per image, [B], to [B, 1, 1, 1]; see the function `widen` of this module."""
        return widen(value, like)


def widen(value: Tensor, like: Tensor, name: str = "t") -> Tensor:
    """Reshape a tensor with one value per image so that it broadcasts over the images: [B] -> [B, 1, 1, 1].

    like: images, [B, ...]. The result has their number of dimensions, device and dtype.
    name: name of the value in the error message.
    Raises ValueError unless the shape of value is [B].
    """
    # Without the check, [B] would broadcast along the width of the images if B equals W.
    if value.shape != like.shape[:1]:
        raise ValueError(f"{name} must have one value per image, [{like.shape[0]}], got {list(value.shape)}.")
    # The copy is asynchronous on CUDA only, where waiting would leave the device idle. On MPS the source could be freed
    # before the copy has finished, which gives wrong values.
    return value.to(like.device, like.dtype, non_blocking=like.is_cuda).view(-1, *[1] * (like.ndim - 1))


def multiplier(value: Tensor | float, like: Tensor) -> Tensor | float:
    """Return `value` in a form that can be multiplied by the images `like`.

    value: a float, which is returned unchanged, or one value per image, [B], which is reshaped to [B, 1, 1, 1].
    like: images, [B, ...].
    """
    return value if isinstance(value, float) else widen(value, like)


def weighted_sum(a: Tensor | float, x: Tensor, b: Tensor | float, y: Tensor) -> Tensor:
    """Return a x + b y.  x, y: [B, C, H, W].  a, b: floats that apply to all images, or one value per image, [B].

    Raises ValueError if a tensor a or b does not have one value per image.
    """
    if isinstance(a, float) and isinstance(b, float):
        return torch.mul(x, a).add_(y, alpha=b)  # two passes over memory instead of three
    return multiplier(a, x) * x + multiplier(b, x) * y
