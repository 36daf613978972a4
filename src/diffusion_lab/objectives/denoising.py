"""Squared error between the network output and its target."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.contracts import Interface
from diffusion_lab.objectives.weightings import Weighting
from diffusion_lab.process import GaussianProcess, NoiseSchedule, Prediction


class Objective(Interface):
    """A training objective: one loss per image."""

    @abstractmethod
    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        """Return the loss of each image: [B], float32 or float64.

        output: the network output, [B, C, H, W], or [B, 2 C, H, W] if the variance is learned.
        x_0, x_t, noise: [B, C, H, W].  t: [B].
        """

    @abstractmethod
    def require(self, schedule: NoiseSchedule, channels: int, out_channels: int) -> None:
        """Raise ValueError unless the objective can train a network with this schedule and these numbers of channels.

        channels: number of image channels.  out_channels: number of output channels.
        """


@dataclass(frozen=True)
class Denoising(Objective):
    """L_simple: mean squared error in the space of the prediction (Ho et al. 2020, eq. 14).

    The mean is over channels and pixels, so that an output of 0 for a target of unit variance has loss 1.
    prediction: quantity that the network predicts.
    weighting: weight of the squared error of x_0. None gives the squared error of the prediction the weight 1.

    >>> from diffusion_lab import Denoising, Epsilon, GaussianProcess, LinearSchedule
    >>> x_0, noise, t = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.tensor([0.1, 1.0])
    >>> process, output = GaussianProcess(LinearSchedule()), noise / 2
    >>> Denoising(Epsilon())(output, x_0, process.q_sample(x_0, t, noise), noise, t, process)
    tensor([0.2500, 0.2500])
    """

    prediction: Prediction
    weighting: Weighting | None = None

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        target = self.prediction.target(x_0, noise, t, process)
        # At least float32: squared errors in bfloat16 would keep 8 bits only.
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
                f"`out_channels` of the network must be {channels} (the number of image channels) for the objective "
                f"Denoising, got {out_channels}; a learned variance is trained by the objective Hybrid or Variational "
                "(objective=hybrid or vlb; variance=fixed_small or fixed_large learns no variance)."
            )
        if self.weighting is None:
            return
        first = torch.tensor([schedule.t_min], dtype=torch.float64)
        if not bool(self._weight(self.weighting, first, GaussianProcess(schedule)).isfinite()):
            raise ValueError(
                "`weighting` must be None, Constant, MinSNR, SoftMinSNR, or P2 with gamma of at least 1 if the first "
                f"step of the schedule adds no noise, got {self.weighting}."
            )
