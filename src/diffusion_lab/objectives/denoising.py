"""Squared error between the network's output and its target."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.objectives.weightings import Weighting
from diffusion_lab.process import GaussianProcess, NoiseSchedule, Prediction


class Objective(ABC):
    """A loss per image."""

    @abstractmethod
    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        """Loss [B], at least float32.

        output: the network's answer, [B, C, H, W], or [B, 2 C, H, W] where it learns the variance.
        x_0, x_t, noise: [B, C, H, W].  t: [B].
        """

    @abstractmethod
    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        """Raises ValueError where a network with out_channels for images of `channels` cannot be trained by it."""


@dataclass(frozen=True)
class Denoising(Objective):
    """L_simple: mean squared error in the space of the prediction (Ho et al. 2020, eq. 14).

    The mean runs over channels and pixels, so that unit noise met by an output of 0 costs 1.
    weighting: of the squared error of x_0, in place of the weight 1 on that of the prediction.
    """

    prediction: Prediction
    weighting: Weighting | None = None

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        target = self.prediction.target(x_0, noise, t, process)
        # At least float32: squares of bfloat16 errors would keep 8 bits.
        error = output.to(torch.promote_types(output.dtype, torch.float32)) - target
        loss = error.square().mean(dim=(1, 2, 3))
        if self.weighting is None:
            return loss
        weight = self._weight(self.weighting, t, process)
        return loss * weight.to(loss.device, loss.dtype, non_blocking=loss.is_cuda)

    def _weight(self, weighting: Weighting, t: Tensor, process: GaussianProcess) -> Tensor:
        alpha_t, sigma_t = process.schedule.coefficients(t)
        return weighting((alpha_t / sigma_t) ** 2) / self.prediction.error_ratio(t, process)

    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        if out_channels != channels:
            raise ValueError(
                f"model.out_channels must be {channels}, those of the image, for an objective that trains no variance, "
                f"got {out_channels}; objective=hybrid and vlb train a learned variance."
            )
        if self.weighting is None:
            return
        first = torch.tensor([schedule.t_min], dtype=torch.float64)
        if not bool(self._weight(self.weighting, first, GaussianProcess(schedule)).isfinite()):
            raise ValueError(
                "weighting must be none, constant, min_snr or soft_min_snr for a schedule whose first step adds "
                f"no noise, got {self.weighting}."
            )
