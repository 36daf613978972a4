"""What a measurement determines about the spectrum of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.operators import SpectralOperator


@dataclass(frozen=True)
class MeasuredSpectrum:
    """The coefficients of V^T x that are measured by an operator A = U S V^T: V^T x = mean + std * noise.

    operator: the operator.
    mean: U^T y / S, in the shape of the spectra of a batch; 0 for coefficients that are not measured.
    std: noise_std / S, broadcastable to the mean; 0 for coefficients that are not measured.
    is_measured: whether each coefficient is measured, bool, broadcastable to the mean.
    """

    operator: SpectralOperator
    mean: Tensor
    std: Tensor
    is_measured: Tensor

    @staticmethod
    def of(measurement: Measurement, operator: SpectralOperator, like: Tensor) -> "MeasuredSpectrum":
        """Return the measured spectrum with the device and dtype of `like`.  operator: that of the measurement."""
        inverse = operator.inverse_singular_values(like)
        mean = inverse * operator.measurement_to_spectrum(measurement.y.to(like.device, like.dtype))
        return MeasuredSpectrum(operator, mean, measurement.noise_std * inverse, operator.is_measured(like))

    def insert(self, x: Tensor, noise: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return x_t with its measured coefficients sampled from their distribution given y.

        Coefficients whose measurement has more noise than x_t are unchanged.
        x: x_t, [B, C, H, W].  noise: standard normal noise, [B, C, H, W].  alpha, sigma: coefficients at t.
        """
        variance = sigma**2 - (alpha * self.std) ** 2
        sampled = alpha * self.mean + variance.clamp(min=0).sqrt() * self.operator.to_spectrum(noise)
        spectrum = self.operator.to_spectrum(x)
        return self.operator.from_spectrum(torch.where(self.is_measured & (variance >= 0), sampled, spectrum))
