"""Blurs, whose inverse problem is deblurring."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.inverse_problems.operators import SpectralOperator, copy_like
from diffusion_lab.inverse_problems.separable import SeparableOperator


@dataclass(frozen=True)
class GaussianBlur(SeparableOperator):
    """Blur with a Gaussian kernel of 2 ceil(3 std) + 1 pixels; images are reflected at their borders.

    The border pixel is not repeated, as with padding_mode="reflect" in torchvision.
    image_shape: see `LinearOperator`.  std: standard deviation of the kernel in pixels.
    Raises ValueError unless std is finite and above 0.

    >>> from diffusion_lab import GaussianBlur
    >>> GaussianBlur((1, 8, 8), std=1.0).forward(torch.full((1, 1, 8, 8), 0.5)).mean()
    tensor(0.5000)
    """

    image_shape: tuple[int, int, int]
    std: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"std of the blur must be a finite number above 0, got {self.std}.")

    def matrices(self) -> tuple[None, Tensor, Tensor]:
        return None, self._matrix(self.image_shape[1]), self._matrix(self.image_shape[2])

    def _matrix(self, size: int) -> Tensor:
        """Return the matrix that blurs `size` pixels: [size, size]."""
        radius = math.ceil(3 * self.std)
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.softmax(-(offsets.double() ** 2) / (2 * self.std**2), dim=0)
        # Reflection without repetition of the border has the period 2 (size - 1).
        period = max(2 * (size - 1), 1)
        columns = (torch.arange(size)[:, None] + offsets) % period
        columns = torch.where(columns < size, columns, period - columns)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        return matrix.scatter_add_(1, columns, weights.expand(size, -1))


@dataclass(frozen=True)
class MotionBlur(SpectralOperator):
    """Mean of the pixels along a straight line; images are continued periodically.

    The spectrum is the discrete Fourier transform, and the singular values are the magnitudes of that of the kernel.
    image_shape: see `LinearOperator`.  length: length of the line in pixels.
    angle: direction of the line in degrees, counterclockwise from a horizontal line.
    Raises ValueError unless length is finite and at least 1, and angle is finite.

    >>> from diffusion_lab import MotionBlur
    >>> MotionBlur((1, 1, 5), length=3).forward(torch.tensor([[[[0.0, 0.0, 3.0, 0.0, 0.0]]]])).round(decimals=3).abs()
    tensor([[[[0., 1., 1., 1., 0.]]]])
    """

    image_shape: tuple[int, int, int]
    length: float = 9.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.length) and self.length >= 1):
            raise ValueError(f"length of the blur must be a finite number of at least 1, got {self.length}.")
        if not math.isfinite(self.angle):
            raise ValueError(f"angle of the blur must be a finite number of degrees, got {self.angle}.")

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @cached_property
    def kernel(self) -> Tensor:
        """The response to a pixel at the upper left corner, float64 [H, W], with a sum of 1."""
        height, width = self.image_shape[1:]
        # The line consists of points whose values are distributed to the four nearest pixels. Their distance of at most
        # one pixel gives equal weights to the pixels of a horizontal line with a whole length.
        num_points = math.ceil(self.length)
        positions = (torch.arange(num_points, dtype=torch.float64) - (num_points - 1) / 2) * (self.length / num_points)
        y, x = -positions * math.sin(math.radians(self.angle)), positions * math.cos(math.radians(self.angle))
        kernel = torch.zeros(height * width, dtype=torch.float64)
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weights = (1 - (y - (y.floor() + row)).abs()) * (1 - (x - (x.floor() + column)).abs())
            pixels = ((y.floor() + row) % height) * width + (x.floor() + column) % width
            kernel.scatter_add_(0, pixels.long(), weights / num_points)
        return kernel.view(height, width)

    @cached_property
    def singular_values(self) -> Tensor:
        return self._coefficients.abs()[None, None]

    @cached_property
    def phase(self) -> Tensor:
        """The angles of the complex Fourier coefficients of the kernel, float64 [H, W]."""
        return self._coefficients.angle()

    @cached_property
    def _coefficients(self) -> Tensor:
        coefficients: Tensor = torch.fft.fft2(self.kernel)
        return coefficients

    def to_spectrum(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
        return spectrum

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        images: Tensor = torch.fft.ifft2(spectrum, norm="ortho")
        return images.real

    def measurement_to_spectrum(self, y: Tensor) -> Tensor:
        return self._rotation(y).conj() * self.to_spectrum(y)

    def spectrum_to_measurement(self, spectrum: Tensor) -> Tensor:
        return self.from_spectrum(self._rotation(spectrum.real) * spectrum)

    def _rotation(self, like: Tensor) -> Tensor:
        """Return exp(i phase), complex [H, W]."""
        phase = copy_like(self, "phase", like)
        return torch.polar(torch.ones_like(phase), phase)
