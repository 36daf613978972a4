"""A network made into an estimator of the clean image: the only thing that a sampler sees."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Preconditioning, Prediction, split_output, weighted_sum


@dataclass(frozen=True)
class Estimate:
    """What a denoiser answers.

    x_0: the expected clean image, [B, C, H, W].  variance_output: what the network says of the reverse variance, shaped
    as x_0; None unless it learned it. `Variance` reads it, since it means something only for a step from t to s.
    gradient: of a classifier's log-probability after x_t, times its scale, shaped as x_0; None without one. Samplers
    apply it: ancestral sampling moves the mean of its step by it, all others the estimate (see `Sampler.estimate`).
    """

    x_0: Tensor
    variance_output: Tensor | None = None
    gradient: Tensor | None = None


class DenoiserLike(Protocol):
    """Anything that estimates the clean image; guidance wraps one and is one."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """x_t: [B, C, H, W].  t: [B].  Estimate of the clean images."""


@dataclass(frozen=True)
class Denoiser:
    """Network + process + prediction: (x_t, t, condition) -> Estimate, at the process's times and between them."""

    network: nn.Module
    process: GaussianProcess
    prediction: Prediction

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        around = self._around(t)
        x_in, time = around.inputs(x_t)
        output, variance_output = split_output(self.network(x_in, time, condition).float(), channels=x_t.shape[1])
        return Estimate(around.x_0(output, x_t), variance_output)

    def _around(self, t: Tensor) -> "Preconditioning | _AtOneTime":
        # A sampler asks at one time for all images, spread out without a copy, and at the same times for each batch.
        if t.stride() == (0,):
            try:
                return _AtOneTime.remembered(self.prediction, self.process, float(t[0]))
            except TypeError:  # somebody's own schedule that has no hash
                return _AtOneTime.of(self.prediction, self.process, float(t[0]))
        return self.prediction.preconditioning(t, self.process.continuous)


@dataclass(frozen=True)
class _AtOneTime:
    """`Preconditioning` in plain numbers, which cost a fifth of a tensor's arithmetic."""

    c_in: float
    c_noise: float
    c_skip: float
    c_out: float

    @classmethod
    @lru_cache(maxsize=8192)
    def remembered(cls, prediction: Prediction, process: GaussianProcess, t: float) -> "_AtOneTime":
        return cls.of(prediction, process, t)

    @classmethod
    def of(cls, prediction: Prediction, process: GaussianProcess, t: float) -> "_AtOneTime":
        around = prediction.preconditioning(torch.tensor([t], dtype=torch.float64), process.continuous)
        return cls(float(around.c_in), float(around.c_noise), float(around.c_skip), float(around.c_out))

    def inputs(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        return x_t if self.c_in == 1 else self.c_in * x_t, x_t.new_full((len(x_t),), self.c_noise)

    def x_0(self, output: Tensor, x_t: Tensor) -> Tensor:
        return weighted_sum(self.c_skip, x_t, self.c_out, output)
