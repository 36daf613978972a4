"""A network made into an estimator of the clean image: the only thing that a sampler sees."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Prediction, split_output


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
        around = self.prediction.preconditioning(t, self.process.continuous)
        x_in, time = around.inputs(x_t)
        output, variance_output = split_output(self.network(x_in, time, condition).float(), channels=x_t.shape[1])
        return Estimate(around.x_0(output, x_t), variance_output)
