"""What a noise schedule is: time -> (alpha_t, sigma_t), and back from log-SNR."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class NoiseSchedule(ABC):
    """How signal fades: alpha_t and sigma_t of x_t = alpha_t x_0 + sigma_t noise (Kingma et al. 2021, eq. 1).

    Every answer is float64, shaped as the question.
    """

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time above 0 that a sampler may visit."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The time of pure noise, where sampling starts."""

    @property
    @abstractmethod
    def continuous(self) -> "NoiseSchedule":
        """The schedule at every time between its own: itself, unless it is a table."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t; t = 0 answers (1, 0).  Raises ValueError for t out of range."""

    @abstractmethod
    def at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time above 0 whose log-SNR is nearest to this one."""

    @abstractmethod
    def nearest(self, t: Tensor) -> Tensor:
        """The nearest times above 0 at which this schedule is defined."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Maps u, uniform in [0, 1), to a time above 0, uniform over this schedule's times."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told about t."""

    def previous(self, t: Tensor) -> Tensor:
        """The time one step before t.  Raises ValueError for a schedule without steps."""
        raise ValueError(
            f"schedule must be a table of steps (linear, cosine, ...), got the continuous {type(self).__name__}."
        )

    def following(self, t: Tensor) -> Tensor:
        """The time one step after t; t itself at the end, and where there are no steps."""
        return t.double()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2): falls from infinity at t = 0 (Kingma et al. 2021, section 3.1)."""
        alpha_t, sigma_t = self.coefficients(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def prior_std(self, t: Tensor) -> Tensor:
        """Deviation of the noise that sampling from t starts with, as in the papers' code.

        1 where alpha^2 + sigma^2 = 1 (Ho et al. 2020, algorithm 2), else sigma_t (Karras et al. 2022, algorithm 1).
        """
        alpha_t, sigma_t = self.coefficients(t)
        return torch.where((alpha_t**2 + sigma_t**2 - 1).abs() < 1e-9, 1.0, sigma_t)

    @property
    def remaining_signal(self) -> float:
        """Alpha / sigma at t_max: what sampling from pure noise takes for 0."""
        alpha_t, sigma_t = self.coefficients(torch.tensor(self.t_max, dtype=torch.float64))
        return float(alpha_t / sigma_t)


def within(t: Tensor, t_max: float) -> Tensor:
    """T in float64 on the CPU.  Raises ValueError unless all of it is in [0, t_max], up to float32's rounding."""
    t = t.double().cpu()
    inside = (t >= 0) & (t <= t_max * (1 + 1e-6))
    if not bool(inside.all()):
        raise ValueError(f"t must be in [0, {t_max:g}], got {t[~inside].flatten()[0].item()}.")
    return t.clamp(max=t_max)
