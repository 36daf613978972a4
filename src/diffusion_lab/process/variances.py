"""Variance of the reverse step p(x_s | x_t): fixed, or learned as a second output of the network."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.process.gaussian import GaussianProcess


class Variance(DataclassInterface):
    """The variance of the reverse step between any two times s < t.

    >>> from diffusion_lab import CustomSchedule, FixedLarge, FixedSmall, GaussianProcess
    >>> process, s, t = GaussianProcess(CustomSchedule([0.1, 0.5])), torch.tensor([0.5]), torch.tensor([1.0])
    >>> print(f"{FixedLarge().stds(process, s, t)[0] ** 2:.3f} {FixedSmall().stds(process, s, t)[0] ** 2:.3f}")
    0.500 0.091
    """

    learned: ClassVar[bool]
    """Whether the network has twice as many output channels as the image; the second half represents the variance."""

    @abstractmethod
    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        """Return the log-variance: [B, 1, 1, 1], or [B, C, H, W] if learned, with the device and dtype of `like`.

        s, t: [B].  like: [B, C, H, W].  output: [B, C, H, W], the second half of the network output, or None.
        Raises ValueError if the variance is learned and output is None.
        """

    def variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        """Return the variance in the shape of `log_variance`."""
        return self.log_variance(process, s, t, like=like, output=output).exp()

    def std(self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None) -> Tensor:
        """Return the standard deviation in the shape of `log_variance`.

        It is 0 for s = 0, because the last step adds no noise.
        """
        std = (0.5 * self.log_variance(process, s, t, like=like, output=output)).exp()
        return std * process.widen((s > 0).double(), like)

    def stds(self, process: GaussianProcess, s: Tensor, t: Tensor) -> list[float]:
        """Return the standard deviation of each step from t to s, [num_steps], for a fixed variance."""
        per_step = torch.empty(len(t), 1, 1, 1, dtype=torch.float64)
        stds: list[float] = self.std(process, s, t, like=per_step, output=None).flatten().tolist()
        return stds

    def require(self, channels: int, out_channels: int) -> None:
        """Raise ValueError unless a network with this number of output channels can represent this variance.

        channels: number of image channels.  out_channels: number of output channels.
        """
        if self.learned and out_channels != 2 * channels:
            raise ValueError(
                f"`out_channels` of the network must be {2 * channels} for a learned variance (twice the {channels} "
                f"channels of the image), got {out_channels}; a fixed variance is FixedSmall or FixedLarge "
                "(variance=fixed_small or fixed_large, with another objective than hybrid)."
            )


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The posterior variance, optimal for data at a single point (Ho et al. 2020, section 3.2, beta tilde)."""

    learned = False

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        return process.widen(process.posterior_log_variance(s, t), like)

    def variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        return process.widen(process.posterior_coefficients(s, t)[2], like)  # 0 for s = 0, which has no logarithm


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The variance of the forward step, beta, optimal for Gaussian data (Ho et al. 2020, section 3.2).

    The last step of sampling, s = 0, uses the small variance, which improves the likelihood (Ho et al. 2020, code).
    """

    learned = False

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        small, large = process.posterior_log_variance(s, t), process.transition_log_variance(s, t)
        return process.widen(torch.where(s > 0, large, small), like)


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Log interpolation of the small (output -1) and large (output 1) variance (Nichol & Dhariwal 2021, eq. 15).

    The network must have twice as many output channels as the image, and is trained with `Hybrid` or `Variational`.
    """

    learned = True

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        small = process.widen(process.posterior_log_variance(s, t), like)
        large = process.widen(process.transition_log_variance(s, t), like)
        fraction = (_require_output(output) + 1) / 2  # not clipped to [0, 1], as in the paper
        return fraction * large + (1 - fraction) * small


@dataclass(frozen=True)
class LearnedDiagonal(Variance):
    """The network output is the log-variance (Ho et al. 2020, section 4.2, where training was unstable).

    The network must have twice as many output channels as the image, and is trained with `Hybrid` or `Variational`.
    """

    learned = True

    def log_variance(
        self, process: GaussianProcess, s: Tensor, t: Tensor, *, like: Tensor, output: Tensor | None
    ) -> Tensor:
        return _require_output(output)


def _require_output(output: Tensor | None) -> Tensor:
    if output is None:
        raise ValueError(
            "`variance` must be FixedSmall or FixedLarge (variance=fixed_small or fixed_large) for a network without a "
            "variance output, got a learned variance."
        )
    return output


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split the output of a network into (prediction, variance output or None), each [B, channels, H, W].

    output: [B, channels, H, W], or [B, 2 channels, H, W] if the variance is learned.
    """
    if output.shape[1] == channels:
        return output, None
    return output[:, :channels], output[:, channels:]
