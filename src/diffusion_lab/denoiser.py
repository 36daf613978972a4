"""Denoisers: estimators of the clean image. Samplers use networks only through a denoiser."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from diffusion_lab.networks import Condition, Network, require_output
from diffusion_lab.process import GaussianProcess, Preconditioning, Prediction, split_output


@dataclass(frozen=True)
class Estimate:
    """The output of a denoiser.

    x_0: the expected clean image, [B, C, H, W].
    variance_output: the network output for the reverse variance, in the shape of x_0, or None if the variance is fixed.
        `Variance` interprets this output, because the variance depends on both times of a sampling step, t and s.
    gradient: gradient of a classifier's log-probability with respect to x_t, times the guidance scale, in the shape of
        x_0, or None without classifier guidance. Ancestral sampling shifts the mean of its step by the gradient; all
        other samplers shift the estimate of x_0 (see `samplers.base`).
    """

    x_0: Tensor
    variance_output: Tensor | None = None
    gradient: Tensor | None = None


class DenoiserLike(Protocol):
    """Protocol of denoisers. Guidance wraps a denoiser and is itself a denoiser."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """Estimate the clean images.  x_t: noisy images, [B, C, H, W].  t: times, [B]."""


@dataclass(frozen=True)
class Denoiser:
    """Denoiser that consists of a network, its diffusion process, and its prediction type (such as noise or velocity).

    Every continuous time t is accepted, also for a network that was trained with a discrete schedule.

    >>> from diffusion_lab import X0, Condition, CosineSchedule, Denoiser, GaussianProcess, UNet
    >>> network = UNet(3, 3, resolution=16, channels=32, channel_multipliers=(1,))
    >>> estimate = Denoiser(network, GaussianProcess(CosineSchedule()), X0())
    >>> estimate(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 0.12345]), Condition()).x_0.shape
    torch.Size([2, 3, 16, 16])
    """

    network: Network
    process: GaussianProcess
    prediction: Prediction

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        preconditioning = self._preconditioning(t)
        x_in, time = preconditioning.inputs(x_t)
        output = self.network(x_in, time, condition)
        require_output(self.network, output, x_t)
        output, variance_output = split_output(output.float(), channels=x_t.shape[1])
        return Estimate(preconditioning.x_0(output, x_t), variance_output)

    def _preconditioning(self, t: Tensor) -> Preconditioning:
        # Samplers pass one time for all images, expanded without a copy, and the same times for every batch. The
        # preconditioning at such a time is therefore cached.
        if t.stride() == (0,):
            try:
                return _cached_at_one_time(self.prediction, self.process, float(t[0]))
            except TypeError:  # the user's own prediction or schedule is not hashable
                return _at_one_time(self.prediction, self.process, float(t[0]))
        return self.prediction.preconditioning(t, self.process.continuous)


def _at_one_time(prediction: Prediction, process: GaussianProcess, t: float) -> Preconditioning:
    return prediction.preconditioning(torch.tensor([t], dtype=torch.float64), process.continuous).as_floats()


_cached_at_one_time = lru_cache(maxsize=8192)(_at_one_time)
