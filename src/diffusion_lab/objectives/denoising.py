"""Squared error between the network's output and its target."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess, Prediction


class Objective(ABC):
    """A loss per image."""

    @abstractmethod
    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        """Loss [B], at least float32.  output, x_0, x_t, noise: [B, C, H, W].  t: [B]."""


@dataclass(frozen=True)
class Denoising(Objective):
    """L_simple: mean squared error in the space of the prediction (Ho et al. 2020, eq. 14).

    The mean runs over channels and pixels, so that unit noise met by an output of 0 costs 1.
    """

    prediction: Prediction

    def __call__(
        self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, process: GaussianProcess
    ) -> Tensor:
        target = self.prediction.target(x_0, noise, *process.coefficients(t, like=x_0))
        # At least float32: squares of bfloat16 errors would keep 8 bits.
        error = output.to(torch.promote_types(output.dtype, torch.float32)) - target
        return error.square().mean(dim=(1, 2, 3))
