"""Base classes of linear operators: the maps from images to measurements."""

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.inverse_problems.conjugate_gradients import conjugate_gradients

TOLERANCE = 1e-4
"""Singular values below this fraction of the largest one are treated as 0 by pseudo-inverses.

The division by a singular value multiplies the rounding error of float32, 6e-8, by at most 1e4 this way, so that the
error of a pixel remains below a tenth of a gray level.
"""


class LinearOperator(DataclassInterface):
    """A linear map A from images to measurements, which maps each image of a batch separately.

    Each operator is a frozen dataclass. Its first field is
    image_shape: shape of one image, [C, H, W].

    An operator with a known singular value decomposition derives from `SpectralOperator` instead.
    """

    image_shape: tuple[int, int, int]

    @property
    @abstractmethod
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of the measurement of one image."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x, [B, *measurement_shape].  x: images, [B, C, H, W]."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, [B, C, H, W].  y: measurements, [B, *measurement_shape]."""

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A^+ y, the smallest images [B, C, H, W] whose measurement is closest to y [B, *measurement_shape].

        The result is computed by 100 conjugate gradient iterations if the singular values are not known.
        """
        return conjugate_gradients(lambda x: self.adjoint(self.forward(x)), self.adjoint(y), num_iterations=100)

    def project(self, y: Tensor) -> Tensor:
        """Return measurements [B, *measurement_shape] with 0 for entries that the operator does not measure."""
        return y

    def select(self, rows: Tensor) -> Self:
        """Return the operator for a part of the batch.  rows: indices of the images, int64 [b].

        Operators that are equal for all images return themselves.
        """
        return self


class SpectralOperator(LinearOperator):
    """A linear operator with a known singular value decomposition A = U S V^T.

    The spectrum V^T x of an image has as many coefficients as the image, in any shape; V is orthogonal, or unitary if
    the spectrum is complex. U^T y has the shape of the spectrum, with 0 for coefficients that are not measured.
    """

    @property
    @abstractmethod
    def singular_values(self) -> Tensor:
        """The singular values S, float64, broadcastable to the spectra of a batch; 0 for lost coefficients."""

    @abstractmethod
    def to_spectrum(self, x: Tensor) -> Tensor:
        """Return V^T x, [B, ...].  x: images, [B, C, H, W]."""

    @abstractmethod
    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        """Return V spectrum, [B, C, H, W].  spectrum: see `to_spectrum`."""

    @abstractmethod
    def measurement_to_spectrum(self, y: Tensor) -> Tensor:
        """Return U^T y in the shape of `to_spectrum`.  y: measurements, [B, *measurement_shape]."""

    @abstractmethod
    def spectrum_to_measurement(self, spectrum: Tensor) -> Tensor:
        """Return U spectrum, [B, *measurement_shape].  spectrum: see `to_spectrum`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.spectrum_to_measurement(self.singular_values_like(x) * self.to_spectrum(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.from_spectrum(self.singular_values_like(y) * self.measurement_to_spectrum(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Return A^+ y, see `LinearOperator.pseudo_inverse`, without singular values below `TOLERANCE`."""
        return self.from_spectrum(self.inverse_singular_values(y) * self.measurement_to_spectrum(y))

    def project(self, y: Tensor) -> Tensor:
        return self.spectrum_to_measurement(self.measurement_to_spectrum(y))

    def singular_values_like(self, like: Tensor) -> Tensor:
        """Return the singular values with the device and dtype of `like`."""
        return copy_like(self, "singular_values", like)

    def is_measured(self, like: Tensor) -> Tensor:
        """Return whether each coefficient has a singular value above the tolerance of pseudo-inverses, bool."""
        values = self.singular_values_like(like)
        return values > TOLERANCE * values.max()

    def inverse_singular_values(self, like: Tensor) -> Tensor:
        """Return 1 / S, and 0 for coefficients that are not measured, with the device and dtype of `like`."""
        values, is_measured = self.singular_values_like(like), self.is_measured(like)
        return torch.where(is_measured, 1 / torch.where(is_measured, values, 1.0), 0.0)


def copy_like(owner: Any, name: str, like: Tensor) -> Tensor:
    """Return an attribute of a frozen object as a constant with the device of `like`, and its dtype unless it is int.

    The copy is cached, so that a sampler step does not wait for a copy to the device.
    owner: object with the constant tensor attribute `name`.
    """
    copies: dict[Any, Tensor] = owner.__dict__.setdefault("_copies", {})
    key = name, like.device, like.dtype
    if key not in copies:
        # A tensor that was created in inference mode could not be used in the backward pass.
        with torch.inference_mode(False):
            constant = getattr(owner, name).detach().clone()
            copies[key] = constant.to(like.device, like.dtype if constant.is_floating_point() else constant.dtype)
    return copies[key]


def multiply(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return the product of a matrix, [m, n], with x along its dimension `dim`, which has the size n."""
    with torch.autocast(x.device.type, enabled=False):  # autocast would round the matrix to bfloat16
        return (x.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
