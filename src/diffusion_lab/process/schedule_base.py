"""Abstract base of noise schedules: time -> (alpha_t, sigma_t), and log-SNR -> time."""

from abc import abstractmethod

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface


class NoiseSchedule(DataclassInterface):
    """The coefficients alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t noise (Kingma et al. 2021, eq. 1).

    All methods return float64 tensors of the shape of their argument, which has any shape. Times increase from the
    data, t = 0, to the noise, t = t_max. They are in [0, 1] for all schedules but `EDMSchedule`.
    """

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time above 0 that a sampler may visit."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The largest time, at which sampling starts from noise."""

    @property
    @abstractmethod
    def continuous(self) -> "NoiseSchedule":
        """The extension to a continuous range of times; a schedule that is already continuous returns itself."""

    @property
    def unbounded(self) -> "NoiseSchedule":
        """The continuous extension, also to times above t_max if the schedule and its networks are defined there.

        By default, times are limited to t_max, and the result is `continuous`.
        """
        return self.continuous

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, which are 1 and 0 for t = 0.  Raises ValueError if t is out of range."""

    @abstractmethod
    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time above 0 whose log-SNR is closest to `log_snr`."""

    @abstractmethod
    def nearest(self, t: Tensor) -> Tensor:
        """Return the time closest to t among the times above 0 at which this schedule is defined."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Map u, uniform in [0, 1), to a time above 0 that is uniform over the times of this schedule."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """Return the value that a network receives as its time input at time t, for example the step index."""

    def previous(self, t: Tensor) -> Tensor:
        """Return the time one step before t.  Raises ValueError for a schedule without steps."""
        raise ValueError(
            "`schedule` must have discrete steps (linear, cosine, ...) for parts that use the previous step, such as "
            f"the prediction PosteriorMean, got the continuous {type(self).__name__}."
        )

    def following(self, t: Tensor) -> Tensor:
        """Return the time one step after t, or t itself at the last step and for a schedule without steps."""
        return t.double()

    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha_t^2 / sigma_t^2), which falls from infinity at t = 0 (Kingma et al. 2021, section 3.1)."""
        alpha_t, sigma_t = self.coefficients(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def prior_std(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise from which sampling starts at t, as in the code of the papers.

        The value is 1 if alpha^2 + sigma^2 = 1 (Ho et al. 2020, algorithm 2), otherwise it is sigma_t (Karras et al.
        2022, algorithm 1).
        """
        alpha_t, sigma_t = self.coefficients(t)
        return torch.where((alpha_t**2 + sigma_t**2 - 1).abs() < 1e-9, 1.0, sigma_t)

    @property
    def remaining_signal(self) -> float:
        """The ratio alpha / sigma at t_max, which sampling from pure noise assumes to be 0."""
        alpha_t, sigma_t = self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))
        return float(alpha_t / sigma_t)


def require_falling_snr(schedule: NoiseSchedule, num_times: int = 33) -> None:
    """Raise ValueError unless the coefficients of a schedule are valid at `num_times` of its times.

    alpha_t and sigma_t must be float64 tensors of the shape of t with values of at least 0, and the signal-to-noise
    ratio alpha_t^2 / sigma_t^2 must not rise with t.
    """
    t = schedule.quantile(torch.arange(num_times, dtype=torch.float64) / num_times)
    alpha_t, sigma_t = schedule.coefficients(t)
    owner = type(schedule).__name__
    for name, value in (("alpha_t", alpha_t), ("sigma_t", sigma_t)):
        if value.dtype != torch.float64 or value.shape != t.shape:
            raise ValueError(
                f"`coefficients` of {owner} must return {name} as a float64 tensor of the shape of t, "
                f"{list(t.shape)}, got {value.dtype} {list(value.shape)}."
            )
        if not bool((value.isfinite() & (value >= 0)).all()):
            raise ValueError(f"{name} of {owner} must be finite and at least 0, got {value.tolist()}.")
    # This function of the ratio rises with it, and it is finite for sigma_t = 0.
    share = alpha_t**2 / (alpha_t**2 + sigma_t**2)
    if bool((rises := share[1:] > share[:-1] + 1e-9).any()):
        first = int(rises.nonzero()[0])
        raise ValueError(
            f"the signal-to-noise ratio of {owner} must not rise with the time, but it is higher at "
            f"t = {t[first + 1]:.4g} than at t = {t[first]:.4g}."
        )


def validated_times(t: Tensor, t_max: float) -> Tensor:
    """Return t in float64 on the CPU.  Raises ValueError unless t is in [0, t_max], up to rounding in float32."""
    t = t.double().cpu()
    inside = (t >= 0) & (t <= t_max * (1 + 1e-6))
    if not bool(inside.all()):
        raise ValueError(f"t must be in [0, {t_max:g}], got {t[~inside].flatten()[0].item()}.")
    return t.clamp(max=t_max)
