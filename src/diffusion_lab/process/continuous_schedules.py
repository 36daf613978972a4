"""Noise schedules in closed form, defined at every time of a continuous range."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process.schedule_base import NoiseSchedule, validated_times


class ContinuousSchedule(NoiseSchedule):
    """A schedule whose alpha and sigma are functions of t in (0, t_max].

    A subclass defines the functions in `curve`, and the times t_min, t_max and `network_time`:

    >>> import math
    >>> from dataclasses import dataclass
    >>> from diffusion_lab import UnitTimeSchedule
    >>> @dataclass(frozen=True)
    ... class SineSchedule(UnitTimeSchedule):  # times in (0, 1]
    ...     first: float = 1e-3
    ...     def curve(self, t):
    ...         return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)
    >>> print(f"{SineSchedule().at_log_snr(torch.tensor(0.0)):.3f}")
    0.500
    """

    @abstractmethod
    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t for t above 0, float64."""

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        """Return the time at which sigma / alpha equals `ratio`, float64.

        Subclasses may define it in closed form. By default it is found by bisection, to the precision of float64.
        """
        low, high = torch.full_like(ratio, self.t_min), torch.full_like(ratio, self.t_max)
        for _ in range(60):
            middle = (low + high) / 2
            alpha_t, sigma_t = self.curve(middle)
            is_above = sigma_t > ratio * alpha_t
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        return high

    @property
    def continuous(self) -> NoiseSchedule:
        return self

    @property
    def largest_time(self) -> float:
        """Largest time at which the formulas of the schedule are accepted."""
        return self.t_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = validated_times(t, self.largest_time)
        alpha_t, sigma_t = self.curve(t)
        # Time 0 is the clean image, even if the formula leaves a little noise at 0 (VESchedule).
        return torch.where(t > 0, alpha_t, 1.0), torch.where(t > 0, sigma_t, 0.0)

    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        # The clamp keeps the square of the ratio finite when the log-SNR is infinite.
        ratio = torch.exp(-log_snr.double() / 2).clamp(1e-150, 1e150)
        return self.nearest(self.at_noise_to_signal(ratio))

    def nearest(self, t: Tensor) -> Tensor:
        return t.double().clamp(self.t_min, self.t_max)

    def quantile(self, u: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * u.double()


class UnitTimeSchedule(ContinuousSchedule):
    """A schedule with times in (0, 1].

    A network receives the time 1000 t, unless a subclass defines `network_time`.
    first: the smallest time that training and sampling use.
    """

    first: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.first < 1:
            raise ValueError(f"first must be in (0, 1), got {self.first}.")
        found = self.curve(torch.tensor([self.first, 1.0], dtype=torch.float64))
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"curve(t) of {type(self).__name__} must return alpha_t and sigma_t, got {type(found)}.")

    @property
    def t_min(self) -> float:
        return self.first

    @property
    def t_max(self) -> float:
        return 1.0

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * t.double()  # the range for which the sinusoidal embedding of DDPM networks is designed


@dataclass(frozen=True)
class Unbounded(ContinuousSchedule):
    """A schedule whose times have no upper limit, for samplers that add noise at t_max (Karras et al. 2022, alg. 2).

    Its formulas are those of `schedule`. Also t_max is that of `schedule`, at which training ends and sampling starts.
    schedule: schedule whose `curve`, `at_noise_to_signal` and `network_time` accept times above its t_max.
    """

    schedule: ContinuousSchedule

    @property
    def t_min(self) -> float:
        return self.schedule.t_min

    @property
    def t_max(self) -> float:
        return self.schedule.t_max

    @property
    def unbounded(self) -> NoiseSchedule:
        return self

    @property
    def largest_time(self) -> float:
        return math.inf

    def nearest(self, t: Tensor) -> Tensor:
        return t.double().clamp(min=self.t_min)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.curve(t)

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return self.schedule.at_noise_to_signal(ratio)

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)


@dataclass(frozen=True)
class EDMSchedule(ContinuousSchedule):
    """alpha = 1, sigma = t: the time is the noise level (Karras et al. 2022, section 3).

    sigma_min, sigma_max: smallest and largest noise level of sampling, in units of the pixel values.
    Raises ValueError unless 0 < sigma_min < sigma_max.

    >>> from diffusion_lab import EDMSchedule
    >>> EDMSchedule().coefficients(torch.tensor([80.0]))  # alpha and sigma
    (tensor([1.], dtype=torch.float64), tensor([80.], dtype=torch.float64))
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _require_increasing("sigma", self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def unbounded(self) -> NoiseSchedule:
        return Unbounded(self)

    def network_time(self, t: Tensor) -> Tensor:
        return t.double().log() / 4  # c_noise of Karras et al. (2022), Table 1

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class RectifiedFlowSchedule(UnitTimeSchedule):
    """alpha = 1 - t, sigma = t: straight lines from image to noise (Liu et al. 2023, eq. 1).

    first: the smallest time that training and sampling use; the noise at smaller times is less than one gray level.
    Raises ValueError unless first is in (0, 1).

    >>> from diffusion_lab import RectifiedFlowSchedule
    >>> RectifiedFlowSchedule().coefficients(torch.tensor([0.25]))  # alpha and sigma
    (tensor([0.7500], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """

    first: float = 1e-3

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class VPSchedule(UnitTimeSchedule):
    """Variance-preserving SDE with linearly increasing beta(t) (Song et al. 2021, eq. 32 and 33).

    beta_min, beta_max: beta(t) at t = 0 and t = 1.
    first: the smallest time that training and sampling use (in appendix C, 1e-3 for sampling and 1e-5 for training and
        likelihoods).
    Raises ValueError unless 0 < beta_min < beta_max and first is in (0, 1).

    >>> from diffusion_lab import VPSchedule
    >>> print(f"{VPSchedule().log_snr(torch.tensor(1.0)):.2f}")  # -log(exp(10.05) - 1)
    -10.05
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: float = 1e-3

    def __post_init__(self) -> None:
        _require_increasing("beta", self.beta_min, self.beta_max)
        super().__post_init__()

    @property
    def unbounded(self) -> NoiseSchedule:
        return Unbounded(self)

    def network_time(self, t: Tensor) -> Tensor:
        return 999 * t.double()  # Song et al. (2021), code

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha_bar = -(t**2 * (self.beta_max - self.beta_min) / 2 + t * self.beta_min)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        # log(1 + ratio^2) is the integral of beta, which is quadratic in t. This form of the root loses no digits.
        integral = torch.where(ratio > 1e8, 2 * ratio.log(), torch.log1p(ratio.clamp(max=1e8) ** 2))
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class VESchedule(UnitTimeSchedule):
    """Variance-exploding SDE: alpha = 1, sigma increases geometrically (Song et al. 2021, eq. 30).

    sigma_min, sigma_max: sigma at t = 0 and t = 1, in units of the pixel values.
    first: the smallest time that training and sampling use (1e-5 in appendix C).
    Raises ValueError unless 0 < sigma_min < sigma_max and first is in (0, 1).

    >>> from diffusion_lab import VESchedule
    >>> VESchedule().coefficients(torch.tensor([0.5]))[1]  # the geometric mean of 0.01 and 50
    tensor([0.7071], dtype=torch.float64)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    first: float = 1e-5

    def __post_init__(self) -> None:
        _require_increasing("sigma", self.sigma_min, self.sigma_max)
        super().__post_init__()

    @property
    def unbounded(self) -> NoiseSchedule:
        return Unbounded(self)

    def network_time(self, t: Tensor) -> Tensor:
        return (self.curve(t.double().cpu())[1] / 2).log()  # c_noise of Karras et al. (2022), Table 1

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def at_noise_to_signal(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


def _require_increasing(name: str, low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"{name}_min and {name}_max must be above 0, finite and in increasing order, got {low} and {high}."
        )
