"""Downsampling, whose inverse problem is super-resolution."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_lab.inverse_problems.separable import SeparableOperator


@dataclass(frozen=True)
class AreaDownsampling(SeparableOperator):
    """Downsampling in which each pixel is the mean of factor x factor pixels, as `F.interpolate` with mode="area".

    image_shape: see `LinearOperator`.  factor: ratio of the resolutions.
    Raises ValueError unless factor is at least 1 and divides the height and the width.

    >>> from diffusion_lab import AreaDownsampling
    >>> AreaDownsampling((1, 2, 4), factor=2).forward(torch.arange(8.0).view(1, 1, 2, 4))
    tensor([[[[2.5000, 4.5000]]]])
    """

    image_shape: tuple[int, int, int]
    factor: int = 4

    def __post_init__(self) -> None:
        require_factor(self.image_shape, self.factor)

    def matrices(self) -> tuple[None, Tensor, Tensor]:
        height, width = self.image_shape[1:]
        return None, self._matrix(height // self.factor), self._matrix(width // self.factor)

    def _matrix(self, size: int) -> Tensor:
        """Return the matrix that downsamples to `size` pixels: [size, size * factor]."""
        return torch.eye(size, dtype=torch.float64).repeat_interleave(self.factor, dim=1) / self.factor


@dataclass(frozen=True)
class BicubicDownsampling(SeparableOperator):
    """Bicubic downsampling with antialiasing, as Pillow, and `F.interpolate` with mode="bicubic" and antialias=True.

    The kernel of Keys (1981) with a = -0.5 is stretched by the factor, and its weights are normalized at the borders.
    image_shape: see `LinearOperator`.  factor: ratio of the resolutions.
    Raises ValueError unless factor is at least 1 and divides the height and the width.

    >>> from diffusion_lab import BicubicDownsampling
    >>> BicubicDownsampling((3, 8, 8), factor=2).forward(torch.full((1, 3, 8, 8), 0.5)).mean()
    tensor(0.5000)
    """

    image_shape: tuple[int, int, int]
    factor: int = 4

    def __post_init__(self) -> None:
        require_factor(self.image_shape, self.factor)

    def matrices(self) -> tuple[None, Tensor, Tensor]:
        height, width = self.image_shape[1:]
        return None, _bicubic_matrix(height, self.factor), _bicubic_matrix(width, self.factor)


def require_factor(image_shape: tuple[int, int, int], factor: int) -> None:
    """Raise ValueError unless images can be downsampled by the factor without a remainder."""
    height, width = image_shape[1:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor must be at least 1 and divide the height and the width of the images ({height} x {width}), got "
            f"{factor}."
        )


@lru_cache(maxsize=16)
def _bicubic_matrix(size: int, factor: int) -> Tensor:
    """Return the matrix that downsamples `size` pixels by the factor: [size / factor, size]."""
    centers = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor
    distances = (torch.arange(size, dtype=torch.float64) + 0.5 - centers[:, None]).abs() / factor
    weights = torch.where(distances < 1, (1.5 * distances - 2.5) * distances**2 + 1, 0.0)
    outer = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = torch.where((distances >= 1) & (distances < 2), outer, weights)
    return weights / weights.sum(dim=1, keepdim=True)
