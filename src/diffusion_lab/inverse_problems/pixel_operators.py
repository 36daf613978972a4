"""Operators that keep, remove or mix single pixels or their channels."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_lab.inverse_problems.operators import SpectralOperator
from diffusion_lab.inverse_problems.separable import SeparableOperator

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601, as in Pillow's conversion to the mode L."""


@dataclass(frozen=True)
class IdentityOperator(SeparableOperator):
    """The image itself, whose inverse problem is the removal of the measurement noise.

    image_shape: see `LinearOperator`.

    >>> from diffusion_lab import IdentityOperator
    >>> IdentityOperator((3, 8, 8)).measurement_shape
    (3, 8, 8)
    """

    image_shape: tuple[int, int, int]

    def matrices(self) -> tuple[None, None, None]:
        return None, None, None


@dataclass(frozen=True)
class Grayscale(SeparableOperator):
    """The gray image of a color image, with the weights of ITU-R BT.601; its inverse problem is colorization.

    image_shape: see `LinearOperator`.  Raises ValueError unless images have three channels.

    >>> from diffusion_lab import Grayscale
    >>> Grayscale((3, 8, 8)).forward(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    image_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.image_shape[0] != 3:
            raise ValueError(
                f"colorization requires images of 3 channels (red, green and blue), got {self.image_shape[0]}."
            )

    def matrices(self) -> tuple[Tensor, None, None]:
        return torch.tensor([LUMA], dtype=torch.float64), None, None


@dataclass(frozen=True, eq=False)
class Inpainting(SpectralOperator):
    """The image without the pixels of a hole. Measurements have the shape of images, with 0 in the hole.

    image_shape: see `LinearOperator`.
    hole: whether each pixel is missing, bool, [H, W], [1, H, W] or [C, H, W] for all images, or [B, 1, H, W] or
        [B, C, H, W] with a hole for each image.
    Raises ValueError if the hole does not have the size of the images.

    >>> from diffusion_lab import Inpainting
    >>> right = torch.tensor([[False, True], [False, True]])
    >>> Inpainting((1, 2, 2), right).forward(torch.ones(1, 1, 2, 2))
    tensor([[[[1., 0.],
              [1., 0.]]]])
    """

    image_shape: tuple[int, int, int]
    hole: Tensor

    def __post_init__(self) -> None:
        hole = self.hole[None] if self.hole.ndim == 2 else self.hole
        channels, *size = self.image_shape
        if hole.ndim not in (3, 4) or list(hole.shape[-2:]) != size or hole.shape[-3] not in (1, channels):
            raise ValueError(
                f"the mask must have the size of the images ({size[0]} x {size[1]} pixels, and 1 or {channels} "
                f"channels), got a mask of the shape {list(self.hole.shape)}."
            )
        object.__setattr__(self, "hole", hole.bool() if hole.ndim == 4 else hole.bool()[None])

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def singular_values(self) -> Tensor:
        return (~self.hole).double().expand(-1, self.image_shape[0], -1, -1)

    def to_spectrum(self, x: Tensor) -> Tensor:
        return x

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        return spectrum

    def measurement_to_spectrum(self, y: Tensor) -> Tensor:
        return self.singular_values_like(y) * y

    def spectrum_to_measurement(self, spectrum: Tensor) -> Tensor:
        return self.singular_values_like(spectrum) * spectrum

    def select(self, rows: Tensor) -> "Inpainting":
        return replace(self, hole=self.hole[rows.to(self.hole.device)]) if len(self.hole) > 1 else self
