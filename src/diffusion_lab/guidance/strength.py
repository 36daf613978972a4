"""How strongly guidance acts, and at which noise levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser, DenoiserLike
from diffusion_lab.process import GaussianProcess, Prediction


@dataclass(frozen=True)
class Strength:
    """How far past an estimate guidance goes, away from a weaker one, and at which noise levels.

    guidance_scale: estimate = weak + guidance_scale * (strong - weak), so that 1 is the strong one as it is and 0 the
        weak one; the w of Ho & Salimans (2022), eq. 6, is guidance_scale - 1.
    interval: the noise levels sigma_t / alpha_t, above the first and up to the second, at which there is any guidance
        (Kynkäänniemi et al. 2024, eq. 5); None is all.
    rescale: share in which the network's answer gets back its standard deviation without guidance (Lin et al. 2024, eq. 15 and
        16, their phi); 0 is none.
    """

    guidance_scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {self.guidance_scale}.")
        if self.interval is not None and not (len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]):
            raise ValueError(f"interval must be two noise levels of at least 0, growing, got {list(self.interval)}.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}.")

    def is_active(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Where guidance changes anything: bool [B].  t: [B]."""
        if self.guidance_scale == 1:
            return torch.zeros(len(t), dtype=torch.bool)
        if self.interval is None:
            return torch.ones(len(t), dtype=torch.bool)
        alpha_t, sigma_t = process.continuous.schedule.coefficients(t)
        level = sigma_t / alpha_t
        return (level > self.interval[0]) & (level <= self.interval[1])

    def extrapolate(self, strong: Tensor, weak: Tensor, x_t: Tensor, t: Tensor, denoiser: "Guidable") -> Tensor:
        """The guided estimate of x_0: [B, C, H, W], as strong and weak.  It is the same in x_0 as in noise."""
        guided = torch.lerp(weak, strong, self.guidance_scale)
        if not self.rescale:
            return guided
        around = denoiser.prediction.preconditioning(t, denoiser.process.continuous)
        answer, plain = around.output(guided, x_t), around.output(strong, x_t)
        std = answer.flatten(1).std(dim=1)  # [B]
        ratio = torch.where(std > 0, plain.flatten(1).std(dim=1) / std, 1.0)
        factor = self.rescale * ratio + (1 - self.rescale)
        return around.x_0(answer * GaussianProcess.widen(factor, answer), x_t)


@dataclass(frozen=True)
class Guidable:
    """A denoiser, and what its network's answers mean."""

    denoiser: DenoiserLike
    process: GaussianProcess
    prediction: Prediction

    @classmethod
    def of(cls, denoiser: Denoiser) -> "Guidable":
        return cls(denoiser, denoiser.process, denoiser.prediction)
