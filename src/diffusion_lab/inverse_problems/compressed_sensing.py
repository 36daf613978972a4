"""Compressed sensing: a part of the coefficients of an orthogonal transform."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.inverse_problems.operators import SpectralOperator, copy_like, multiply
from diffusion_lab.randomness import Purpose, stream


@dataclass(frozen=True)
class CompressedSensing(SpectralOperator):
    """Random coefficients of the discrete cosine transform (DCT-II) of the image, after random changes of sign.

    The signs distribute the energy of images, which is in low frequencies, over all coefficients (Do et al. 2012,
    "structurally random matrices"). All images have the same signs and coefficients.
    image_shape: see `LinearOperator`.  fraction: number of measured coefficients divided by the number of values of an
    image.  seed: seed of the signs and of the choice of coefficients.
    Raises ValueError unless fraction is in (0, 1] and seed is at least 0.

    >>> from diffusion_lab import CompressedSensing
    >>> CompressedSensing((3, 8, 8), fraction=0.25).measurement_shape
    (48,)
    """

    image_shape: tuple[int, int, int]
    fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction of the measured coefficients must be in (0, 1], got {self.fraction}.")
        if self.seed < 0:
            raise ValueError(f"seed of the measured coefficients must be at least 0, got {self.seed}.")

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return (max(round(self.fraction * math.prod(self.image_shape)), 1),)

    @cached_property
    def _random(self) -> tuple[Tensor, Tensor]:
        """The signs, [C, H, W], and the indices of the measured coefficients, int64 [M], in increasing order."""
        generator, size = stream(self.seed, Purpose.OPERATOR), math.prod(self.image_shape)
        signs = 2.0 * generator.integers(2, size=self.image_shape) - 1
        rows = np.sort(generator.permutation(size)[: self.measurement_shape[0]])
        return torch.from_numpy(signs), torch.from_numpy(rows)

    @property
    def signs(self) -> Tensor:
        """The sign of each pixel, float64 [C, H, W]."""
        return self._random[0]

    @property
    def rows(self) -> Tensor:
        """The indices of the measured coefficients in the flattened spectrum, int64 [M]."""
        return self._random[1]

    @cached_property
    def row_transform(self) -> Tensor:
        """The transform along the height, float64 [H, H]."""
        return _cosine_transform(self.image_shape[1])

    @cached_property
    def column_transform(self) -> Tensor:
        """The transform along the width, float64 [W, W]."""
        return _cosine_transform(self.image_shape[2])

    @cached_property
    def singular_values(self) -> Tensor:
        values = torch.zeros(math.prod(self.image_shape), dtype=torch.float64)
        return values.index_fill(0, self._random[1], 1.0).view(1, *self.image_shape)

    def to_spectrum(self, x: Tensor) -> Tensor:
        x = multiply(copy_like(self, "row_transform", x), copy_like(self, "signs", x) * x, dim=2)
        return multiply(copy_like(self, "column_transform", x), x, dim=3)

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        x = multiply(copy_like(self, "row_transform", spectrum).mT, spectrum, dim=2)
        return copy_like(self, "signs", x) * multiply(copy_like(self, "column_transform", x).mT, x, dim=3)

    def measurement_to_spectrum(self, y: Tensor) -> Tensor:
        spectrum = y.new_zeros(len(y), math.prod(self.image_shape))
        return spectrum.index_copy(1, copy_like(self, "rows", y), y).view(len(y), *self.image_shape)

    def spectrum_to_measurement(self, spectrum: Tensor) -> Tensor:
        return spectrum.flatten(1).index_select(1, copy_like(self, "rows", spectrum))


def _cosine_transform(size: int) -> Tensor:
    """Return the orthogonal DCT-II matrix, [size, size]."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = (math.pi * k * (2 * n + 1) / (2 * size)).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
