"""Variance of the reverse step p(x_s | x_t): fixed, or answered by the network beside its prediction."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.process.gaussian import GaussianProcess


class Variance(ABC):
    """A choice of the reverse variance for any two times s < t."""

    learned: ClassVar[bool]
    """Whether the network answers twice the image's channels, of which the second half is the variance."""

    @abstractmethod
    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        """Logarithm of the variance, to multiply images `like` [B, C, H, W]: [B, 1, 1, 1] or, if learned, [B, C, H, W].

        s, t: [B].  output: the network's second half, [B, C, H, W]; None where there is none.
        Raises ValueError where a learned variance has no output to read.
        """

    def std(self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None) -> Tensor:
        """Deviation of the step, shaped as `log_variance`; 0 where s is 0, since the last step adds no noise."""
        std = (0.5 * self.log_variance(process, s, t, like=like, output=output)).exp()
        return std * process.widen((s > 0).double(), like)

    def stds(self, process: GaussianProcess, s: Tensor, t: Tensor) -> list[float]:
        """Those of a whole walk from t to s, [num_steps] each, where the network has no say: one number a step."""
        per_step = torch.empty(len(t), 1, 1, 1, dtype=torch.float64)
        stds: list[float] = self.std(process, s, t, like=per_step, output=None).flatten().tolist()
        return stds

    def require(self, channels: int, out_channels: int) -> None:
        """Raises ValueError unless a network with out_channels answers what this variance needs for the image."""
        if self.learned and out_channels != 2 * channels:
            raise ValueError(
                f"model.out_channels must be {2 * channels} for a learned variance, twice the {channels} of the image, "
                f"got {out_channels}; or take variance=fixed_small or fixed_large."
            )


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The posterior's variance: best for data at a point (Ho et al. 2020, section 3.2, beta tilde)."""

    learned = False

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        return process.widen(process.posterior_log_variance(s, t), like)


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The forward step's variance beta: best for Gaussian data (Ho et al. 2020, section 3.2).

    The first step has the small variance, which gives its decoder a better likelihood (Ho et al. 2020, code).
    """

    learned = False

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        small, large = process.posterior_log_variance(s, t), process.transition_log_variance(s, t)
        return process.widen(torch.where(s > 0, large, small), like)


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Between small (answer -1) and large (answer 1), in log space (Nichol & Dhariwal 2021, eq. 15)."""

    learned = True

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        small = process.widen(process.posterior_log_variance(s, t), like)
        large = process.widen(process.transition_log_variance(s, t), like)
        share = (_answered(output) + 1) / 2  # not held in [0, 1]: the paper leaves it free
        return share * large + (1 - share) * small


@dataclass(frozen=True)
class LearnedDiagonal(Variance):
    """The network's answer is the log-variance itself (Ho et al. 2020, section 4.2, which found it unstable)."""

    learned = True

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        return _answered(output)


def _answered(output: Tensor | None) -> Tensor:
    if output is None:
        raise ValueError("variance must be fixed_small or fixed_large for a network that answers none.")
    return output


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A network's answer as (prediction, what it says of the variance or None), each [B, channels, H, W]."""
    if output.shape[1] == channels:
        return output, None
    return output[:, :channels], output[:, channels:]
