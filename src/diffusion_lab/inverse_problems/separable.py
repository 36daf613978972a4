"""Operators that multiply the channels, the rows and the columns of an image by one matrix each."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.inverse_problems.operators import SpectralOperator, copy_like, multiply


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix with at most as many rows m as columns n, and its singular value decomposition, in float64.

    matrix: [m, n].  left: [m, m].  values: singular values followed by zeros, [n].  right: V, [n, n].
    """

    matrix: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    @staticmethod
    def of(matrix: Tensor) -> "Factor":
        """Return the decomposition of a matrix, [m, n]."""
        left, values, right_transposed = torch.linalg.svd(matrix.double(), full_matrices=True)
        return Factor(matrix.double(), left, F.pad(values, (0, matrix.shape[1] - len(values))), right_transposed.mT)

    def multiply(self, name: str, x: Tensor, dim: int, *, transpose: bool = False) -> Tensor:
        """Return the product of the matrix `name` with x along the dimension `dim`.  x: [B, C, H, W]."""
        matrix = copy_like(self, name, x)
        return multiply(matrix.mT if transpose else matrix, x, dim)


class SeparableOperator(SpectralOperator):
    """An operator with a matrix along each of the dimensions C, H and W of an image.

    The singular value decomposition consists of those of the three small matrices.
    """

    @abstractmethod
    def matrices(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the matrices along C, H and W, [m, n] with m <= n each; None stands for the identity."""

    @cached_property
    def _factors(self) -> dict[int, Factor]:
        """The decompositions of the matrices by their dimension in a batch of images [B, C, H, W]."""
        return {dim: Factor.of(matrix) for dim, matrix in enumerate(self.matrices(), 1) if matrix is not None}

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        sizes = dict(enumerate(self.image_shape, 1)) | {dim: len(f.matrix) for dim, f in self._factors.items()}
        return tuple(sizes.values())

    @cached_property
    def singular_values(self) -> Tensor:
        values = torch.ones(1, *self.image_shape, dtype=torch.float64)
        for dim, factor in self._factors.items():
            values = values * factor.values.view([-1 if each == dim else 1 for each in range(4)])
        return values

    # The products with the matrices are cheaper than those with both orthogonal matrices of their decompositions.
    def forward(self, x: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            x = factor.multiply("matrix", x, dim)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            y = factor.multiply("matrix", y, dim, transpose=True)
        return y

    def project(self, y: Tensor) -> Tensor:
        return y

    def to_spectrum(self, x: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            x = factor.multiply("right", x, dim, transpose=True)
        return x

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            spectrum = factor.multiply("right", spectrum, dim)
        return spectrum

    def measurement_to_spectrum(self, y: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            y = factor.multiply("left", y, dim, transpose=True)
            num_missing = self.image_shape[dim - 1] - y.shape[dim]
            y = F.pad(y, (*[0] * (2 * (3 - dim) + 1), num_missing))
        return y

    def spectrum_to_measurement(self, spectrum: Tensor) -> Tensor:
        for dim, factor in self._factors.items():
            spectrum = factor.multiply("left", spectrum.narrow(dim, 0, len(factor.matrix)), dim)
        return spectrum
