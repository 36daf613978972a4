"""A network made into an estimator of the clean image: the only thing that a sampler sees."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess, Prediction


@dataclass(frozen=True)
class Estimate:
    """What a denoiser answers.

    x_0: the expected clean image, [B, C, H, W].  log_variance: of the reverse step, shaped as x_0, if learned.
    """

    x_0: Tensor
    log_variance: Tensor | None = None


class DenoiserLike(Protocol):
    """Anything that estimates the clean image; guidance wraps one and is one."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """x_t: [B, C, H, W].  t: [B].  Estimate of the clean images."""


@dataclass(frozen=True)
class Denoiser:
    """Network + process + prediction: (x_t, t, condition) -> Estimate."""

    network: nn.Module
    process: GaussianProcess
    prediction: Prediction

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        output = self.network(x_t, self.process.network_time(t, like=x_t), condition)
        alpha_t, sigma_t = self.process.coefficients(t, like=x_t)
        return Estimate(self.prediction.to_x_0(output.float(), x_t, alpha_t, sigma_t))
