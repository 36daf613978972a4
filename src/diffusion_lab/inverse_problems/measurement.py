"""Measurements y = A x_0 + noise of a batch of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.contracts import require_instance
from diffusion_lab.inverse_problems.operators import LinearOperator


@dataclass(frozen=True, eq=False)
class Measurement:
    """Measurements y = A x_0 + noise_std * noise of a batch of images.

    operator: the linear operator A.
    y: measurements, [B, *measurement_shape].
    noise_std: standard deviation of the measurement noise; 0 if there is no noise.
    decode: in a latent space, the differentiable map from x_0 to images, which the operator measures; None otherwise.
    encode: in a latent space, the map from images to x_0, which `InpaintingNetwork` needs; None otherwise.
    Raises ValueError if y does not have the shape of the operator's measurements, and unless noise_std is finite and at
    least 0.

    >>> from diffusion_lab import AreaDownsampling, ImageNoise, Measurement
    >>> operator, images = AreaDownsampling((3, 8, 8), factor=2), torch.zeros(2, 3, 8, 8)
    >>> measurement = Measurement.of(operator, images, noise_std=0.1, noise=ImageNoise(2, operator.measurement_shape))
    >>> measurement.y.shape
    torch.Size([2, 3, 4, 4])
    """

    operator: LinearOperator
    y: Tensor
    noise_std: float = 0.0
    decode: Callable[[Tensor], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require_instance(self.operator, LinearOperator, "operator")
        if tuple(self.y.shape[1:]) != self.operator.measurement_shape:
            raise ValueError(
                f"`y` must have the shape [B, {', '.join(map(str, self.operator.measurement_shape))}] of measurements "
                f"by {type(self.operator).__name__}, got {list(self.y.shape)}."
            )
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(
                f"the noise of the measurement must be a finite number of at least 0, got {self.noise_std}."
            )
        object.__setattr__(self, "y", self.operator.project(self.y))

    @staticmethod
    def of(operator: LinearOperator, images: Tensor, noise_std: float = 0.0, noise: Any = None) -> "Measurement":
        """Return measurements of images [B, C, H, W].

        noise: standard normal noise, [B, *measurement_shape], or its source, such as `ImageNoise(seeds,
            operator.measurement_shape, purpose=Purpose.MEASUREMENT)`; may be None if noise_std is 0.
        Raises ValueError if noise_std is above 0 and noise is None.
        """
        y = operator.forward(images)
        if noise_std == 0:
            return Measurement(operator, y)
        if noise is None:
            raise ValueError(f"`noise` must be given if noise_std is above 0, got None for noise_std={noise_std}.")
        noise = noise if isinstance(noise, Tensor) else noise.draw()
        return Measurement(operator, y + noise_std * noise.to(y), noise_std)

    def residual(self, images: Tensor) -> Tensor:
        """Return y - A images, [B, *measurement_shape].  images: [B, C, H, W]."""
        return self.y.to(images.device, images.dtype) - self.operator.forward(images)

    def inconsistency(self, images: Tensor) -> Tensor:
        """Return the root mean square of y - A images over the measured values of each image: [B].

        Its expected value for the true images is noise_std.
        """
        measured = self.operator.project(torch.ones_like(self.y)) != 0
        return self.residual(images).flatten(1).square().sum(1).div(measured.flatten(1).sum(1).clamp(min=1)).sqrt()

    def select(self, rows: Tensor) -> "Measurement":
        """Return the measurements of a part of the batch.  rows: indices of the images, int64 [b]."""
        return replace(self, operator=self.operator.select(rows), y=self.y[rows.to(self.y.device)])
